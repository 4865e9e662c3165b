"""Sweeps of rows in host memory: whole calls by the clock, and their parts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import h2osim
from h2osim import cuda
from h2osim.attention.triangle import tri
from h2osim.bench import Measurement
from h2osim.bench.gpu.tools import DECAYS, FINE, random_rows, seconds
from h2osim.cuda.chunks import spread
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.rows import load_rows
from h2osim.engines.request import Job
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit


def sweeps(device: cuda.Gpu, n: int, units: int = 128) -> list[Measurement]:
    """`h2osim.sweep` of one value and of many, and what copying the rows alone takes."""
    packed = random_rows(device, n, units)
    scores = np.zeros((1, units, n, n), np.float16)
    below = np.tril_indices(n)
    for u in range(units):
        rows = device.host(packed.bits[u * tri(n) : (u + 1) * tri(n)])
        scores[0, u][below] = rows.view(np.float16)
    del packed
    trace = Trace.from_scores(scores)
    del scores

    def clock(work: Callable[[], Any]) -> float:
        work()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    def sweep(texts: list[str]) -> Any:
        return h2osim.sweep(trace, ",".join(texts), "all", engine="cuda")

    whole = trace.units()
    cost = {unit: 2 * tri(n) for unit in whole}

    def copying() -> None:
        def work(mine: cuda.Device, some: list[Unit]) -> dict[int, Any]:
            for rows in load_rows(mine, some, n, 0):
                mine.host(rows.bases)
            return {}

        spread(whole, cost, work, device)

    resident = next(load_rows(device, whole, n, 0))
    device.host(resident.bases)  # wait: other streams do not
    index = {unit: u for u, unit in enumerate(whole)}

    def computing(jobs: list[Job]) -> None:
        def work(mine: cuda.Device, some: list[Unit]) -> dict[int, Any]:
            chunk = set(some)
            here = [job for job in jobs if job.unit in chunk]
            run = Depths(mine, here, [index[job.unit] for job in here], ())
            run.feed(resident)
            return run.curves()

        spread(whole, cost, work, device)

    one, many, more = (clock(partial(sweep, texts)) for texts in (DECAYS[5:6], DECAYS, FINE))
    copied = clock(copying)
    lines = [
        Measurement(f"sweep of one decay value, {units} units of {n} tokens", one, "s"),
        Measurement("sweep of 16 decay values / of one", many / one, "times"),
        Measurement("sweep of 64 decay values / of one", more / one, "times"),
        Measurement("copying those rows to the GPU, nothing else", copied * 1e3, "ms"),
    ]
    gpus = len(cuda.devices())
    for texts in (DECAYS[5:6], DECAYS, FINE):
        values = [parse(text) for text in texts]
        jobs = [Job(unit, one, 1, 1) for unit in whole for one in values]
        run = Depths(device, jobs, [index[job.unit] for job in jobs], ())
        alone = seconds(partial(run.feed, resident), 3)
        computed = clock(partial(computing, jobs))
        both = clock(partial(cuda.curves, jobs, (), device))
        name = f"curves, values: {len(texts)}"
        lines += [
            Measurement(f"{name}: the kernel, by events", alone * 1e3, "ms"),
            Measurement(f"{name}: from rows on the GPU, nothing copied", computed * 1e3, "ms"),
            Measurement(f"{name}: rows copied", both * 1e3, "ms"),
            Measurement(f"{name}: / copying + computing", both / (copied + computed), "times"),
        ]
        if gpus > 1:
            shared = clock(partial(cuda.curves, jobs))
            lines.append(Measurement(f"{name}: one GPU / {gpus} GPUs", both / shared, "times"))
    return lines
