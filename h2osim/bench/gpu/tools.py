"""Random attention rows on the GPU, timers, and the reference on one CPU core."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from h2osim import cuda
from h2osim.attention.triangle import tri
from h2osim.cuda.rows import DeviceRows
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.engines.stack import StackRun
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

UNITS = 1056  # eight for each of the 132 multiprocessors of an H100 or H200
RECENT = 32
POLICY = f"h2o:recent={RECENT},scores=full"
FINE = [f"decay:gamma={0.9 + 0.0015 * i:.4f},recent={RECENT},scores=full" for i in range(64)]
DECAYS = FINE[::4]


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
    scores = np.zeros((n, n), np.float16)
    packed = device.host(rows.bits[index * tri(n) : (index + 1) * tri(n)])
    scores[np.tril_indices(n)] = packed.view(np.float16)
    return Trace.from_scores(scores).units()[0]


def on_one_core(job: Job) -> Curve:
    """The numba stack engine, on this thread."""
    run = StackRun(job)
    for block in job.unit.blocks():
        run.feed(block)
    return run.result()
