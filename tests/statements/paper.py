"""C1 and C2: the paper's algorithm to the letter (arXiv 2306.14048), and the trap."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from h2osim.guarantees.history import Rows, follow
from h2osim.guarantees.results import Result, Verdict, share
from h2osim.traces.generator import RandomSource
from h2osim.traces.generators import GENERATORS
from statements.simulating import simulate


def literal_freeze(rows: Rows, k: int, algorithm: int = 1) -> Result:
    """C1: Algorithm 1 of arXiv 2306.14048 to the letter keeps the first k tokens for ever.

    The score runs over the cached tokens only, so the new token's is 0. Algorithm 2, read with the
    indicator of the tokens outside the cache in both its lines, adds these scores up from the step
    at which the cache is full, and freezes too. The assumption is a positive score of every
    resident.
    """
    if algorithm not in (1, 2):
        raise ValueError(f"algorithm {algorithm}, expected 1 or 2")
    cache = list(range(min(k, rows.n)))
    score = dict.fromkeys(range(rows.n), Fraction(0))
    for t in range(k, rows.n):
        row = rows.head_rows(t).sum(axis=0).tolist()
        mass = sum(row[j] for j in cache)
        now = {j: Fraction(row[j], mass) if mass else Fraction(0) for j in cache}
        for j in cache:
            score[j] = now[j] + (score[j] if algorithm == 2 else 0)
        if min(score[j] for j in cache) == 0:
            return Result("C1", Verdict.FAILS, t, note="a resident's score is 0")
        least = min([*cache, t], key=lambda j: (score[j], j))
        cache = [j for j in (*cache, t) if j != least]
        if cache != list(range(k)):
            return Result("C1", Verdict.VIOLATED, t)
    return Result("C1", Verdict.HOLDS)


def trap_rows(n: int, d: Fraction = Fraction(1, 1000)) -> tuple[Rows, int]:
    """The matrix of C2, which the generator `trap` makes, exact: before it is rounded to float16.

    Returned as whole numbers with their common denominator; rounding to them undoes float64's.
    """
    unit = math.lcm(5, (d / 2).denominator)
    rows = GENERATORS["trap"].make(n, RandomSource(0, 0, 0), {"d": float(d)})
    return Rows.of(np.rint(rows(0, n) * unit).astype(np.int64)), unit


def trap(n: int, d: Fraction = Fraction(1, 1000)) -> Result:
    """C2: on the trap H2O with one slot keeps token 0, with the ratio of proof C2 at every step."""
    rows, unit = trap_rows(n, d)
    history = follow(rows, simulate(rows, 1))
    step = np.arange(n)
    value = np.array([Fraction(8, 5) + (int(i) - 1) * d / 2 if i else Fraction(1) for i in step])
    other = np.array([Fraction(2, 5) + (int(i) - 1) * (1 - d) if i else Fraction(0) for i in step])
    expected = value * unit, np.maximum(value, other) * unit
    same = all(
        Fraction(int(have)) == want
        for series, wanted in zip((history.value, history.opt), expected, strict=True)
        for have, want in zip(series, wanted, strict=True)
    )
    numbers = {"ratio": share(int(history.value[-1]), int(history.opt[-1]))}
    return Result("C2", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)
