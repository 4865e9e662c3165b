"""Doing the work of a plan on this machine: which engine, on how many threads, with what progress.

A replay and a sweep both go through :func:`execute`. Chunks are done one after the other, each in
tasks that the threads share; a chunk whose tasks are all done is handed over.
"""

from __future__ import annotations

import importlib.util
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from h2osim.replays.found import Found
from h2osim.replays.measures import PASSES
from h2osim.replays.plan import Chunk, WorkPlan
from h2osim.replays.tasks import Task, Tick, refused_by_cuda, tasks_of
from h2osim.support.errors import UserError
from h2osim.support.machine import cores
from h2osim.support.progress import Progress
from h2osim.traces.unit import Unit

#: Seconds between two reports of progress.
_REPORT = 0.1
#: Seconds of work on all cores from which on starting a GPU and compiling kernels pays.
WORTH_A_GPU = 5.0


class Destination(Protocol):
    """Where the results of chunks go."""

    def finished(self, index: int) -> bool:
        """Whether this chunk is done."""

    def started(self, index: int) -> None:
        """Work on a chunk begins."""

    def room(self, index: int) -> Found:
        """What a chunk's results are entered into."""

    def put(self, index: int, found: Found) -> None:
        """Keep a chunk's results, and then mark it as done."""


@dataclass
class Memory:
    """Results in memory."""

    plan: WorkPlan
    found: Found

    def finished(self, index: int) -> bool:
        """Nothing is there before it is computed."""
        return False

    def started(self, index: int) -> None:
        """Nothing to note."""

    def room(self, index: int) -> Found:
        """A chunk's part of all results."""
        return self.found if self.plan.chunks == 1 else self.found.part(self.plan.slices(index))

    def put(self, index: int, found: Found) -> None:
        """The results are in their place."""


# --- engines --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """How chunks are computed.

    ``lanes()``: how many tasks this machine works on at a time. ``seconds``: the size of a chunk,
    in seconds of a CPU core running numba, and ``least``: below that chunks are not made smaller to
    give every lane several; ``together``: most configurations of a chunk. ``room``: bytes of
    working arrays that the runs of one unit may have, where the engine does not see to that by
    itself.
    """

    name: str
    lanes: Callable[[], int]
    seconds: float
    least: float = 0.05
    together: int = 16
    room: float = math.inf
    missing: Callable[[], str | None] = field(default=lambda: None)

    def cut(self, plan: WorkPlan, lanes: int) -> WorkPlan:
        """The plan in chunks that suit the engine."""
        return plan.cut(self.seconds, self.least, lanes, self.together, self.room)

    def names(self, chunk: Chunk) -> list[str]:
        """What runs each configuration of a chunk; numba where CUDA refuses one."""
        refused = refused_by_cuda(chunk) if self.name == "cuda" else []
        return [
            "batch" if one.policy.rank_batch else "numba" if i in refused else self.name
            for i, one in enumerate(chunk.configured)
        ]


def _no_cuda() -> str | None:
    """Why CUDA can not be used, in a line, or None."""
    if importlib.util.find_spec("h2osim.cuda") is None:
        return "engine cuda: this h2osim has no CUDA engine; use --engine numba"
    from h2osim import cuda

    try:
        cuda.devices()
    except UserError as error:
        return str(error)
    return None


def _gpu_lanes() -> int:
    """Two a GPU, so that one task is computed while the results of another are written."""
    from h2osim import cuda

    return 2 * len(cuda.devices())


ENGINES = {
    engine.name: engine
    for engine in (
        # Some hundred times as slow as numba.
        Engine("naive", cores, 0.01, together=1),
        Engine("numba", cores, 2.0),
        # A thousand times as fast as a core: chunks of that size keep a GPU busy for a second. In
        # one of less than 50 ms it would wait for rows that nothing is computed beside; and rows
        # are brought over once for all configurations of a chunk.
        Engine("cuda", _gpu_lanes, 1000.0, 50.0, together=256, room=2**30, missing=_no_cuda),
    )
}


def engine_called(name: str) -> Engine:
    """The engine of a name other than ``auto``, whether or not this machine can run it."""
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}; expected auto, {', '.join(ENGINES)}")
    return ENGINES[name]


def engine_here(name: str, seconds: float) -> Engine:
    """An engine that this machine can run, for work of so many seconds of a core.

    ``auto`` is cuda where there is a GPU and the work would keep all cores busy for
    ``WORTH_A_GPU`` seconds, else numba.
    """
    if name == "auto":
        worth = seconds / cores() >= WORTH_A_GPU and _no_cuda() is None
        return ENGINES["cuda" if worth else "numba"]
    engine = engine_called(name)
    missing = engine.missing()
    if missing:
        raise UserError(missing)
    return engine


# --- execution ------------------------------------------------------------------------------


class Stopped(BaseException):
    """Ends a task whose driver has given up."""


class Meter:
    """Adds up the seconds of work that are done, and tells the caller now and then."""

    def __init__(self, total: float, done: float, word: str, progress: Progress | None):
        self._total, self._done, self._word = total, done, word
        self._progress, self._lock, self._last = progress, threading.Lock(), 0.0
        self.add(0.0)

    def add(self, seconds: float) -> None:
        """More is done; the caller hears of it a few times a second."""
        with self._lock:
            self._done += seconds
            if self._progress and time.monotonic() - self._last >= _REPORT:
                self._last = time.monotonic()
                self._progress(min(self._done, self._total), self._total, self._word)

    def end(self) -> None:
        """Everything is done."""
        if self._progress:
            self._progress(self._total, self._total, self._word)


class _Work:
    """A chunk that is being worked on."""

    def __init__(self, index: int, destination: Destination, tasks: int):
        self._index, self._destination, self._left = index, destination, tasks
        self._lock = threading.Lock()
        self._found: Found | None = None
        if not tasks:  # every trace is shorter than the budgets
            self._destination.put(index, self.begin())

    def begin(self) -> Found:
        with self._lock:
            if self._found is None:
                self._destination.started(self._index)
                self._found = self._destination.room(self._index)
            return self._found

    def end(self) -> None:
        """One task is done; the last one hands the chunk over."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                assert self._found is not None
                self._destination.put(self._index, self._found)
                self._found = None


