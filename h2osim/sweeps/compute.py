"""A chunk of a sweep, computed: the one place where an engine is chosen.

Every engine is a function ``f(chunk, found, lane, tick)`` in :data:`ENGINES` that fills ``found``;
they agree exactly.
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
from typing import TypeAlias

import numpy as np

from h2osim.attention.triangle import tri
from h2osim.engines.request import Job
from h2osim.engines.results import Curve, Outcome
from h2osim.policies.declaration import Configured
from h2osim.support.errors import UserError
from h2osim.support.machine import cores
from h2osim.traces.unit import Unit

#: Bytes of working arrays of the runs that are fed together.
_RUNS_BYTES = 128 * 2**20
#: Bytes of a block of rows that several runs read before the next is touched.
_BLOCK_BYTES = 2 * 2**20

#: What NumPy takes some entries of an axis by.
Index: TypeAlias = np.ndarray | slice
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Configurations, units, budgets."""
        return len(self.configured), len(self.units), len(self.tokens[0])

    @cached_property
    def columns(self) -> list[tuple[Index, Index] | None]:
        """Of each unit: the columns that its trace is long enough for, and where in a curve."""
        known: dict[int, tuple[Index, Index] | None] = {}
        for tokens, unit in zip(self.tokens, self.units, strict=True):
            if id(tokens) not in known:
                places = slice(None) if tokens.all() else np.flatnonzero(tokens)
                entries = tokens[places] - 1
                every = np.array_equal(entries, np.arange(unit.n))
                there = places, slice(None) if every else entries
                known[id(tokens)] = there if len(entries) else None
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
            kept, held = result.kept[run.entries], result.held[run.entries]
        else:
            kept, held = np.array([result.kept.sum()]), np.array([result.held])
        assert whole < 2**53
        self.recall[at][run.places] = kept / float(whole) if whole else np.nan
        self.held[at][run.places] = held


@dataclass(frozen=True)
class Run:
    """A configuration on a unit, at one budget or (``one_pass``) at all that are asked for.

    ``places`` are the chunk's columns that it gives; of a curve, ``entries`` go there.
    """

    job: Job
    one_pass: bool
    places: Index
    entries: Index


def runs_of(chunk: Chunk, i: int, u: int) -> list[Run]:
    """The runs of a configuration on a unit."""
    unit, one = chunk.units[u], chunk.configured[i]
    tokens, p = chunk.tokens[u], chunk.prompt_lens[u]
    there = chunk.columns[u]
    if there is None:
        return []
    if chunk.one_pass[i, u]:
        return [Run(Job(unit, one, unit.n, p), True, *there)]
    return [
        Run(Job(unit, one, int(k), p), False, np.flatnonzero(tokens == k), slice(None))
        for k in np.unique(tokens[tokens > 0])
    ]


# --- the engines ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Engine:
    """How chunks are computed.

    ``lanes()``: how many chunks this machine works on at a time; the number of the lane is the
    third argument of ``compute``. ``seconds``: the size of a chunk, in seconds of a CPU core
    running numba, and ``least``: below that chunks are not made smaller to give every lane several;
    ``together``: most configurations of a chunk. ``room``: bytes of working arrays that the runs of
    one unit may have, where the engine does not see to that by itself.
    """

    name: str
    compute: Callable[[Chunk, Found, int, Tick], None]
    lanes: Callable[[], int]
    seconds: float
    least: float = 0.05
    together: int = 16
    room: float = math.inf
    missing: Callable[[], str | None] = field(default=lambda: None)


def _naive(chunk: Chunk, found: Found, lane: int, tick: Tick) -> None:
    from h2osim.engines import naive

    singly = replace(chunk, one_pass=np.zeros_like(chunk.one_pass))
    for u, unit in enumerate(chunk.units):
        unit.trace.check_layer(unit.layer)
        whole = int(unit.row_masses()[chunk.prompt_lens[u] :].sum())
        for i in range(len(chunk.configured)):
            for run in runs_of(singly, i, u):
                found.put((i, u), run, naive.run(run.job), whole)
                tick(1 / (found.recall[..., 0].size * len(np.unique(chunk.tokens[u]))))


def _numba(chunk: Chunk, found: Found, lane: int, tick: Tick) -> None:
    """All configurations of a unit are fed its rows block by block, so that rows are read once."""
    from h2osim.engines.direct import DirectRun
    from h2osim.engines.stack import StackRun

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


def _cuda(chunk: Chunk, found: Found, lane: int, tick: Tick) -> None:
    """Runs go to the GPU by trace, prompt and number of heads; what it refuses runs on the CPU."""
    from h2osim import cuda

    groups: dict[tuple[int, int, int, bool], list[tuple[int, int, Run]]] = {}
    refused: list[int] = []
    heads = {len(unit.heads) for unit in chunk.units}
    for unit in chunk.units:
        unit.trace.check_layer(unit.layer)
    for i, one in enumerate(chunk.configured):
        if any(cuda.refusal(one, h) for h in heads):
            refused.append(i)
            continue
        for u, unit in enumerate(chunk.units):
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
        there = Found.empty(rest.shape)
        _numba(rest, there, lane, lambda part: tick(part * share * len(refused)))
        found.recall[refused], found.held[refused] = there.recall, there.held


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
    """Two a GPU, so that one chunk is computed while the results of another are written."""
    from h2osim import cuda

    return 2 * len(cuda.devices())


#: Whose turn it is on a GPU.
_DEVICE_LOCKS: defaultdict[int, threading.Lock] = defaultdict(threading.Lock)


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


def compute(
    chunk: Chunk,
    engine: Engine,
    lane: int = 0,
    tick: Tick = lambda _: None,
    room: Found | None = None,
) -> Found:
    """Compute a chunk, into ``room`` where its results have a place already."""
    found = room or Found.empty(chunk.shape)
    engine.compute(chunk, found, lane, tick)
    return found
