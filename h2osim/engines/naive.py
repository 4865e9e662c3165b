"""The definition of a replay, in plain Python. Read this first; it is never optimised.

Every other engine is compared with this one: the same evictions and the same integers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from h2osim.attention.fixed_point import UNIT
from h2osim.engines.batch import batch_ranks
from h2osim.engines.errors import NEEDS_RESIDUAL, NEEDS_VALUES, RESIDUAL, head_values
from h2osim.engines.request import Job
from h2osim.engines.results import Errors, Outcome
from h2osim.policies.declaration import INF, Configured
from h2osim.policies.refusing import found_nan, found_zero
from h2osim.policies.roles import MEAN, NOW, ROLES, ask
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit


def run(job: Job, tick: Callable[[], None] = lambda: None, errors: Collection[str] = ()) -> Outcome:
    """Replay ``job.unit`` under ``job.configured`` at ``job.budget``; ``tick`` follows each row.

    ``errors``: variables of :mod:`h2osim.engines.errors` that are wanted too.
    """
    replay = NaiveStepper(job.configured, job.scalars, job.inputs)
    values, kv = np.zeros((1, job.unit.n, 0)), np.zeros(len(job.unit.heads), np.int64)
    if NEEDS_VALUES.intersection(errors):
        values, kv = head_values(job.unit)
    behind = NEEDS_RESIDUAL.intersection(errors)
    steps, residuals = [], []
    for t in range(job.unit.n):
        rows = [[int(x) for x in row] for row in job.unit.head_rows(t)]
        try:
            replay.step(rows)
        except ZeroDivisionError:
            raise UserError(found_zero(job.configured.policy, t)) from None
        if errors and t >= job.prompt_len:
            found = [(row, values[g]) for row, g in zip(rows, kv, strict=True)]
            steps.append([lost(row, replay.seen, v) for row, v in found])
            if behind:
                residuals.append(residual_error(job.unit, t, found, replay.seen))
        tick()
    evicted_at = np.full(job.unit.n, job.unit.n, np.int32)
    for j, t in replay.last_attended().items():
        evicted_at[j] = min(job.unit.n, t)
    kept = np.array(replay.kept, np.int64)
    measured = errors_of(steps, set(errors) - behind)
    if behind:
        each = np.array(residuals)
        mean = each.mean() if len(each) else np.array(np.nan)
        measured = Errors({**measured.of, RESIDUAL[0]: mean}, {**measured.steps, RESIDUAL[0]: each})
    return Outcome(kept, evicted_at, replay.held, measured)


class NaiveStepper:
    """One unit's cache under one policy, fed a row at a time.

    ``scalars`` are what rules may name in every step (parameters, k, p, heads), ``inputs`` the
    policy's numbers per token. ``cache`` are the positions cached, oldest first; ``left[j]`` the
    step after which token j left it; ``seen`` what the last step attended; ``kept`` the mass
    attended in each decode step; ``held`` the most keys that a decode step attended besides its
    own.
    """

    def __init__(
        self,
        configured: Configured,
        scalars: Mapping[str, int | float],
        inputs: Mapping[str, Sequence[float] | np.ndarray],
    ):
        self.configured, self.scalars, self.inputs = configured, scalars, inputs
        self.rules = configured.policy.rules()
        self.t = 0
        self.cache: list[int] = []
        self.left: dict[int, int] = {}
        self.seen: set[int] = set()
        self.kept: list[int] = []
        self.held = 0
        self.state: dict[str, dict[int, Any]] = {f: {} for f in configured.policy.fields}
        self.widths = {  # of the vectors among them
            name: int(scalars["heads"]) if of == "heads" else np.shape(inputs[of])[1]
            for name, of in configured.policy.vector_state.items()
        }
        self.memory: dict[str, Any] = {}  # what a batched rule keeps for itself
        self.averaging = configured.policy.means  # the roles that ask for means over the cache
        self.means: dict[str, Any] = {}  # those of this step
        self.shown: deque[dict[int, float]] = deque(maxlen=configured.lag() + 1)
        # attention shown head by head, so far and in this step, for rules that rank the whole cache
        heads = range(int(scalars["heads"]))
        self.head_scores: list[list[float]] = [[] for _ in heads]
        self.head_row: list[list[float]] = [[] for _ in heads]

    def ask(self, role: str, j: int | None = None, **more: Any) -> Any:
        """What the policy's rule in this role says, of token j or of the step."""
        if role not in self.rules and role != "keep":
            return ask({}, role, self.scalars)
        known: dict[str, Any] = {**self.scalars, "t": self.t}
        if j is not None:
            known |= {"pos": j, "age": self.t - j}
            known |= {field: values[j] for field, values in self.state.items()}
            known |= {name: self.given(name, j) for name in self.inputs}
        for name in self.inputs if "inputs" in ROLES[role].reads else ():
            known[name + NOW] = self.given(name, self.t)
            if role in self.averaging:
                known[name + MEAN] = self.mean(name)
        return ask(self.rules, role, known | more)

    def given(self, name: str, j: int) -> Any:
        """An input of token j: a number, or a vector."""
        x = self.inputs[name][j]
        return x if name in self.configured.policy.vectors else float(x)

    def mean(self, name: str) -> Any:
        """The mean of an input over the cached tokens, summed oldest first."""
        if name not in self.means:
            total = 0.0
            for j in self.cache:
                total = total + self.given(name, j)
            self.means[name] = total / len(self.cache)
        return self.means[name]

    def remember(self, j: int, answer: Any) -> None:
        """Give token j its new state, which init and update answer."""
        values = answer if isinstance(answer, tuple) else (answer,)
        for field, value in zip(self.state, values, strict=True):
            if field in self.widths:
                self.state[field][j] = np.zeros(self.widths[field])
                self.state[field][j][:] = value
            else:
                self.state[field][j] = value

    def step(self, rows: Sequence[Sequence[int]]) -> set[int]:
        """Attend one row a head, in fixed point, and evict; gives the tokens that left the cache.

        Row t has t + 1 entries; those of tokens that are not attended count only as lost mass.
        """
        t, policy, k = self.t, self.configured.policy, int(self.scalars["k"])
        prompt = t < self.scalars["p"]

        # The new token enters; the row attends what is cached and visible, and what lingers.
        self.cache.append(t)
        self.means.clear()
        self.remember(t, (0.0,) * len(self.state))
        if policy.init:
            self.remember(t, self.ask("init", t))
        seen = {j for j in self.cache if prompt or self.ask("visible", j)}
        linger = self.ask("linger")
        seen |= {j for j in self.left if t - j <= linger}

        # Update: the state of each cached token, by what the policy is shown of the row.
        kind = "full" if prompt else self.configured.scores
        self.head_row = [observe(kind, row, self.cache, seen) for row in rows]
        heads = len(rows) if self.configured.largest_head else 0
        self.shown.append({j: over([row[j] for row in self.head_row], heads) for j in self.cache})
        for scores, shown in zip(self.head_scores, self.head_row, strict=True):
            scores.append(0.0)
            for j in self.cache:
                scores[j] += shown[j]
        lag = self.configured.lag()
        if policy.update:
            for j in self.cache:
                a_old = self.shown[0].get(j, 0.0) if t >= lag > 0 else 0.0
                self.remember(j, self.ask("update", j, a=self.shown[-1][j], a_old=a_old))

        if policy.update_cache:
            self.ask_cache("update_cache")

        if policy.readmits:
            earlier = [j for _, j in self.worst_first() if j != t]
            seen = {t, *earlier[max(0, len(earlier) - k) :]}
        self.seen = seen
        if not prompt:
            self.kept.append(sum(row[j] for row in rows for j in seen))
            self.held = max(self.held, len(seen) - 1)

        # Evict the least ranks, the oldest first among equals; a prompt is kept whole to its end.
        gone: set[int] = set()
        if t >= self.scalars["p"] - 1 and not policy.readmits:
            keep = self.ask("keep", size=len(self.cache))
            if len(self.cache) > keep or policy.expires:
                order = [j for r, j in self.worst_first() if not (policy.expires and r == -INF)]
                staying = set(order[max(0, len(order) - keep) :])
                gone = set(self.cache) - staying
                self.left |= {j: t for j in gone}
                self.cache = sorted(staying)
        self.t += 1
        return gone

    def worst_first(self) -> list[tuple[float, int]]:
        """Rank and position of the cached tokens, in the order in which they would be evicted."""
        if self.configured.policy.rank:
            return self.in_order((self.ask("rank", j) for j in self.cache), "rank")
        if self.configured.policy.rank_batch:
            return self.in_order(batch_ranks(self), "rank_batch")
        ranks = np.zeros(len(self.cache))
        self.ask_cache("rank_cache", ranks=ranks)
        return self.in_order(ranks, "rank_cache")

    def ask_cache(self, role: str, **more: Any) -> None:
        """Have a rule look at the whole cache; it may change the cached tokens' state."""
        arrays = {
            field: np.array([values[j] for j in range(self.t + 1)])
            for field, values in self.state.items()
        }
        more |= {"head_scores": self.head_scores, "head_row": self.head_row}
        self.ask(role, **{**self.inputs, **arrays, "positions": self.cache, **more})
        for field, values in arrays.items():
            for j in self.cache:
                self.state[field][j] = values[j] if field in self.widths else float(values[j])

    def in_order(self, ranks: Iterable[float], role: str) -> list[tuple[float, int]]:
        """The cached tokens by rank; UserError for NaN, which has no place in an order."""
        found = list(zip(ranks, self.cache, strict=True))
        if any(rank != rank for rank, _ in found):
            raise UserError(found_nan(self.configured.policy.name, role, self.t))
        return sorted(found)

    def last_attended(self) -> dict[int, int]:
        """For each token that left the cache the step after which it is never attended again."""
        return {j: max(t, j + self.ask("linger")) for j, t in self.left.items()}