def execute(
    plan: WorkPlan,
    engine: Engine,
    destination: Destination,
    progress: Progress | None = None,
    word: str = "replaying",
) -> None:
    """Do what is left of a plan.

    Every layer is checked before the work begins. Raises what a task raises, at once: other tasks
    stop at their next tick, and so they do on Ctrl-C.
    """
    if engine.name == "naive":
        plan = plan.budget_by_budget()
    seconds = [plan.chunk_seconds(i) for i in range(plan.chunks)]
    todo = [i for i in range(plan.chunks) if not destination.finished(i)]
    total = math.fsum(seconds)
    meter = Meter(total, total - math.fsum(seconds[i] for i in todo), word, progress)
    cpus, gpus = (cores(), engine.lanes()) if engine.name == "cuda" else (engine.lanes(), 0)
    # The runs of a unit are split where the units alone do not keep the cores busy.
    units = [unit for i in todo for unit in plan.units[plan.slices(i)[1]]]
    pieces = max(1, -(-4 * cpus // max(1, len(units))))
    layers = {(id(unit.trace), unit.layer): unit for unit in units}
    stop = threading.Event()
    lanes: queue.SimpleQueue[int] = queue.SimpleQueue()
    for lane in range(gpus):
        lanes.put(lane)
    alone = 2 * len(todo) <= gpus  # fewer chunks than GPUs: each uses them all

    def tick(share: float, task: Task) -> None:
        if stop.is_set():
            raise Stopped
        meter.add(share * task.seconds * PASSES[plan.measure])

    def check(unit: Unit) -> None:
        if stop.is_set():
            raise Stopped
        unit.trace.check_layer(unit.layer)

    def do(work: _Work, task: Task) -> None:
        if stop.is_set():
            raise Stopped
        found = work.begin()
        lane = None if task.engine != "cuda" or alone else lanes.get()
        try:
            task.do(found, lane, lambda share: tick(share, task))
        finally:
            if lane is not None:
                lanes.put(lane)
        work.end()

    def tasks() -> Iterator[tuple[_Work, Task]]:
        for index in todo:
            listed = list(tasks_of(plan.part(index), engine.name, pieces))
            work = _Work(index, destination, len(listed))
            yield from ((work, task) for task in listed)

    on_cpus, on_gpus = ThreadPoolExecutor(cpus), ThreadPoolExecutor(max(1, gpus))
    try:
        waiting: set[Future[None]] = set()
        for checked in [on_cpus.submit(check, unit) for unit in layers.values()]:
            checked.result()
        left = tasks()
        while True:
            # A few tasks ahead of the threads, so that none waits for its next one.
            for work, task in islice(left, 2 * max(cpus, gpus) - len(waiting)):
                pool = on_gpus if task.engine == "cuda" else on_cpus
                waiting.add(pool.submit(do, work, task))
            if not waiting:
                break
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
    finally:
        stop.set()
        for pool in (on_cpus, on_gpus):
            pool.shutdown(cancel_futures=True)
    meter.end()


def compute(
    chunk: Chunk,
    engine: Engine,
    lane: int = 0,
    tick: Tick = lambda _: None,
    errors: Sequence[str] = (),
) -> Found:
    """Do a chunk on this thread; ``errors``: the variables measured beside recall."""
    found = Found.empty(chunk.shape, errors=errors)
    for task in tasks_of(chunk, engine.name):
        task.do(found, lane, tick)
    return found
