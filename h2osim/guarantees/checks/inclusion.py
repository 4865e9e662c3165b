"""T7: smaller caches lie inside larger ones."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

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