def over(parts: list[float], largest: int) -> float:
    """What the policy is shown of a token's heads: their sum, or the largest so many times."""
    return largest * max(parts) if largest else sum(parts)


def observe(kind: str, row: Sequence[int], cache: list[int], seen: set[int]) -> list[float]:
    """What the policy is shown of each cached token in one head's row, 0 for what is not attended.

    ``full`` is the row as recorded. ``cached`` divides by the row's recall, with one rounding
    (the product of integers is exact), so that nothing changes where nothing is missing.
    """
    found = [0.0] * len(row)
    whole, mass = sum(row), sum(row[j] for j in seen)
    for j in cache:
        if j in seen and kind == "full":
            found[j] = row[j] * UNIT
        elif j in seen and mass:
            found[j] = row[j] * whole / mass * UNIT
    return found


def residual_error(
    unit: Unit, t: int, heads: Sequence[tuple[Sequence[int], np.ndarray]], seen: set[int]
) -> float:
    """|sum_h W_h (o - o_S)|^2 / |x|^2 of step t; of each head its row and its values."""
    moved = sum(
        (outputs(row, values) - outputs(row, values, seen)) @ w.astype(np.float64)
        for (row, values), w in zip(heads, unit.projections(), strict=True)
    )
    squared, stream = float((moved**2).sum()), float(unit.residual_norms()[t]) ** 2
    return squared / stream if stream and squared else math.nan if squared else 0.0


