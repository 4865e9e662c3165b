"""How CUDA runs are spread over chunks, lanes and memory, and what stays on the CPU."""

from __future__ import annotations

import itertools
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from cuda_cases import (
    DIRECT,
    GPU,
    busy_unit,
    check_curves,
    check_direct,
    curves_by,
    kernels,
    needs_compiler,
)
from cuda_shim import Shim
from test_specialise import CELL, run_cell

from h2osim import cuda
from h2osim.cuda import chunks, run
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.kernels.stack import Stack
from h2osim.engines import naive
from h2osim.engines.request import Job
from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import INF, Policy
from h2osim.policies.expressions import LARGEST
from h2osim.policies.parameters import shared
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit


@needs_compiler
def test_who_runs_what() -> None:
    """Rules with state that evict in every step go to `depths`, all others to `stack`."""
    unit, device = busy_unit(90, 5), Shim()

    def chosen(*texts: str) -> list[tuple[str, list[int]]]:
        jobs = [Job(unit, parse(text), 1, 1) for text in texts]
        return [(k.__name__, some) for k, some in run.choose(device, jobs)]

    assert chosen("decay:recent=5,scores=full", "h2o:recent=2,scores=full") == [("Depths", [0, 1])]
    assert chosen("lazy:window=4,scores=full", "tova:scores=full") == [
        ("Stack", [0]), ("Depths", [1])
    ]  # fmt: skip
    assert chosen("recency") == [("Stack", [0])]
    unit = busy_unit(4 * device.warp * 32 + 1, 5)  # more tokens than registers for their mass
    assert chosen("tova:scores=full") == [("Stack", [0])]


