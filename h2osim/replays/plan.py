"""What is to be replayed: configurations × units × budgets, cut into chunks, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np

from h2osim.engines.request import Job
from h2osim.policies.declaration import Configured
from h2osim.replays.budgets import chosen_layers, decode_start
from h2osim.replays.measures import MEASURES, PASSES, variables_of
from h2osim.replays.unit_budgets import Budgets, Columns, columns_of
from h2osim.support.errors import UserError
from h2osim.traces.recorded import check_recorded
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

#: Seconds that one pass over a unit takes a core, for each entry of its square matrix, and what
#: starting a run takes.
_PER_ENTRY, _PER_RUN = 3e-9, 3e-4
#: Bytes of results that a chunk may have.
_CHUNK_BYTES = 64 * 2**20
#: Bytes of working arrays that a run takes for each token.
_STATE_BYTES = 96

#: What NumPy takes some entries of an axis by.
Index: TypeAlias = np.ndarray | slice


@dataclass(frozen=True)
class PlannedRun:
    """A configuration on a unit, at one budget or (``one_pass``) at all that are asked for.

    ``at`` is the place of the configuration and the unit in their chunk. ``places`` are the columns
    that the run gives; of the curve of one pass, ``entries`` go there.
    """

    job: Job
    one_pass: bool
    at: tuple[int, int]
    places: Index
    entries: Index

    @property
    def seconds(self) -> float:
        """About how long it takes a core."""
        n = self.job.unit.n
        return run_seconds(n, None if self.one_pass else self.job.budget)


def run_seconds(n: int, budget: int | None) -> float:
    """About how long a run takes a core: at one budget, or (None) one pass over all of them."""
    passes = 1.0 if budget is None else _passes(n, budget)
    return passes * n * n * _PER_ENTRY + _PER_RUN


def one_pass_pays(tokens: Sequence[int], n: int) -> bool:
    """Whether one pass over all budgets costs less than a run for each of these."""
    return sum(_passes(n, k) for k in tokens) > 1


def _passes(n: int, budget: int) -> float:
    """What a run at one budget costs, in passes over all of them.

    Measured at 0.12 for reading the rows and 2 for every row that it holds in full (its cache fills
    up to k first, hence the second term).
    """
    return 0.12 + 2 * (budget / n) * (1 - budget / (2 * n))


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

    def runs(self, i: int, u: int) -> list[PlannedRun]:
        """The runs of a configuration on a unit."""
        unit, one = self.units[u], self.configured[i]
        tokens, p = self.tokens[u], self.prompt_lens[u]
        there = self._columns[u]
        if there is None:
            return []
        if self.one_pass[i, u]:
            return [PlannedRun(Job(unit, one, unit.n, p), True, (i, u), *there)]
        return [
            PlannedRun(
                Job(unit, one, int(k), p), False, (i, u), np.flatnonzero(tokens == k), slice(None)
            )
            for k in np.unique(tokens[tokens > 0])
        ]

    @cached_property
    def _columns(self) -> list[tuple[Index, Index] | None]:
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


@dataclass(frozen=True, eq=False)
class WorkPlan:
    """All the work of a replay or a sweep. Chunks are numbered row by row over (configurations,
    units).

    ``columns`` are what the budgets asked for come to. ``one_pass`` says which runs give all their
    budgets at once (T7), bool [configurations, units]. ``chunk`` is the shape of a chunk:
    configurations, units.
    ``measure`` is one of :data:`~h2osim.replays.measures.MEASURES`.
    """

    configured: tuple[Configured, ...]
    traces: tuple[Trace, ...]
    names: tuple[str, ...]
    share: str
    units: tuple[Unit, ...]
    owner: np.ndarray
    prompt_lens: tuple[int, ...]
    columns: Columns
    one_pass: np.ndarray
    chunk: tuple[int, int]
    asked: Budgets
    measure: str = "recall"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Configurations, units, budgets."""
        return len(self.configured), len(self.units), len(self.columns.labels)

    @cached_property
    def tokens(self) -> list[np.ndarray]:
        """The budgets of each unit in tokens, 0 where its trace is shorter."""
        return [one for some in self.columns.tokens for one in some]

    @property
    def errors(self) -> tuple[str, ...]:
        """The variables that are measured beside recall."""
        return MEASURES[self.measure]

    @property
    def grid(self) -> tuple[int, int]:
        """How many chunks there are along configurations and along units."""
        return -(-self.shape[0] // self.chunk[0]), -(-self.shape[1] // self.chunk[1])

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return self.grid[0] * self.grid[1]

    def part(self, index: int) -> Chunk:
        """The work of a chunk."""
        i, u = self.slices(index)
        units = self.units[u]
        return Chunk(
            self.configured[i],
            units,
            tuple(self.prompt_lens[o] for o in self.owner[u]),
            self.tokens[u],
            self.one_pass[i, u],
        )

    def slices(self, index: int) -> tuple[slice, slice]:
        """The configurations and the units of a chunk."""
        row, column = divmod(index, self.grid[1])
        (c, u), (configurations, units, _) = self.chunk, self.shape
        return (
            slice(row * c, min((row + 1) * c, configurations)),
            slice(column * u, min((column + 1) * u, units)),
        )

    @cached_property
    def seconds(self) -> np.ndarray:
        """float64 [configurations, units]: about how long each takes one core, with the measure."""
        found = np.empty(self.shape[:2])
        for here, (listed, n) in self.alike:
            direct = sum(run_seconds(n, k) for k in listed)
            found[:, here] = np.where(self.one_pass[:, here], run_seconds(n, None), direct)
        return found * PASSES[self.measure]

    def chunk_seconds(self, index: int) -> float:
        """About how long a chunk takes one core."""
        return float(self.seconds[self.slices(index)].sum())

    def layers(self, trace: int) -> tuple[int, ...]:
        """The layers of a trace that are replayed."""
        here = [u.layer for u, o in zip(self.units, self.owner, strict=True) if o == trace]
        return tuple(dict.fromkeys(here))

    def budget_by_budget(self) -> WorkPlan:
        """The same without passes over all budgets."""
        return replace(self, one_pass=np.zeros_like(self.one_pass))

    def cut(self, target: float, least: float, lanes: int, together: int, room: float) -> WorkPlan:
        """The same in chunks of about ``target`` seconds of a core.

        Chunks are smaller where every lane (what works at the same time) would not get several,
        but take no less than ``least`` seconds. They have at most ``together`` configurations,
        whose working arrays on one unit take up to ``room`` bytes.
        """
        configurations, units, budgets = self.shape
        target = min(target, max(least, float(self.seconds.sum()) / (4 * lanes)))
        most = max(1, int(target / self.seconds.mean()))
        most = max(1, min(most, _CHUNK_BYTES // (8 * budgets)))
        # the largest working arrays of a configuration on a unit, all its budgets together
        lag = max(one.lag() for one in self.configured)
        states = max(
            n
            * (_STATE_BYTES + 8 * min(lag, n))
            * (1 if self.one_pass[:, here].all() else len(listed))
            for here, (listed, n) in self.alike
        )
        # Configurations first: they share the reading of the unit's rows.
        fitting = max(1, int(min(room / states, together)))
        c = min(configurations, fitting, most)
        return replace(self, chunk=(c, max(1, min(units, most // c))))

    @cached_property
    def alike(self) -> list[tuple[list[int], tuple[list[int], int]]]:
        """Units that share their budgets: the distinct ones of these, and the trace's length."""
        groups: dict[int, list[int]] = {}
        for u, tokens in enumerate(self.tokens):
            groups.setdefault(id(tokens), []).append(u)
        return [
            (here, (np.unique(some[some > 0]).tolist(), self.units[here[0]].n))
            for here in groups.values()
            for some in [self.tokens[here[0]]]
        ]


def plan_work(
    traces: Sequence[Trace],
    configured: Sequence[Configured],
    budgets: Budgets,
    *,
    prompt_len: int | Sequence[int] | None = None,
    share: str = "group",
    layers: Iterable[int] | Sequence[Sequence[int]] | None = None,
    measure: str = "recall",
) -> WorkPlan:
    """Check a request and lay out its work, as one chunk.

    ``prompt_len`` and ``layers`` are one for all traces, or a sequence with one for each.
    """
    if not traces:
        raise UserError("no trace given; expected at least one")
    variables_of(measure, traces)
    for one in configured:
        for trace in traces:
            for layer in trace.layers if one.needs else ():
                check_recorded(trace, layer, one.needs, f"policy {one.text}")
    given = list(prompt_len) if isinstance(prompt_len, Sequence) else [prompt_len] * len(traces)
    starts = tuple(decode_start(t, p) for t, p in zip(traces, given, strict=True))
    asked: list[Any] = [None] if layers is None else list(layers)
    if layers is None or not asked or not isinstance(asked[0], Sequence):
        asked = [None if layers is None else asked] * len(traces)
    each = [
        [unit for unit in trace.units(share) if unit.layer in chosen]
        for trace, chosen in zip(traces, map(chosen_layers, traces, asked), strict=True)
    ]
    units = tuple(unit for some in each for unit in some)
    columns = columns_of(budgets, traces, starts, each, share)
    heads, which = np.unique([len(unit.heads) for unit in units], return_inverse=True)
    inclusive = np.array([[one.inclusive(int(h)) for h in heads] for one in configured])
    plan = WorkPlan(
        tuple(configured), tuple(traces), names_of(traces), share, units,
        np.repeat(np.arange(len(traces)), [len(some) for some in each]), starts, columns,
        inclusive[:, which], (len(configured), len(units)), budgets, measure,
    )  # fmt: skip
    for here, (listed, n) in plan.alike:
        plan.one_pass[:, here] &= one_pass_pays(listed, n)
    return plan


def names_of(traces: Sequence[Trace]) -> tuple[str, ...]:
    """A label for each trace: its name, with a number where several have the same."""
    seen: dict[str, int] = {}
    names = []
    for trace in traces:
        seen[trace.name] = seen.get(trace.name, 0) + 1
        names.append(trace.name if seen[trace.name] == 1 else f"{trace.name}#{seen[trace.name]}")
    return tuple(names)
