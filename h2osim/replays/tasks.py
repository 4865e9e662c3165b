"""A chunk's work in tasks: what one thread does at a time, on the CPU or on a GPU.

A task holds runs that share the reading of rows. Its engine fills their places in what is found;
the engines agree exactly, but for the rounding of errors.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from h2osim.attention.softmax import BLOCK_ROWS
from h2osim.attention.triangle import tri
from h2osim.replays.found import Found
from h2osim.replays.plan import Chunk, PlannedRun
from h2osim.traces.unit import Unit

#: Bytes of working arrays of the runs that are fed together.
_RUNS_BYTES = 128 * 2**20
#: Bytes of a block of rows that several runs read before the next is touched.
_BLOCK_BYTES = 2 * 2**20

#: The same for a run alone, which could take all rows at once but for Ctrl-C.
_ALONE_BYTES = 64 * 2**20

#: Called with the share of a task done since the last call; may raise to stop the work.
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Task:
    """Runs that are done together, and the engine that does them: naive, numba or cuda."""

    engine: str
    runs: Sequence[PlannedRun]

    @property
    def seconds(self) -> float:
        """About how long it takes a core."""
        return sum(run.seconds for run in self.runs)

    def do(self, found: Found, lane: int | None, tick: Tick) -> None:
        """Do the runs; ``lane`` modulo the number of GPUs is the one to use, None: all of them."""
        units = {id(run.job.unit): run.job.unit for run in self.runs}.values()
        for unit in units:
            unit.trace.check_layer(unit.layer)
        if self.engine == "cuda":
            _cuda(self.runs, found, lane, tick)
        elif self.engine == "numba":
            _numba(self.runs, found, tick)
        else:
            _naive(self.runs, found, tick)
        for unit in units:  # the file may have been written over meanwhile
            unit.trace.check_layer(unit.layer)


def tasks_of(chunk: Chunk, engine: str, pieces: int = 1) -> Iterator[Task]:
    """A chunk's work; the runs of a unit are split into at least ``pieces`` tasks on the CPU.

    What CUDA refuses runs under numba.
    """
    rest = list(range(len(chunk.configured)))
    if engine == "naive":
        chunk = replace(chunk, one_pass=np.zeros_like(chunk.one_pass))
    if engine == "cuda":
        rest = refused_by_cuda(chunk)
        yield from _cuda_tasks(chunk, sorted(set(range(len(chunk.configured))) - set(rest)))
        engine = "numba"
    for u, unit in enumerate(chunk.units):
        runs = [run for i in rest for run in chunk.runs(i, u)]
        for batch in _batches(runs, unit, -(-len(runs) // pieces)):
            yield Task(engine, batch)


def refused_by_cuda(chunk: Chunk) -> list[int]:
    """The configurations that run on the CPU only."""
    from h2osim import cuda

    heads = {len(unit.heads) for unit in chunk.units}
    refusals = [[cuda.refusal(one, h) for h in heads] for one in chunk.configured]
    return [i for i, reasons in enumerate(refusals) if any(reasons)]


def _batches(runs: list[PlannedRun], unit: Unit, most: int) -> Iterator[list[PlannedRun]]:
    """As many runs at a time as fit the memory for their working arrays, at most ``most``."""
    batch: list[PlannedRun] = []
    room = 0
    for run in runs:
        policy = run.job.configured.policy
        size = unit.n * (64 + 8 * (len(policy.state) + len(policy.inputs)) + 20 * len(unit.heads))
        if batch and (room + size > _RUNS_BYTES or len(batch) == most):
            yield batch
            batch, room = [], 0
        batch.append(run)
        room += size
    if batch:
        yield batch


def _cuda_tasks(chunk: Chunk, accepted: Sequence[int]) -> Iterator[Task]:
    """The jobs of one call have a trace, a prompt length, a number of heads and a kind."""
    groups: defaultdict[tuple, list[PlannedRun]] = defaultdict(list)
    for i in accepted:
        for u, unit in enumerate(chunk.units):
            for run in chunk.runs(i, u):
                key = id(unit.trace), run.job.prompt_len, len(unit.heads), run.one_pass
                groups[key].append(run)
    for runs in groups.values():
        yield Task("cuda", runs)


# --- the engines ----------------------------------------------------------------------------


def _naive(runs: Sequence[PlannedRun], found: Found, tick: Tick) -> None:
    from h2osim.engines import naive

    unit = runs[0].job.unit
    share = 1 / len(runs) / unit.n
    for run in runs:
        masses = unit.row_masses()[run.job.prompt_len :]
        found.put(run, naive.run(run.job, lambda: tick(share), found.errors), masses)


def _numba(runs: Sequence[PlannedRun], found: Found, tick: Tick) -> None:
    """All runs are fed the unit's rows block by block, so that rows are read or made once."""
    from h2osim.engines.direct import DirectRun
    from h2osim.engines.errors import Outputs
    from h2osim.engines.stack import StackRun

    unit = runs[0].job.unit
    outputs = Outputs(unit, runs[0].job.prompt_len, found.errors) if found.errors else None
    fed = [
        StackRun(run.job, found.recorded(run), outputs)
        if run.one_pass
        else DirectRun(run.job, outputs)
        for run in runs
    ]
    rows = None
    if "scores" in unit.trace.stores:
        size = _BLOCK_BYTES if len(runs) > 1 else _ALONE_BYTES
        rows = max(32, size // (2 * unit.n * len(unit.heads)))
    if outputs is not None:
        rows = min(rows or BLOCK_ROWS, outputs.rows_at_a_time())
    for block in unit.blocks(rows=rows):
        if outputs is not None:
            outputs.read(block)
        share = (tri(block.stop) - tri(block.start)) / tri(unit.n) / len(runs)
        for one in fed:
            one.feed(block)
            tick(share)
    for run, one in zip(runs, fed, strict=True):
        found.put(run, one.result(), one.masses)


#: Whose turn it is on a GPU.
_DEVICE_LOCKS: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)


def _cuda(runs: Sequence[PlannedRun], found: Found, lane: int | None, tick: Tick) -> None:
    from h2osim import cuda

    jobs = [run.job for run in runs]
    every = sum(job.unit.n for job in jobs)

    def report(rows: int) -> None:
        tick(rows / every)

    devices = cuda.devices()
    place = -1 if lane is None else lane % len(devices)
    device = None if lane is None else devices[place]
    with _DEVICE_LOCKS[place]:
        results: Any
        if runs[0].one_pass:
            # Units may have other budgets: all are recorded, and each unit's are picked.
            wanted = [found.recorded(run) for run in runs]
            budgets = sorted(set().union(*wanted))
            results = [
                (replace(curve, evicted_at=curve.evicted_at[np.searchsorted(budgets, own)]), masses)
                for (curve, masses), own in zip(
                    cuda.curves(jobs, budgets, device=device, tick=report, errors=found.errors),
                    wanted,
                    strict=True,
                )
            ]
        else:
            results = cuda.direct(jobs, device=device, tick=report, errors=found.errors)
    for run, (result, masses) in zip(runs, results, strict=True):
        found.put(run, result, masses)
