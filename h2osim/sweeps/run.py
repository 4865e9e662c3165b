"""Doing the chunks of a plan: on the cores or GPUs of this machine, or on a Dask cluster."""

from __future__ import annotations

import queue
import threading
import time
import uuid
from asyncio import CancelledError
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from h2osim.policies.text import parse
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.sweeps.compute import Engine, compute, engine_called, engine_here
from h2osim.sweeps.plan import Plan, make_plan, trace_paths
from h2osim.sweeps.store import Sink, Store
from h2osim.traces.catalogue import open_trace

#: Seconds that a scheduler may take to answer.
_PATIENCE = 10.0


class _Stopped(BaseException):
    """Ends a lane whose driver has given up."""


class _Meter:
    """Adds up what is done; chunks report in shares of themselves."""

    def __init__(self, plan: Plan, todo: Iterable[int], progress: Progress | None):
        self._total = float(plan.costs.sum())
        left = set(todo)
        self._done = sum(float(cost) for i, cost in enumerate(plan.costs) if i not in left)
        self._progress, self._lock = progress, threading.Lock()
        self._last = 0.0
        self.add(0.0)

    def add(self, cost: float, now: bool = True) -> None:
        """More is done; tells the caller a few times a second, or at once."""
        with self._lock:
            self._done += cost
            if self._progress and (now or time.monotonic() - self._last > 0.1):
                self._last = time.monotonic()
                self._progress(min(self._done, self._total), self._total, "sweeping")


def run_here(plan: Plan, sink: Sink, engine: Engine, progress: Progress | None) -> None:
    """Do what is left on this machine, a chunk a lane."""
    todo = [i for i in range(plan.chunks) if not sink.finished(i)]
    meter = _Meter(plan, todo, progress)
    stop = threading.Event()
    lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
    count = engine.lanes()
    for lane in range(count):
        lanes.put(lane)

    def work(index: int) -> None:
        cost = float(plan.costs[index])
        told = 0.0

        def tick(share: float) -> None:
            nonlocal told
            if stop.is_set():
                raise _Stopped
            told += share * cost
            meter.add(share * cost, now=False)

        lane = lanes.get()
        try:
            sink.started(index)
            sink.put(index, compute(plan.part(index), engine, lane, tick, sink.room(index)))
        finally:
            lanes.put(lane)
        meter.add(max(0.0, cost - told))

    pool = ThreadPoolExecutor(max(1, min(count, len(todo))))
    try:
        waiting: set[Future[None]] = set()
        left = iter(todo)
        while True:
            for index in islice(left, 2 * count - len(waiting)):
                waiting.add(pool.submit(work, index))
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


# --- Dask -----------------------------------------------------------------------------------


def connect(address: str) -> Any:
    """A client of a running Dask cluster; UserError where there is none."""
    try:
        from distributed import Client
    except ImportError:
        raise UserError("--dask needs Dask: run pip install 'h2osim[dask]'") from None
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


def engine_there(client: Any, engine: str, folders: Sequence[str]) -> Engine:
    """The engine that the workers use; UserError where one of them lacks it, or a folder."""
    address = client.scheduler.address
    try:
        told: dict[str, tuple[str, str]] = client.run(_probe, engine, list(folders))
    except Exception as error:  # whatever a worker's missing or other installation raises
        raise UserError(f"--dask {address}: h2osim does not run there: {error}") from None
    for worker, (_, problem) in told.items():
        if problem:
            raise UserError(f"--dask: worker {worker}: {problem}")
    names = {name for name, _ in told.values()}
    return engine_called(names.pop() if len(names) == 1 else "numba")


def _probe(engine: str, folders: Sequence[str]) -> tuple[str, str]:
    """On a worker: its engine, and what is wrong with it."""
    for folder in folders:
        if not Path(folder).is_dir():
            return "", f"{folder}: no such folder there; traces and store are opened by path"
    try:
        return engine_here(engine).name, ""
    except UserError as error:
        return "", str(error)


def run_dask(plan: Plan, store: Store, engine: str, client: Any, progress: Progress | None) -> None:
    """Do what is left on a cluster: the same chunks, written by the workers themselves.

    Store and traces must have the same absolute paths on every worker. A task whose worker dies is
    given to another by Dask; a chunk that was marked before is not computed again.
    """
    from distributed import KilledWorker, as_completed

    for configured in plan.configured:
        if dict(parse(configured.text).values) != dict(configured.values):
            raise UserError(f"policy {configured.text}: workers can not make it from its name")
    todo = [i for i in range(plan.chunks) if not store.finished(i)]
    meter = _Meter(plan, todo, progress)
    paths = tuple(trace_paths(plan.traces))
    name = f"h2osim-sweep-{uuid.uuid4().hex}"
    where = str(store.path.resolve())
    futures = client.map(
        _remote, todo, path=where, traces=paths, engine=engine, turns=turns(client.nthreads()),
        key=[f"{name}-{i}" for i in todo], pure=False,
    )  # fmt: skip
    try:
        for future in as_completed(futures, loop=client.loop):
            meter.add(float(plan.costs[future.result()]))
            future.release()
    except KilledWorker as error:
        raise UserError(
            f"--dask: a task's workers died again and again ({error.task}); is their memory enough?"
        ) from None
    except (CancelledError, OSError) as error:
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
    if not store.finished(index):
        lane = lane_of(*turns.get(get_worker().address, (0, 1)))
        store.started(index)
        store.put(index, compute(plan.part(index), engine_here(engine), lane))
    return index


@lru_cache(maxsize=4)
def _opened(path: str, traces: tuple[str, ...]) -> tuple[Plan, Store]:
    """The plan of a store, made anew from what it says, and checked to be the same."""
    store = Store(Path(path))
    asked = store.identity
    plan = make_plan(
        [open_trace(trace) for trace in traces],
        [parse(text) for text in asked["policies"]],
        asked["budgets"],
        prompt_len=asked["prompt_len"],
        share=asked["share"],
        layers=asked["layers"],
        engine=engine_called("numba"),
        chunk=store.chunk,
    )
    store.check(plan.identity)
    return plan, store


_LANES = threading.local()
_NEXT = iter(range(2**31))


def lane_of(worker: int, workers: int) -> int:
    """The lane of this thread of a worker; lanes modulo the number of GPUs give its GPU.

    Workers of one machine take GPUs in turn, and so do the threads of a worker that is alone.
    """
    if not hasattr(_LANES, "number"):
        _LANES.number = next(_NEXT)
    return worker + workers * int(_LANES.number)
