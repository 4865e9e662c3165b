"""C4, T8 and M2: what no online policy can promise, and the random rank that does best."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from h2osim.guarantees.history import Rows
from h2osim.guarantees.results import CLOSE, Result, Verdict, share
from statements.optimum import assignment_value
from statements.simulating import stack_run

Policy = Callable[[Rows, int, int], NDArray[np.int64]]
"""policy(rows, k, prompt_len) -> evicted_at [n]; online: what it does at step t depends on rows up
to t only."""


def needle_unit(m: int) -> int:
    """1000 lcm(1 ... m), the mass of a row of `needle_rows`; fits 64 bits up to m = 30."""
    if not 1 <= m <= 30:
        raise ValueError(f"m = {m}, expected 1 to 30")
    return 1000 * math.lcm(*range(1, m + 1))


def needle_rows(m: int, needle: int, *, after: int = 1, eta: int = 0) -> Rows:
    """The instances of C4 (eta = 0) and T8 (eta > 0): m rows that favour nobody, then the needle.

    Row t < m spreads evenly; `after` further rows have eta on each of the tokens 0 ... m but the
    needle, and the rest on the needle. Whole numbers: a row sums to `needle_unit(m)`. The generator
    `needle` has each token of the prompt attend to itself instead, in 1s that float16 holds; the
    statements need rows that could be any model's, and T8 mass beside the needle.
    """
    unit = needle_unit(m)
    n = m + after
    matrix = np.zeros((n, n), dtype=np.int64)
    for t in range(m):
        matrix[t, : t + 1] = unit // (t + 1)
    matrix[m:, : m + 1] = eta
    matrix[m:, needle] = unit - m * eta
    return Rows.of(matrix)


def needle(policy: Policy, m: int, k: int) -> Result:
    """C4: over the m needles an online policy's recall averages at most k/m, and is 0 for one.

    Numbers: mean, limit = k/m, worst.
    """
    recalls = []
    for place in range(m):
        rows = needle_rows(m, place)
        gone = policy(rows, k, m)
        recalls.append(float(gone[place] >= m))
    mean = sum(recalls) / m
    numbers = {"mean": mean, "limit": k / m, "worst": min(recalls)}
    if m <= k:
        return Result("C4", Verdict.FAILS, None, numbers, "everything fits")
    fine = mean <= k / m + CLOSE and min(recalls) == 0
    return Result("C4", Verdict.HOLDS if fine else Verdict.VIOLATED, None, numbers)


def no_free_lunch(policy: Policy, m: int, k: int, eta: int = 1) -> Result:
    """T8: on positive rows the policy with k slots reaches, on average over the needles, at most

    (k/m + m eta) of a row, while one slot on the needle has at least 1 - m eta.

    Numbers: value (mean, in rows), limit, optimum (least over needles, one slot).
    """
    unit = needle_unit(m)
    values, optima = [], []
    for place in range(m):
        rows = needle_rows(m, place, eta=eta)
        gone = policy(rows, k, m)
        values.append(int(rows.head_rows(m).sum(axis=0)[gone >= m].sum()))
        optima.append(assignment_value(rows, 1, m))
    share = Fraction(eta, unit)
    limit = Fraction(k, m) + m * share
    mean = Fraction(sum(values), m * unit)
    numbers = {"value": float(mean), "limit": float(limit), "optimum": min(optima) / unit}
    if m <= k or share * m >= 1:
        return Result("T8", Verdict.FAILS, None, numbers, "everything fits, or eta is too large")
    fine = mean <= limit and Fraction(min(optima), unit) >= 1 - m * share
    return Result("T8", Verdict.HOLDS if fine else Verdict.VIOLATED, None, numbers)


def random_rank_value(rows: Rows, k: int, prompt_len: int = 1) -> Fraction:
    """Expected attended decode mass of the policy `random` (proof M2.1), in the rows' unit."""
    expected = Fraction(0)
    for t, heads in enumerate(rows.each()):
        if t >= prompt_len:
            row = heads.sum(axis=0).tolist()
            held = min(Fraction(1), Fraction(k, t))
            expected += row[t] + held * sum(row[:t])
    return expected


def random_rank(rows: Rows, k: int, prompt_len: int = 1, most: int = 5040) -> Result:
    """M2: over all orders of the ranks the value averages `random_rank_value`, and that is enough.

    Enough: at least k/(n-1) of the offline optimum of the same budget. All n! orders are tried, by
    the stack of T7 (at most `most`: n up to 7). Numbers: expected (over the optimum), limit =
    k/(n-1).
    """
    n, p = rows.n, prompt_len
    if math.factorial(n) > most:
        raise ValueError(f"{n} tokens have too many orders; at most {most} are tried")
    table = [heads.sum(axis=0) for heads in rows.each()]
    total = 0
    for order in itertools.permutations(range(n)):
        gone = stack_run(lambda t, order=order: order[: t + 1], n, p)[min(k, n)]  # type: ignore[misc]
        total += sum(int(table[t][gone[: t + 1] >= t].sum()) for t in range(p, n))
    expected = random_rank_value(rows, k, p)
    best = assignment_value(rows, k, p)
    numbers = {"expected": share(expected, best), "limit": k / (n - 1) if n > 1 else math.nan}
    if total != expected * math.factorial(n):
        return Result("M2", Verdict.VIOLATED, None, numbers, "another expectation")
    if not 1 <= k < n:
        return Result("M2", Verdict.FAILS, None, numbers, "everything fits, or nothing does")
    fine = (n - 1) * expected >= k * best
    return Result("M2", Verdict.HOLDS if fine else Verdict.VIOLATED, None, numbers)
