"""Measures the CUDA engine on the first GPU, after checking its results against the CPU.

Scores are random: softmax of independent normal logits, rounded to float16, made on the device.
GPU times are medians of CUDA events after a warm-up; CPU times are processor seconds of one core;
whole calls are timed by the clock. Where PyTorch is installed, it is a baseline.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import h2osim
from h2osim import cuda
from h2osim.attention.fixed_point import UNIT
from h2osim.attention.triangle import tri
from h2osim.bench import Measurement, fed, median_seconds
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.rows import DeviceRows
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.engines.stack import StackRun
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

UNITS = 1056  # eight for each of the 132 multiprocessors of an H100 or H200
RECENT = 32
POLICY = f"h2o:recent={RECENT},scores=full"
FINE = [f"decay:gamma={0.9 + 0.0015 * i:.4f},recent={RECENT},scores=full" for i in range(64)]
DECAYS = FINE[::4]


def measure() -> list[Measurement]:
    """Every budget of H2O by its kernel, and whole sweeps."""
    device = cuda.devices()[0]
    copy = copy_bandwidth(device)
    lines = [Measurement("device-to-device copy, bytes read and written", copy / 1e9, "GB/s")]
    for n in (2048, 4096):
        lines += accumulated(device, n, copy)
    return lines + sweeps(host_trace(device, 2048, 128))


def accumulated(device: cuda.Gpu, n: int, copy: float) -> list[Measurement]:
    """H2O at every budget, against a copy on the device, one CPU core, and PyTorch."""
    rows = random_rows(device, n)
    jobs = {i: Job(as_unit(device, rows, n, i), parse(POLICY), 1, 1) for i in (0, 100, UNITS - 1)}
    job = jobs[100]
    run = Depths(device, [job] * UNITS, range(UNITS), (), 1)
    run.feed(rows)
    found = run.curves()
    for i, one in jobs.items():
        assert np.array_equal(found[i][0].kept, on_one_core(one).kept)

    gpu = seconds(lambda: run.feed(rows))
    read = UNITS * tri(n) * 2 / gpu
    core = median_seconds(lambda: on_one_core(job), 3)
    name = f"H2O, {UNITS} units of {n} tokens, every budget"
    lines = [
        Measurement(name, gpu * 1e3, "ms"),
        Measurement(f"{name}: scores read once", read / 1e9, "GB/s"),
        Measurement(f"{name}: share of the copy", 100 * read / copy, "%"),
        Measurement(f"{name}: one core by numba / GPU", core * UNITS / gpu, "times", 1000),
    ]
    if n == 2048:
        baseline = pytorch_seconds(rows, n, n // 5, found)
        if baseline:
            lines += [
                Measurement(f"PyTorch, {UNITS} units, budget {n // 5}", baseline, "s"),
                Measurement("PyTorch / GPU, per budget", baseline / (gpu / n), "times", 500),
            ]
    return lines


def sweeps(trace: Trace) -> list[Measurement]:
    """Whole calls of `h2osim.sweep` of one value of a parameter, of 16 and of 64."""
    one, many, more = (
        clock(partial(h2osim.sweep, trace, ",".join(texts), "all", engine="cuda"))
        for texts in (DECAYS[5:6], DECAYS, FINE)
    )
    name = f"sweep of one decay value, {len(trace.heads)} units of {trace.n} tokens"
    return [
        Measurement(name, one, "s"),
        Measurement("sweep of 16 decay values / of one", many / one, "times"),
        Measurement("sweep of 64 decay values / of one", more / one, "times"),
    ]


def pytorch_seconds(rows: DeviceRows, n: int, budget: int, found: Any) -> float | None:
    """Seconds of H2O in PyTorch at one budget on all units at once, float32; None without PyTorch.

    ``found``: the curves of the same rows, to check the result.
    """
    try:
        import torch
    except ImportError:
        return None
    index = torch.tril_indices(n, n, device="cuda")
    flat = torch.as_tensor(rows.bits[: UNITS * tri(n)].view(np.float16), device="cuda")
    scores = torch.zeros((UNITS, n, n), dtype=torch.float16, device="cuda")
    for u in range(UNITS):
        scores[u, index[0], index[1]] = flat[u * tri(n) : (u + 1) * tri(n)]

    def run(scores: Any = scores) -> Any:
        total = torch.zeros((UNITS, n), device="cuda")
        cached = torch.zeros((UNITS, n), dtype=torch.bool, device="cuda")
        kept = torch.zeros(UNITS, device="cuda", dtype=torch.float64)
        for t in range(n):
            row = scores[:, t, : t + 1].float()
            total[:, : t + 1] += row
            cached[:, t] = True
            if t:
                kept += (row * cached[:, : t + 1]).sum(1)
            if t >= budget:
                last = t + 1 - RECENT
                worst = torch.where(cached[:, :last], total[:, :last], torch.inf).argmin(1)
                cached.scatter_(1, worst[:, None], False)
        torch.cuda.synchronize()
        return kept

    torch.cuda.synchronize()
    exact = np.array([int(found[u][0].kept[budget - 1]) for u in range(UNITS)]) * UNIT
    assert np.allclose(run().cpu().numpy(), exact, rtol=1e-3)  # float32 sums may break near-ties
    spent = clock(run)
    del flat
    torch.cuda.empty_cache()
    return spent


def clock(work: Callable[[], Any]) -> float:
    """Median seconds of three calls by the clock."""
    return median_seconds(work, 3, time.perf_counter)


# --- rows, timers, and the reference on one CPU core ----------------------------------------


def seconds(work: Callable[[], Any], repeats: int = 7) -> float:
    """Median seconds of work on the GPU, by CUDA events, after one warm-up call."""
    import cupy

    work()
    times = []
    for _ in range(repeats):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3)
    return statistics.median(times)


def copy_bandwidth(device: cuda.Gpu) -> float:
    """Bytes read and written per second by a copy of 2 GiB on the device."""
    import cupy

    source = device.empty(2**31, np.uint8)
    source[:] = 7
    target = cupy.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: cupy.copyto(target, source))


def random_rows(device: cuda.Gpu, n: int, units: int = UNITS) -> DeviceRows:
    """Softmax rows of independent normal logits for some units, made on the device."""
    bits = device.empty(units * tri(n) + 8, np.uint16)
    bases = device.array(np.arange(units, dtype=np.int64) * tri(n))
    device.launch(
        cuda.kernel_text("random_rows", {"T": 256}), "random_rows", -(-units * n // 8), 256, 0,
        [bits, np.uint64(2024), np.float32(1.0), np.int64(units * n), np.int32(n)],
    )  # fmt: skip
    return DeviceRows(0, 0, n, bits, bases)


def as_unit(device: cuda.Gpu, rows: DeviceRows, n: int, index: int) -> Unit:
    """The unit `index` of `random_rows`, copied to the host."""
    packed = device.host(rows.bits[index * tri(n) : (index + 1) * tri(n)])
    return Trace.from_packed(packed[None, None]).units()[0]


def host_trace(device: cuda.Gpu, n: int, units: int) -> Trace:
    """A trace in host memory of one layer with random rows in some heads."""
    packed = random_rows(device, n, units).bits[: units * tri(n)]
    return Trace.from_packed(device.host(packed).reshape(1, units, tri(n)))


def on_one_core(job: Job) -> Curve:
    """The numba stack engine, on this thread."""
    found: Curve = fed(StackRun(job), job.unit)
    return found
