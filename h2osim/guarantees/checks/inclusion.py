"""T7: smaller caches lie inside larger ones, and one stack holds them all."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from h2osim.guarantees.results import Result, Verdict


def inclusion(evicted_at: Mapping[int, ArrayLike], outside: str = "") -> Result:
    """T7: a smaller budget's cache lies in a larger one's at every step.

    That is: evicted_at of the smaller budget is nowhere above that of the larger. evicted_at:
    budget -> int [n]. step: the first at which the smaller cache holds a token that the larger one
    has dropped; numbers: that token, and the two budgets (smaller, larger). Nothing without a case.
    """
    budgets = sorted(evicted_at)
    found: tuple[int, int, int, int] | None = None
    for small, large in itertools.pairwise(budgets):
        low, high = np.asarray(evicted_at[small]), np.asarray(evicted_at[large])
        for token in np.flatnonzero(low > high).tolist():
            case = (int(high[token]), token, small, large)
            found = case if found is None else min(found, case)
    names = ("token", "smaller", "larger")
    numbers = {} if found is None else dict(zip(names, map(float, found[1:]), strict=True))
    step = None if found is None else found[0]
    if outside:
        return Result("T7", Verdict.FAILS, step, numbers, outside)
    if found is not None:
        return Result("T7", Verdict.VIOLATED, step, numbers)
    verdict = Verdict.HOLDS if len(budgets) > 1 else Verdict.VACUOUS
    return Result("T7", verdict, None, numbers)


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