def outputs(row: Sequence[int], values: np.ndarray, seen: set[int] | None = None) -> np.ndarray:
    """One head's output, over all of the row or over what is attended."""
    weights = softmax(row, set(range(len(row))) if seen is None else seen)
    return (weights[:, None] * values[: len(row)]).sum(axis=0)


def lost(row: Sequence[int], seen: set[int], values: np.ndarray) -> tuple[float, float, float]:
    """|o|^2, |o - o_S|^2 and sum (a - â)^2 of one head's row of which ``seen`` is attended."""
    full, part = softmax(row, set(range(len(row)))), softmax(row, seen)
    o, o_s = outputs(row, values), outputs(row, values, seen)
    return (
        float((o**2).sum()), float(((o - o_s) ** 2).sum()), float(((full - part) ** 2).sum())
    )  # fmt: skip


def softmax(row: Sequence[int], seen: set[int]) -> np.ndarray:
    """The row over what is attended alone, renormalised; 0 where that has no mass."""
    mass = sum(row[j] for j in seen)
    return np.array([x / mass if j in seen and mass else 0.0 for j, x in enumerate(row)])


def errors_of(
    steps: Sequence[Sequence[tuple[float, float, float]]], names: Collection[str]
) -> Errors:
    """The variables wanted, of a run and of each step, from |o|^2, |o - o_S|^2 and sum (a - â)^2.

    A step's relative error is divided by the mean of |o|^2, so that its mean over steps is the
    run's. A head whose output is 0 throughout has an error of 0 if nothing is lost, else NaN.
    """
    if not steps:
        return Errors({name: np.array(np.nan) for name in names})
    power, squared, attention = np.moveaxis(np.array(steps), 2, 0)  # [steps, heads] each
    with np.errstate(invalid="ignore", divide="ignore"):
        relative = squared / power.mean(axis=0)
    relative[squared == 0] = 0.0
    relative[np.isinf(relative)] = np.nan
    found = {
        "output_error": relative, "output_error_abs": np.sqrt(squared),
        "attention_error": attention,
    }  # fmt: skip
    return Errors(
        {name: found[name].mean() for name in names},
        {name: found[name].mean(axis=1) for name in names},
    )
