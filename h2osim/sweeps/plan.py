"""What a sweep is to do: configurations × units × budgets, cut into chunks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from h2osim.policies.declaration import Configured
from h2osim.replays.replaying import (
    Budgets,
    budget_list,
    budget_tokens,
    chosen_layers,
    decode_start,
    one_pass_pays,
)
from h2osim.support.errors import UserError
from h2osim.sweeps.compute import Chunk, Engine
from h2osim.sweeps.identity import identity
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

#: Seconds that one pass over a unit takes a core, for each entry of its square matrix, and what
#: starting a run takes: only to cut chunks of even size and to estimate what is left.
_PER_ENTRY, _PER_RUN = 3e-9, 3e-4
#: Bytes of results that a chunk may have.
_CHUNK_BYTES = 64 * 2**20
#: Bytes of working arrays that a run takes for each token.
_STATE_BYTES = 96


@dataclass(frozen=True, eq=False)
class Plan:
    """A whole sweep. Chunks are numbered row by row over (configurations, units).

    ``budgets`` is the label of each column: tokens, or, where traces of several lengths are asked
    for shares, the shares. ``tokens[trace]`` has each column in tokens of that trace, 0 where the
    trace is shorter. ``chunk`` is the shape of a chunk: configurations, units.
    """

    configured: tuple[Configured, ...]
    traces: tuple[Trace, ...]
    names: tuple[str, ...]
    share: str
    units: tuple[Unit, ...]
    owner: np.ndarray
    prompt_lens: tuple[int, ...]
    budgets: np.ndarray
    tokens: tuple[np.ndarray, ...]
    chunk: tuple[int, int]
    asked: Budgets

    @property
    def shape(self) -> tuple[int, int, int]:
        """Configurations, units, budgets."""
        return len(self.configured), len(self.units), len(self.budgets)

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
        owners = self.owner[u]
        return Chunk(
            self.configured[i],
            units,
            tuple(self.prompt_lens[o] for o in owners),
            tuple(self.tokens[o] for o in owners),
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
    def one_pass(self) -> np.ndarray:
        """Which runs give all their budgets at once: bool [configurations, units]."""
        return _one_pass(self.configured, self.units, self.owner, self.tokens)

    @cached_property
    def costs(self) -> np.ndarray:
        """float64 [chunks]: about how many seconds each takes one core."""
        each = _costs(self.one_pass, self.units, self.owner, self.tokens)
        return np.array([each[self.slices(i)].sum() for i in range(self.chunks)])

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Everything that the results depend on, as plain values."""
        layers = [self.layers(o) for o in range(len(self.traces))]
        return identity(
            self.configured, self.traces, self.names, layers, self.asked, self.prompt_lens,
            self.share,
        )  # fmt: skip

    def layers(self, trace: int) -> tuple[int, ...]:
        """The layers of a trace that are swept."""
        here = [u.layer for u, o in zip(self.units, self.owner, strict=True) if o == trace]
        return tuple(dict.fromkeys(here))


def make_plan(
    traces: Sequence[Trace],
    configured: Sequence[Configured],
    budgets: Budgets,
    *,
    prompt_len: int | Sequence[int] | None = None,
    share: str = "group",
    layers: Iterable[int] | Sequence[Sequence[int]] | None = None,
    engine: Engine,
    lanes: int = 1,
    chunk: tuple[int, int] | None = None,
) -> Plan:
    """Check a request and cut it into chunks.

    ``prompt_len`` and ``layers`` are one for all traces, or a sequence with one for each. ``chunk``
    is chosen so that a chunk takes the engine a few seconds and every lane (what works at the same
    time) gets several.
    """
    if not traces:
        raise UserError("no trace given; expected at least one")
    names = _names(traces)
    given = list(prompt_len) if isinstance(prompt_len, Sequence) else [prompt_len] * len(traces)
    starts = tuple(decode_start(t, p) for t, p in zip(traces, given, strict=True))
    asked: list[Any] = [None] if layers is None else list(layers)
    if layers is None or not asked or not isinstance(asked[0], Sequence):
        asked = [None if layers is None else asked] * len(traces)
    units: list[Unit] = []
    owner: list[int] = []
    for o, trace in enumerate(traces):
        chosen = chosen_layers(trace, asked[o])
        mine = [unit for unit in trace.units(share) if unit.layer in chosen]
        units += mine
        owner += [o] * len(mine)
    labels, tokens = _columns(budgets, traces)
    owners = np.array(owner)
    if chunk is None:
        runs = _one_pass(configured, units, owners, tokens)
        costs = _costs(runs, units, owners, tokens)
        # the largest working arrays of a configuration on a unit, all its budgets together
        states = max(
            n * (1 if runs[:, owners == o].all() else len(listed))
            for o, (listed, n) in enumerate(_lengths(units, owners, tokens))
        )
        chunk = _chunk_shape(costs, len(labels), states, engine, lanes)
    return Plan(
        tuple(configured), tuple(traces), names, share, tuple(units), owners, starts, labels,
        tokens, chunk, budgets,
    )  # fmt: skip


