"""Rules in NumPy or PyTorch that rank all cached tokens at once, and the loop that runs them.

They may do anything, so nothing is promised of their last bits: they run in Python in every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from h2osim.engines.arrays import Cache, Room, Rules
from h2osim.policies.declaration import Configured
from h2osim.policies.roles import MEAN, NOW, arguments, ask
from h2osim.support.errors import UserError
from h2osim.traces.arrays import real
from h2osim.traces.unit import Block


class Replayed(Protocol):
    """What a batched rule is shown of :class:`~h2osim.engines.naive.NaiveStepper`."""

    configured: Configured
    scalars: Mapping[str, int | float]
    inputs: Mapping[str, Any]
    t: int
    cache: list[int]
    seen: set[int]
    held: int
    state: dict[str, dict[int, Any]]
    head_row: list[list[float]]
    head_scores: list[list[float]]
    memory: dict[str, Any]

    def given(self, name: str, j: int) -> Any:
        """An input of token j."""

    def mean(self, name: str) -> Any:
        """The mean of an input over the cached tokens."""

    def step(self, rows: Sequence[Sequence[int]]) -> set[int]:
        """Attend a row a head, and evict."""


def batch_ranks(at: Replayed) -> NDArray[np.float64]:
    """The ranks [m] that a policy's rule gives the cached tokens; UserError naming rule and step
    where it fails, or gives anything else.
    """
    policy, cached = at.configured.policy, np.array(at.cache)
    rule = policy.rules()["rank_batch"]
    asked = arguments(rule)
    known: dict[str, Any] = {**at.scalars, **at.configured.arrays, "t": at.t, "memory": at.memory}
    known["positions"] = cached
    for name in {"head_row", "head_scores"} & set(asked):
        known[name] = np.array([[row[j] for j in at.cache] for row in getattr(at, name)])
    known |= {name: np.array([one[j] for j in at.cache]) for name, one in at.state.items()}
    for name, values in at.inputs.items():
        known[name] = np.asarray(values)[cached]
        known[name + NOW] = at.given(name, at.t)
        if name + MEAN in asked:
            known[name + MEAN] = at.mean(name)
    where = f"policy {policy.name}: rank_batch in step {at.t}"
    try:
        answer = ask({"rank_batch": rule}, "rank_batch", known)
    except Exception as error:  # whatever the user's rule raises, it is one line to the user
        said = (str(error).splitlines() or [""])[0]
        raise UserError(f"{where}: {type(error).__name__}: {said}") from error
    ranks = real(answer, where, whole=True)
    if ranks.shape != cached.shape:
        raise UserError(f"{where}: found shape {list(ranks.shape)}, expected [{len(cached)}]")
    return ranks.astype(np.float64)


class BatchLoop:
    """The stepper's loop for such rules: what the compiled one does, in Python.

    start: begins a unit, given what rules may name in every step, and its inputs.
    """

    def __init__(
        self,
        configured: Configured,
        scalars: Sequence[Mapping[str, int | float]],
        start: Callable[..., Replayed],
    ):
        self._configured, self._scalars, self._start = configured, scalars, start
        self._units: list[Replayed] = []

    def __call__(
        self, bits: NDArray[np.uint16], first: int, start: int, stop: int, p: int, n: int,
        kind: int, largest: bool, lag: int, rules: Rules, cache: Cache, room: Room,
        kept: NDArray[np.int64], masses: NDArray[np.int64], missing: NDArray[np.uint32],
        counts: NDArray[np.int64],
    ) -> int:  # fmt: skip
        """Feed rows start … stop - 1; as `direct_loop.advance`."""
        for u in range(len(bits)):
            inputs = self._inputs(rules, u)
            if len(self._units) == u:
                self._units.append(self._start(self._configured, self._scalars[u], inputs))
            unit, block = self._units[u], Block(start, stop, first, bits[u])
            unit.inputs = inputs
            for t in range(start, stop):
                rows, row = block.head_rows(t).tolist(), t - start
                cache.left[u, list(unit.step(rows))] = t
                masses[u, row] = sum(map(sum, rows))
                kept[u, row] = sum(one[j] for one in rows for j in unit.seen)
                if len(counts) and t >= p:
                    absent = [j for j in range(t) if j not in unit.seen]
                    missing[row, : len(absent)], counts[row] = absent, len(absent)
            cache.tokens[u, : len(unit.cache)] = unit.cache
            cache.sizes[u] = len(unit.cache), unit.held
        return -1

    def _inputs(self, rules: Rules, u: int) -> dict[str, NDArray[np.float64]]:
        policy, spans = self._configured.policy, rules.spans
        found = {name: rules.inputs[u, i] for i, name in enumerate(policy.inputs)}
        for i, name in enumerate(policy.vectors):
            found[name] = rules.vectors[u, :, spans[i] : spans[i + 1]]
        return found
