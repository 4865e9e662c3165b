"""What recording costs, against a plain forward pass of the same model over the same tokens."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from h2osim.bench import Measurement
from h2osim.models.layers import call
from h2osim.models.loading import Model
from h2osim.models.recording import record
from h2osim.traces.catalogue import open_trace
from h2osim.traces.trace import Trace

GOALS = {"scores": 3.0, "qk": 1.5}  # plain forward passes, by the clock, on a CPU


def measure(loaded: Model, ids: Sequence[int], repeats: int = 3) -> list[Measurement]:
    """Time a plain forward pass, and recordings of all layers as scores and as queries and keys.

    A recording is all of it: the rows, the files on the disk, their digests, and reading back. The
    plain pass is the model by its own attention, with the logits of the last token only. In turns,
    with as many threads as PyTorch takes; the least of the repeats counts. On a CPU the processor
    time of all threads stands beside the time by the clock: waiting for the disk is not in it.
    Traces go to the folder for temporary files, whose speed limits a recording.
    Checked before it is timed: both recordings have the same rows, but for float32 sums in another
    order and the rounding to float16.
    """
    device = loaded.model.device
    with tempfile.TemporaryDirectory(prefix="h2osim-") as name:
        folder = Path(name)
        _check(loaded, list(ids[:256]), folder)
        sizes: dict[str, int] = {}

        def recording(store: str) -> None:
            shutil.rmtree(folder / store, ignore_errors=True)
            path = record(
                loaded.model, tokens=ids, out=folder / store, store=store, name="measured"
            )
            sizes[store] = sum(file.stat().st_size for file in path.iterdir())
            shutil.rmtree(path)

        work: dict[str, Callable[[], Any]] = {"plain": lambda: plain(loaded, list(ids))}
        work |= {store: partial(recording, store) for store in GOALS}
        least = {name: (float("inf"), float("inf")) for name in work}
        for _ in range(repeats):
            for name, do in work.items():
                found = _timed(do, device)
                least[name] = min(least[name][0], found[0]), min(least[name][1], found[1])
    where = f"{len(ids)} tokens, {device}"
    on_cpu = device.type == "cpu"
    lines = [Measurement(f"plain forward pass, {where}", least["plain"][0], "s")]
    for store, goal in GOALS.items():
        clock, processor = (least[store][i] / least["plain"][i] for i in range(2))
        bound = goal if on_cpu else None
        lines.append(Measurement(f"{store} / plain, {where}", clock, "times", bound, False))
        if on_cpu:
            lines.append(Measurement(f"{store} / plain, processor time", processor, "times"))
        rate = sizes[store] / least[store][0] / 1e6
        lines.append(Measurement(f"{store}: written to the disk", rate, "MB/s"))
    return lines


def plain(loaded: Model, ids: list[int]) -> None:
    """The model over the tokens by its own attention; the logits of the last alone."""
    with torch.inference_mode():
        call(loaded, ids, len(ids), use_cache=False, logits_to_keep=torch.tensor([len(ids) - 1]))


def _check(loaded: Model, ids: list[int], folder: Path) -> None:
    """Both stores hold the same rows."""
    made = {
        store: open_trace(record(loaded.model, tokens=ids, out=folder / store, store=store))
        for store in GOALS
    }
    for layer in made["qk"].layers:
        scores, qk = (_rows(trace, layer) for trace in made.values())
        apart = float(np.abs(scores - qk).max())
        # half a unit in the last place on either side of the rounding, and float32 noise
        assert apart <= 2**-11 + 1e-4, f"layer {layer}: rows differ by {apart}"
    for trace in made.values():
        assert trace.path is not None
        shutil.rmtree(trace.path)


def _rows(trace: Trace, layer: int) -> Any:
    (unit,) = (unit for unit in trace.units("layer") if unit.layer == layer)
    return unit.all_bits().view(np.float16).astype(np.float64)


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds of one call: by the clock, and of the processor in all threads."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    if device.type != "cpu":
        torch.cuda.synchronize(device)
    return time.perf_counter() - clock, time.process_time() - processor
