"""A chunk of a sweep, computed: the one place where an engine is chosen.

Every engine is a function ``f(chunk, lane, tick) -> Found`` in :data:`ENGINES`; they agree exactly.
The drivers in ``run.py`` know no more of an engine than what :class:`Engine` says.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from h2osim.engines.job import Curve, Job, Outcome
from h2osim.errors import UserError
from h2osim.fixedpoint import tri
from h2osim.policy import Configured
from h2osim.replay import cores
from h2osim.trace import Unit

#: Bytes of working arrays of the runs that are fed together.
_RUNS_BYTES = 128 * 2**20
#: Bytes of a block of rows that several runs read before the next is touched.
_BLOCK_BYTES = 2 * 2**20

#: Called with the share of a chunk done since the last call; may raise to stop the work.
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Chunk:
    """Some configurations on some units, at every budget.

    ``prompt_lens`` and ``tokens`` (int64 [budgets], 0: the trace is too short for this column) have
    one entry a unit; ``one_pass`` is bool [configurations, units].
    """

    configured: Sequence[Configured]
    units: Sequence[Unit]
    prompt_lens: Sequence[int]
    tokens: Sequence[np.ndarray]
    one_pass: np.ndarray

    @cached_property
    def columns(self) -> list[tuple[np.ndarray | slice, np.ndarray]]:
        """Of each unit: the columns that its trace is long enough for, and their budgets."""
        known: dict[int, tuple[np.ndarray | slice, np.ndarray]] = {}
        for tokens in self.tokens:
            if id(tokens) not in known:
                places = slice(None) if tokens.all() else np.flatnonzero(tokens)
                known[id(tokens)] = places, tokens[places]
        return [known[id(tokens)] for tokens in self.tokens]


@dataclass(frozen=True)
class Found:
    """What a chunk gives: recall float64 and held int32, both [configurations, units, budgets].

    NaN and 0 where there is nothing to tell: a trace shorter than the budget, nothing decoded.
    """

    recall: np.ndarray
    held: np.ndarray

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Found:
        """Nothing found yet."""
        return cls(np.full(shape, np.nan), np.zeros(shape, np.int32))

    def put(self, at: tuple[int, int], run: Run, result: Curve | Outcome, whole: int) -> None:
        """Enter one run: the recall is replay's, one division of exact integers.

        Below 2**53, which takes half a billion rows of a head to reach, both are exact in float64
        and the division is rounded as Python's.
        """
        if isinstance(result, Curve):
            kept, held = result.kept[run.tokens - 1], result.held[run.tokens - 1]
        else:
            kept, held = np.array([result.kept.sum()]), np.array([result.held])
        assert whole < 2**53
        self.recall[at][run.places] = kept / float(whole) if whole else np.nan
        self.held[at][run.places] = held


@dataclass(frozen=True)
class Run:
    """A configuration on a unit, at one budget or (``one_pass``) at all that are asked for.

    ``places`` are the chunk's columns that it gives and ``tokens`` their budgets.
    """

    job: Job
    one_pass: bool
    places: np.ndarray | slice
    tokens: np.ndarray


def runs_of(chunk: Chunk, i: int, u: int) -> list[Run]:
    """The runs of a configuration on a unit."""
    unit, one = chunk.units[u], chunk.configured[i]
    tokens, p = chunk.tokens[u], chunk.prompt_lens[u]
    places, there = chunk.columns[u]
    if not len(there):
        return []
    if chunk.one_pass[i, u]:
        return [Run(Job(unit, one, unit.n, p), True, places, there)]
    return [
        Run(Job(unit, one, int(k), p), False, np.flatnonzero(tokens == k), tokens[tokens == k])
        for k in np.unique(there)
    ]


# --- the engines ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """How chunks are computed.

    ``lanes()``: how many chunks this machine works on at a time; the number of the lane is the
    second argument of ``compute``. ``seconds``: the size of a chunk, in seconds of a CPU core
    running numba, and ``least``: below that chunks are not made smaller to give every lane several;
    ``together``: most configurations of a chunk. ``room``: bytes of working arrays that the runs of
    one unit may have, where the engine does not see to that by itself.
    """

    name: str
    compute: Callable[[Chunk, int, Tick], Found]
    lanes: Callable[[], int]
    seconds: float
    least: float = 0.05
    together: int = 16
    room: float = math.inf
    missing: Callable[[], str | None] = field(default=lambda: None)


def _naive(chunk: Chunk, lane: int, tick: Tick) -> Found:
    from h2osim.engines import naive

    found = _found(chunk)
    singly = replace(chunk, one_pass=np.zeros_like(chunk.one_pass))
    for u, unit in enumerate(chunk.units):
        unit.trace.check_layer(unit.layer)
        whole = int(unit.row_masses()[chunk.prompt_lens[u] :].sum())
        for i in range(len(chunk.configured)):
            for run in runs_of(singly, i, u):
                found.put((i, u), run, naive.run(run.job), whole)
                tick(1 / (found.recall[..., 0].size * len(np.unique(chunk.tokens[u]))))
    return found


def _numba(chunk: Chunk, lane: int, tick: Tick) -> Found:
    """All configurations of a unit are fed its rows block by block, so that rows are read once."""
    from h2osim.engines.direct import DirectRun
    from h2osim.engines.stack import StackRun

    found = _found(chunk)
    for u, unit in enumerate(chunk.units):
        unit.trace.check_layer(unit.layer)
        waiting = [(i, run) for i in range(len(chunk.configured)) for run in runs_of(chunk, i, u)]
        for batch in _batches(waiting, unit):
            fed = [StackRun(run.job) if run.one_pass else DirectRun(run.job) for _, run in batch]
            lag = max(run.job.configured.lag() for _, run in batch)
            share = len(batch) / len(waiting) / len(chunk.units)
            rows = None
            if len(batch) > 1 and "scores" in unit.trace.stores:
                rows = max(32, _BLOCK_BYTES // (2 * unit.n * len(unit.heads)))
            for block in unit.blocks(rows=rows, lag=lag):
                part = (tri(block.stop) - tri(block.start)) / tri(unit.n) * share / len(fed)
                for engine in fed:
                    engine.feed(block)
                    tick(part)
            for (i, run), engine in zip(batch, fed, strict=True):
                found.put((i, u), run, engine.result(), int(engine.masses.sum()))
    return found


def _batches(waiting: list[tuple[int, Run]], unit: Unit) -> Iterator[list[tuple[int, Run]]]:
    """As many runs at a time as fit the memory for their working arrays."""
    batch: list[tuple[int, Run]] = []
    room = 0
    for i, run in waiting:
        policy = run.job.configured.policy
        size = unit.n * (64 + 8 * (len(policy.state) + len(policy.inputs)) + 20 * len(unit.heads))
        if batch and room + size > _RUNS_BYTES:
            yield batch
            batch, room = [], 0
        batch.append((i, run))
        room += size
    if batch:
        yield batch


def _cuda(chunk: Chunk, lane: int, tick: Tick) -> Found:
    """Runs go to the GPU by trace, prompt and number of heads; what it refuses runs on the CPU."""
    from h2osim.engines import cuda

    found = _found(chunk)
    groups: dict[tuple[int, int, int, bool], list[tuple[int, int, Run]]] = {}
    refused: list[int] = []
    heads = {len(unit.heads) for unit in chunk.units}
    for i, one in enumerate(chunk.configured):
        if any(cuda.refusal(one, h) for h in heads):
            refused.append(i)
            continue
        for u, unit in enumerate(chunk.units):
            unit.trace.check_layer(unit.layer)
            for run in runs_of(chunk, i, u):
                key = (id(unit.trace), run.job.prompt_len, len(unit.heads), run.one_pass)
                groups.setdefault(key, []).append((i, u, run))
    share = 1 / len(chunk.configured)
    for (*_, one_pass), members in groups.items():
        jobs = [run.job for _, _, run in members]
        with _DEVICE_LOCKS[lane % len(cuda.devices())]:
            device = cuda.devices()[lane % len(cuda.devices())]
            if one_pass:
                curves = cuda.curves(jobs, device=device)
            else:
                outcomes = cuda.direct(jobs, device=device)
        for m, (i, u, run) in enumerate(members):
            if one_pass:
                found.put((i, u), run, curves[m][0], int(curves[m][1]))
            else:
                found.put((i, u), run, outcomes[m][0], int(outcomes[m][1].sum()))
        tick(share * len({i for i, _, _ in members}) / len(groups))
    if refused:
        rest = Chunk(
            [chunk.configured[i] for i in refused], chunk.units, chunk.prompt_lens, chunk.tokens,
            chunk.one_pass[refused],
        )  # fmt: skip
        there = _numba(rest, lane, lambda part: tick(part * share * len(refused)))
        found.recall[refused], found.held[refused] = there.recall, there.held
    return found


def _no_cuda() -> str | None:
    """Why CUDA can not be used, in a line, or None."""
    if importlib.util.find_spec("h2osim.engines.cuda") is None:
        return "engine cuda: this h2osim has no CUDA engine; use --engine numba"
    from h2osim.engines import cuda

    try:
        cuda.devices()
    except UserError as error:
        return str(error)
    return None


def _gpu_lanes() -> int:
    """Two a GPU, so that one chunk is computed while the results of another are written."""
    from h2osim.engines import cuda

    return 2 * len(cuda.devices())


#: Whose turn it is on a GPU.
_DEVICE_LOCKS: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)


def _found(chunk: Chunk) -> Found:
    return Found.empty((len(chunk.configured), len(chunk.units), len(chunk.tokens[0])))


ENGINES = {
    engine.name: engine
    for engine in (
        # Some hundred times as slow as numba.
        Engine("naive", _naive, cores, 0.01, together=1),
        Engine("numba", _numba, cores, 2.0),
        # A thousand times as fast as a core: chunks of that size keep a GPU busy for a second. In
        # one of less than 50 ms it would wait for rows that nothing is computed beside; and rows
        # are brought over once for all configurations of a chunk.
        Engine(
            "cuda",
            _cuda,
            _gpu_lanes,
            1000.0,
            least=50.0,
            together=256,
            room=2**30,
            missing=_no_cuda,
        ),
    )
}


def engine_called(name: str) -> Engine:
    """The engine of a name other than ``auto``, whether or not this machine can run it."""
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}; expected auto, {', '.join(ENGINES)}")
    return ENGINES[name]


def engine_here(name: str) -> Engine:
    """An engine that this machine can run; ``auto`` is cuda where there is a GPU, else numba."""
    if name == "auto":
        return ENGINES["numba" if _no_cuda() else "cuda"]
    engine = engine_called(name)
    missing = engine.missing()
    if missing:
        raise UserError(missing)
    return engine


def compute(chunk: Chunk, engine: Engine, lane: int = 0, tick: Tick = lambda _: None) -> Found:
    """Compute a chunk."""
    return engine.compute(chunk, lane, tick)
