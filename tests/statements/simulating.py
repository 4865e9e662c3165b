"""Runs made straight from a matrix, without policies and engines.

The theorems are tested on decisions made by other code than the replay's.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.guarantees.history import Rows, Schedule


def simulate(
    rows: Rows, k: int, prompt_len: int = 1, *, scores: str = "full", recent: int = 0
) -> Schedule:
    """Accumulated attention, evict the least, the oldest of equals first: setting P of the proofs.

    scores: "full" (setting P) in integers, or "cached" (proof T3) in exact fractions, for small n.
    recent: the newest tokens that are protected (0 in setting P).
    """
    n, p = rows.n, prompt_len
    gone = np.full(n, n, dtype=np.int64)
    score: list[Any] = [0] * n
    cache: list[int] = []
    for t, heads in enumerate(rows.each()):
        cache.append(t)
        for row in heads.tolist():
            whole, mass = sum(row), sum(row[j] for j in cache)
            if scores == "full" or t < p or mass == whole:
                for j in cache:
                    score[j] += row[j]
            elif mass:
                for j in cache:
                    score[j] += Fraction(row[j] * whole, mass)
        while t >= p - 1 and len(cache) > k:
            candidates = [j for j in cache if j <= t - recent]
            if not candidates:
                raise ValueError(f"{recent} protected tokens leave none to evict at budget {k}")
            least = min(candidates, key=lambda j: (score[j], j))
            cache.remove(least)
            gone[least] = t
    return Schedule(gone, k, p)


def stack_run(
    ranks: Callable[[int], Sequence[Any]],
    n: int,
    prompt_len: int = 1,
    steps: Container[int] | None = None,
) -> NDArray[Any]:
    """One pass over one stack: evicted_at [n + 1, n] of every budget 0 ... n (proof T7).

    ranks(t): for every token 0 ... t its rank at step t, comparable and all different (use pairs
    with the token second); the least is evicted. steps: those at which anything is evicted (the set
    E of the proof), by default every step from the prompt's end on.
    """
    gone = np.full((n + 1, n), n, dtype=np.int64)
    stack: list[int] = []
    waiting = list(range(prompt_len - 1))
    for t in range(prompt_len - 1, n):
        waiting.append(t)
        if steps is not None and t not in steps:
            continue
        rank = ranks(t)
        for carried in waiting:
            token = carried
            gone[0, token] = t
            for depth, resident in enumerate(stack):
                if rank[resident] < rank[token]:
                    stack[depth], token = token, resident
                gone[depth + 1, token] = t  # budget depth + 1 drops what falls past its depth
            stack.append(token)
        waiting = []
    return gone