def _names(traces: Sequence[Trace]) -> tuple[str, ...]:
    """A label for each trace: its name, with a number where several have the same."""
    seen: dict[str, int] = {}
    names = []
    for trace in traces:
        seen[trace.name] = seen.get(trace.name, 0) + 1
        names.append(trace.name if seen[trace.name] == 1 else f"{trace.name}#{seen[trace.name]}")
    return tuple(names)


def _columns(
    budgets: Budgets, traces: Sequence[Trace]
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The label of each column, and each column in tokens of each trace (0: none)."""
    if isinstance(budgets, str):
        longest = max(len(budget_list(budgets, trace.n)) for trace in traces)
        every = np.arange(1, longest + 1)
        return every, tuple(np.where(every <= trace.n, every, 0) for trace in traces)
    lists = [budget_list(budgets, trace.n) for trace in traces]
    if all(tokens == lists[0] for tokens in lists):
        return np.array(lists[0]), tuple(np.array(lists[0]) for _ in traces)
    asked = np.atleast_1d(np.asarray(budgets, object)).tolist()
    labels = list(dict.fromkeys(float(budget) for budget in asked))
    if {type(b) for b in asked if b == 1} >= {int, float}:
        raise UserError("budgets 1 and 1.0: one token and all of a trace, ask for one of the two")
    whole = {float(b): b for b in asked}
    return np.array(labels), tuple(
        np.array([budget_tokens(whole[label], trace.n) for label in labels]) for trace in traces
    )


def _one_pass(
    configured: Sequence[Configured],
    units: Sequence[Unit],
    owner: np.ndarray,
    tokens: Sequence[np.ndarray],
) -> np.ndarray:
    """Whether all budgets of a run come from one pass (T7): bool [configurations, units]."""
    heads, which = np.unique([len(unit.heads) for unit in units], return_inverse=True)
    inclusive = np.array([[one.inclusive(int(h)) for h in heads] for one in configured])
    pays = [one_pass_pays(columns, n) for columns, n in _lengths(units, owner, tokens)]
    found: np.ndarray = inclusive[:, which] & np.array(pays)[owner]
    return found


def _lengths(
    units: Sequence[Unit], owner: np.ndarray, tokens: Sequence[np.ndarray]
) -> list[tuple[list[int], int]]:
    """The distinct budgets and the length of each trace."""
    n = {int(o): unit.n for o, unit in zip(owner, units, strict=True)}
    return [(np.unique(t[t > 0]).tolist(), n[o]) for o, t in enumerate(tokens)]


def _costs(
    one_pass: np.ndarray, units: Sequence[Unit], owner: np.ndarray, tokens: Sequence[np.ndarray]
) -> np.ndarray:
    """float64 [configurations, units]: about how many seconds each run takes one core."""
    found = np.empty(one_pass.shape)
    for o, (listed, n) in enumerate(_lengths(units, owner, tokens)):
        here = owner == o
        entry = n * n * _PER_ENTRY
        # As in `one_pass_pays`: what direct runs cost, in passes over all budgets.
        each = sum(0.12 + 2 * (k / n) * (1 - k / (2 * n)) for k in listed)
        direct = each * entry + len(listed) * _PER_RUN
        found[:, here] = np.where(one_pass[:, here], entry + _PER_RUN, direct)
    return found


def _chunk_shape(
    costs: np.ndarray, budgets: int, states: int, engine: Engine, lanes: int
) -> tuple[int, int]:
    """Configurations and units of a chunk: of the engine's size, several for every lane."""
    configurations, units = costs.shape
    target = min(engine.seconds, max(engine.least, float(costs.sum()) / (4 * lanes)))
    mean = float(costs.mean())
    most = max(1, min(int(target / mean), _CHUNK_BYTES // (8 * budgets)))
    # Configurations first: they share the reading of the unit's rows.
    fitting = int(min(engine.room / (_STATE_BYTES * states), engine.together))
    c = min(configurations, max(1, fitting), most)
    return c, max(1, min(units, most // c))


def trace_paths(traces: Sequence[Trace]) -> list[str]:
    """The absolute folder of each trace; UserError for one in memory."""
    for trace in traces:
        if trace.path is None:
            raise UserError(
                f"trace {trace.name}: it lives in memory; save it, workers open traces by path"
            )
    return [os.path.abspath(str(trace.path)) for trace in traces]
