"""Computes the chunks of a sweep on a Dask cluster."""

from __future__ import annotations

import logging
import math
import os
import threading
import uuid
from asyncio import CancelledError
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError as Cancelled
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from h2osim.policies.text import parse
from h2osim.replays.execute import WORTH_A_GPU, Engine, Meter, compute, engine_called, engine_here
from h2osim.replays.plan import WorkPlan, plan_work
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.sweeps.identity import budgets_from
from h2osim.sweeps.store import SweepStore
from h2osim.traces.catalogue import open_trace
from h2osim.traces.trace import Trace

#: Seconds to wait for a scheduler's answer.
_PATIENCE = 10.0


def connect(address: str) -> Any:
    """A client of a running Dask cluster; UserError where there is none."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--dask needs Dask: run pip install 'h2osim[dask]'") from None
    for name in ("distributed", "distributed.client"):  # a lost cluster is told in one line, below
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--dask {address}: no Dask scheduler answers there ({reason})") from None
    if not client.scheduler_info()["workers"]:
        client.close()
        raise UserError(f"--dask {address}: the cluster has no worker")
    return client


def lanes_of(client: Any) -> int:
    """How many tasks a cluster works on at a time."""
    return max(1, sum(client.nthreads().values()))


def trace_paths(traces: Sequence[Trace]) -> list[str]:
    """The absolute folder of each trace; UserError for one in memory."""
    for trace in traces:
        if trace.path is None:
            raise UserError(
                f"trace {trace.name}: it lives in memory; save it, workers open traces by path"
            )
    return [os.path.abspath(str(trace.path)) for trace in traces]


def engine_there(client: Any, engine: str, folders: Sequence[str], seconds: float) -> Engine:
    """The engine for work of so many seconds of a core; UserError where a worker lacks it, or a
    folder. ``auto`` as in :func:`~h2osim.replays.execute.engine_here`, where all have a GPU.
    """
    address = client.scheduler.address
    if engine == "auto" and seconds / lanes_of(client) < WORTH_A_GPU:
        engine = "numba"
    try:
        answers: dict[str, tuple[str, str]] = client.run(_probe, engine, list(folders))
    except Exception as error:  # whatever a worker's missing or other installation raises
        raise UserError(f"--dask {address}: h2osim does not run there: {error}") from None
    for worker, (_, problem) in answers.items():
        if problem:
            raise UserError(f"--dask: worker {worker}: {problem}")
    names = {name for name, _ in answers.values()}
    return engine_called(names.pop() if len(names) == 1 else "numba")


def _probe(engine: str, folders: Sequence[str]) -> tuple[str, str]:
    """On a worker: its engine, and what is wrong with it."""
    for folder in folders:
        if not Path(folder).is_dir():
            return "", f"{folder}: no such folder there; traces and store are opened by path"
    try:
        return engine_here(engine, math.inf).name, ""
    except UserError as error:
        return "", str(error)


def execute_there(
    plan: WorkPlan, engine: Engine, store: SweepStore, client: Any, progress: Progress | None
) -> None:
    """Compute the unfinished chunks on a cluster; the workers write them into the store.

    Store and traces must have the same absolute paths on every worker. A task whose worker dies is
    given to another by Dask; a chunk that was marked before is not computed again.
    """
    from distributed import KilledWorker, as_completed

    for configured in plan.configured:
        if dict(parse(configured.text).values) != dict(configured.values):
            raise UserError(f"policy {configured.text}: workers can not make it from its name")
    todo = [i for i in range(plan.chunks) if not store.finished(i)]
    seconds = [plan.chunk_seconds(i) for i in range(plan.chunks)]
    total = math.fsum(seconds)
    left = math.fsum(seconds[i] for i in todo)
    meter = Meter(total, total - left, "sweeping", progress)
    paths = tuple(trace_paths(plan.traces))
    name = f"h2osim-sweep-{uuid.uuid4().hex}"
    where = str(store.path.resolve())
    futures = client.map(
        _remote, todo, path=where, traces=paths, engine=engine.name, turns=turns(client.nthreads()),
        key=[f"{name}-{i}" for i in todo], pure=False,
    )  # fmt: skip
    try:
        for future in as_completed(futures, loop=client.loop):
            meter.add(seconds[future.result()])
            future.release()
        meter.end()
    except KilledWorker as error:
        raise UserError(
            f"--dask: a task's workers died again and again ({error.task}); is their memory enough?"
        ) from None
    except (CancelledError, Cancelled, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--dask: lost the cluster ({reason}); the same command goes on") from None
    finally:
        client.cancel([future for future in futures if not future.done()])


def turns(workers: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Of each worker's address: which of its machine's workers it is, and of how many."""
    hosts: dict[str | None, list[str]] = {}
    for address in sorted(workers):
        hosts.setdefault(urlsplit(address).hostname, []).append(address)
    return {address: (i, len(those)) for those in hosts.values() for i, address in enumerate(those)}


def _remote(
    index: int, *, path: str, traces: Sequence[str], engine: str, turns: dict[str, tuple[int, int]]
) -> int:
    """Do one chunk on a Dask worker."""
    from distributed import get_worker

    plan, store = _opened(path, tuple(traces))
    with store.alone(index):  # a driver that was killed may have left a task at work on it
        if store.finished(index):
            return index
        lane = lane_of(*turns.get(get_worker().address, (0, 1)))
        store.started(index)
        store.put(index, compute(plan.part(index), engine_called(engine), lane, errors=plan.errors))
    return index


@lru_cache(maxsize=4)
def _opened(path: str, traces: tuple[str, ...]) -> tuple[WorkPlan, SweepStore]:
    """The store, and its plan rebuilt from the identity that it holds; the two are compared."""
    store = SweepStore(Path(path))
    asked = store.identity
    plan = plan_work(
        [open_trace(trace) for trace in traces],
        [parse(text) for text in asked["policies"]],
        budgets_from(asked["budgets"]),
        prompt_len=asked["prompt_len"],
        share=asked["share"],
        layers=asked["layers"],
        measure=asked.get("measure", "recall"),
    )
    store.check(plan)
    return replace(plan, chunk=store.chunk), store


_LANES = threading.local()
_NEXT = iter(range(2**31))


def lane_of(worker: int, workers: int) -> int:
    """The lane of this thread of a worker; lanes modulo the number of GPUs give its GPU.

    Workers of one machine take GPUs in turn, and so do the threads of a worker that is alone.
    """
    if not hasattr(_LANES, "number"):
        _LANES.number = next(_NEXT)
    return worker + workers * int(_LANES.number)
