"""The definition of a replay, in plain Python. Read this first; it is never optimised.

Every other engine is compared with this one: the same evictions and the same integers.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from h2osim.attention.fixed_point import UNIT
from h2osim.engines.request import Job, Outcome
from h2osim.policies.declaration import INF
from h2osim.policies.roles import Rule, arguments


def run(job: Job) -> Outcome:
    """Replay ``job.unit`` under ``job.configured`` at ``job.budget``."""
    policy, n, p = job.configured.policy, job.unit.n, job.prompt_len
    state = {field: [0.0] * n for field in policy.state}
    cache: list[int] = []  # positions, oldest first
    left: dict[int, int] = {}  # token -> the step after which it left the cache
    shown: deque[dict[int, float]] = deque(maxlen=job.configured.lag() + 1)
    head_scores = [[0.0] * n for _ in job.unit.heads]  # attention shown so far, head by head
    head_row: list[list[float]] = []
    kept, held = [], 0

    def call(rule: Rule, t: int, j: int | None = None, **more: Any) -> Any:
        known = {**job.scalars, "t": t, **more}
        if j is not None:
            known |= {"pos": j, "age": t - j}
            known |= {field: values[j] for field, values in state.items()}
            known |= {name: float(values[j]) for name, values in job.inputs.items()}
        return rule(*[known[name] for name in arguments(rule)])

    def remember(j: int, values: Any) -> None:
        values = values if isinstance(values, tuple) else (values,)
        for field, value in zip(state, values, strict=True):
            state[field][j] = value

    def worst_first(t: int) -> list[tuple[float, int]]:
        if policy.rank:
            return sorted((call(policy.rank, t, j), j) for j in cache)
        ranks = np.zeros(len(cache))
        arrays: dict[str, Any] = {**state, **job.inputs, "positions": cache, "ranks": ranks}
        arrays |= {"head_scores": head_scores, "head_row": head_row}
        assert policy.rank_cache
        call(policy.rank_cache, t, **arrays)
        return sorted(zip(ranks, cache, strict=True))

    for t in range(n):
        rows = [[int(x) for x in row] for row in job.unit.head_rows(t)]
        prompt = t < p

        # The new token enters; the row attends what is cached and visible, and what lingers.
        cache.append(t)
        if policy.init:
            remember(t, call(policy.init, t, t))
        seen = {j for j in cache if prompt or not policy.visible or call(policy.visible, t, j)}
        if policy.linger:
            seen |= {j for j in left if t - j <= call(policy.linger, t)}

        # Update: the state of each cached token, by what the policy is shown of the row.
        kind = "full" if prompt else job.configured.scores
        head_row = [observe(kind, row, cache, seen, n) for row in rows]
        shown.append({j: sum(row[j] for row in head_row) for j in cache})
        for j in cache:
            for scores, row in zip(head_scores, head_row, strict=True):
                scores[j] += row[j]
        if policy.update:
            for j in cache:
                a_old = shown[0].get(j, 0.0) if t >= job.configured.lag() > 0 else 0.0
                remember(j, call(policy.update, t, j, a=shown[-1][j], a_old=a_old))

        if policy.readmits:
            earlier = [j for _, j in worst_first(t) if j != t]
            seen = {t, *earlier[max(0, len(earlier) - job.budget) :]}
        if not prompt:
            kept.append(sum(row[j] for row in rows for j in seen))
            held = max(held, len(seen) - 1)

        # Evict the least ranks, the oldest first among equals; a prompt is kept whole to its end.
        if t < p - 1 or policy.readmits:
            continue
        keep = call(policy.keep, t, size=len(cache)) if policy.keep else job.budget
        if len(cache) > keep or policy.expires:
            order = [j for rank, j in worst_first(t) if not (policy.expires and rank == -INF)]
            staying = set(order[max(0, len(order) - keep) :])
            left |= {j: t for j in cache if j not in staying}
            cache = sorted(staying)

    evicted_at = np.full(n, n, np.int32)
    for j, t in left.items():
        evicted_at[j] = min(n, max(t, j + call(policy.linger, t))) if policy.linger else t
    return Outcome(np.array(kept, np.int64), evicted_at, held)


def observe(kind: str, row: list[int], cache: list[int], seen: set[int], n: int) -> list[float]:
    """What the policy is shown of each cached token in one head's row, 0 for what is not attended.

    ``full`` is the row as recorded. ``cached`` divides by the row's recall, with one rounding
    (the product of integers is exact), so that nothing changes where nothing is missing.
    """
    found = [0.0] * n
    whole, mass = sum(row), sum(row[j] for j in seen)
    for j in cache:
        if j in seen and kind == "full":
            found[j] = row[j] * UNIT
        elif j in seen and mass:
            found[j] = row[j] * whole / mass * UNIT
    return found