@needs_compiler
@pytest.mark.parametrize("text", ["scissorhands:window=5,recent=2", "h2o:recent=2,scores=full"])
def test_replays_that_stop_and_go_on(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `qk` trace comes in blocks of rows, with state kept on the device in between."""
    monkeypatch.setattr(run, "block_rows", lambda n: 7)
    rng = np.random.default_rng(5)
    q, k = rng.standard_normal((1, 2, 30, 4)), rng.standard_normal((1, 1, 30, 4))
    unit = Trace.from_qk(q, k, scale=1.0).units()[0]
    job = Job(unit, parse(text), 6, 4)
    check_direct(Shim(), [job])
    if job.configured.inclusive(2):
        for device in (Shim(), Shim(shared=64)):
            check_curves(device, [job], [1, 6, 30], 1, Stack)


@needs_compiler
def test_out_of_device_memory_means_smaller_chunks() -> None:
    trace = Trace.from_scores(np.tril(np.ones((8, 12, 12))) / np.arange(1, 13)[:, None])
    jobs = [Job(u, parse("tova"), 3, 1) for u in trace.units()]
    sizes: list[int] = []

    class Small(Shim):
        def empty(self, size: int, dtype: object) -> np.ndarray:
            sizes.append(size)
            return super().empty(size, dtype)

    check_direct(Small(memory=2000), jobs)
    assert max(sizes) > 2000 >= min(sizes)
    with pytest.raises(UserError, match="out of device memory"):
        cuda.direct(jobs, Shim(memory=100))


def test_lanes_share_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units that fit one at a time are worked at one at a time, whatever lanes there are."""
    trace = Trace.from_scores(np.tril(np.ones((8, 12, 12))) / np.arange(1, 13)[:, None])
    units = trace.units()
    lock, busy, most = threading.Lock(), [0], [0]

    class Two(Shim):
        lanes = 2

    def work(room: int, device: cuda.Device, some: list[Unit]) -> dict[int, int]:
        with lock:
            busy[0] += len(some)
            most[0] = max(most[0], len(some))
            full = busy[0] > room
        time.sleep(0.002)
        with lock:
            busy[0] -= len(some)
        if full:
            raise MemoryError
        return {units.index(unit): unit.index for unit in some}

    cost = dict.fromkeys(units, 1)
    for room in (1, 2, 3, 100):
        monkeypatch.setattr(chunks, "PIECE", 2)
        for _ in range(20):
            found = chunks.spread(units, cost, partial(work, room), Two())
            assert found == {i: unit.index for i, unit in enumerate(units)}
    assert most[0] == 2
    with pytest.raises(UserError, match="out of device memory"):
        chunks.spread(units, cost, partial(work, 0), Two())


@needs_compiler
def test_rows_are_copied_while_others_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk's rows come during another chunk's kernels, and the curves are the same."""
    trace = Trace.from_scores(np.tril(np.ones((6, 40, 40))) / np.arange(1, 41)[:, None])
    jobs = [Job(u, parse("decay:recent=2,scores=full"), 1, 1) for u in trace.units()]
    expected = cuda.curves(jobs, (), Shim())
    spans: dict[str, list[tuple[float, float]]] = {"copy": [], "compute": []}
    one_at_a_time = threading.Lock()

    class Slow(Shim):
        lanes = 2

        def put(self, values: np.ndarray, target: np.ndarray, start: int) -> None:
            began = time.perf_counter()
            super().put(values, target, start)
            time.sleep(0.02)
            spans["copy"].append((began, time.perf_counter()))

        def launch(self, *args: Any) -> None:
            with one_at_a_time:  # the shim has one set of threads
                began = time.perf_counter()
                super().launch(*args)
                time.sleep(0.02)
                spans["compute"].append((began, time.perf_counter()))

    monkeypatch.setattr(chunks, "PIECE", 1)
    found = cuda.curves(jobs, (), Slow())
    for (curve, mass), (other, other_mass) in zip(found, expected, strict=True):
        assert curve.kept.tolist() == other.kept.tolist() and mass == other_mass
    assert len(spans["copy"]) == len(spans["compute"]) == 6
    beside = [a for a in spans["copy"] for b in spans["compute"] if a[0] < b[1] and b[0] < a[1]]
    assert len(beside) >= 3
    copies = sorted(spans["copy"])  # one lane's at a time, or all lanes would compute together
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(copies))


@pytest.mark.skipif(GPU, reason="there is a GPU")
def test_without_a_gpu_one_line_says_what_is_missing() -> None:
    with pytest.raises(UserError, match=r"gpu-cuda13|NVIDIA GPU") as caught:
        cuda.devices()
    assert "\n" not in str(caught.value)


def test_policies_that_stay_on_the_cpu_are_named() -> None:
    refused = {n: cuda.refusal(parse(n), 1) for n in all_policies() if n not in DIRECT}
    assert set(refused) >= {"nacl", "roco", "snapkv", "topk"}
    for name, why in refused.items():
        assert why and f"policy {name}:" in why and "\n" not in why


@needs_compiler
@pytest.mark.parametrize("sign", ["", "-"])
def test_a_policy_from_a_notebook(sign: str) -> None:
    """Rules that are defined in a cell are translated, and the kernels run them as naive does."""
    unit = busy_unit(40, 7, 2)
    configured = parse(run_cell(CELL.format(sign=sign), f"<ipython-input-9-{sign}>"))
    job = Job(unit, configured, 12, 3)
    device = Shim()
    check_direct(device, [job])
    assert kernels(device, [job]) == [Depths, Stack]
    for kernel in (Depths, Stack):
        check_curves(device, [job], [1, 12, 40], 1, kernel)


def test_refusals_at_the_limits() -> None:
    assert cuda.refusal(parse("h2o"), 127) is None
    assert "128 heads" in str(cuda.refusal(parse("h2o"), 128))
    assert cuda.refusal(parse(f"streaming:sinks={LARGEST - 1}"), 1) is None
    assert f"sinks={LARGEST}" in str(cuda.refusal(parse(f"streaming:sinks={LARGEST}"), 1))


def sometimes_nan(score: float, t: int, pos: int) -> float:
    return INF - INF if t == 9 and pos > 3 else score


@needs_compiler
@pytest.mark.parametrize("recent", [0, 3])
def test_a_rank_that_is_nan_ends_in_the_line_of_every_other_engine(recent: int) -> None:
    """It has no place in an order; where all ranks were NaN a kernel wrote beyond its arrays."""
    unit = busy_unit(30, 8, 2)
    policy = Policy(
        name="sometimes nan", summary="", source="", state=("score",), update=accumulate,
        rank=sometimes_nan, scores="full", inclusive=True,
        params=(shared("recent", recent),) if recent else (),
    )  # fmt: skip
    job = Job(unit, parse(policy), 6, 2)
    said = "policy sometimes nan: rank gives NaN in step 9, which has no place in an order"
    with pytest.raises(UserError, match=said):
        naive.run(job)
    for device in (Shim(), Shim(1)):
        with pytest.raises(UserError, match=said):
            cuda.direct([Job(unit, parse("tova"), 4, 2), job], device)
        for kernel in (Depths, Stack):
            with pytest.raises(UserError, match=said):
                curves_by(kernel, device, [job], [1, 12, 30], 1)
    # nothing is ranked in step 9 where nothing has to go
    later = Job(unit, parse(policy), 6, 12)
    check_direct(Shim(), [later])
    for kernel in (Depths, Stack):
        check_curves(Shim(), [later], [1, 12, 30], 1, kernel)
