"""One check a statement: does it hold on this run, matrix or function, and with what numbers?

Every check returns a `Result`. Checks of T1-T4 and of the paper's theorem read a `History` of any
run; `outside` says in words why the run is not in the setting of the statement (a protected recent
window, cached scores, ...). The verdict is then "assumption fails", with the numbers all the same.
A verdict "violated" means a wrong theorem or a wrong program: nothing else can cause it.

Comparisons of sums are exact integers. Products of ratios are taken in float64, up to `CLOSE`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from h2osim.attention.fixed_point import ONE
from h2osim.guarantees.greedy import best_set, one_swap, static_greedy
from h2osim.guarantees.history import History, Rows, Run, follow, simulate
from h2osim.guarantees.setfunctions import (
    Coverage,
    Number,
    SetFunction,
    at_least,
    check_monotone,
    check_submodular,
)

CLOSE = 1e-9
"""Slack of float comparisons: relative for ratios, relative to the largest norm in T5."""


class Verdict(StrEnum):
    """What a check found."""

    HOLDS = "holds"
    VACUOUS = "holds vacuously"
    FAILS = "assumption fails"
    VIOLATED = "violated"


@dataclass(frozen=True)
class Result:
    """A check's finding.

    guarantee: its name in the registry. step: the first step where the assumption fails or the
    statement is violated, None otherwise. numbers: by name, at the last step unless they say
    otherwise; shares are of the optimum. note: one line in words.
    """

    guarantee: str
    verdict: Verdict
    step: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def _first(history: History, broken: NDArray[np.bool_]) -> int | None:
    where = np.flatnonzero(broken)
    return history.first + int(where[0]) if len(where) else None


def _share(part: Number, whole: Number) -> float:
    return float(Fraction(part) / Fraction(whole)) if whole else math.nan


def _bounded(
    name: str,
    history: History,
    bound: NDArray[Any],
    outside: str,
    numbers: dict[str, float],
    note: str = "",
) -> Result:
    """The verdict on value >= bound at every step."""
    if not history.steps:
        return Result(name, Verdict.VACUOUS, note="the budget is never reached")
    step = _first(history, history.value < bound)
    last = int(history.opt[-1])
    numbers = {
        "ratio": _share(int(history.value[-1]), last),
        "bound": _share(bound[-1].item(), last),
        **numbers,
    }
    if outside:
        return Result(name, Verdict.FAILS, history.first, numbers, outside)
    if step is not None:
        return Result(name, Verdict.VIOLATED, step, numbers, note)
    verdict = Verdict.VACUOUS if bound[-1] <= 0 else Verdict.HOLDS
    return Result(name, verdict, None, numbers, note)


# --- the paper's theorem -------------------------------------------------------------------------


def paper_theorem(history: History, n: int) -> Result:
    """Theorem 4.4 / D.32 of arXiv 2306.14048 with UDC2 in the direction its induction needs.

    Least constants of the run: theta_i = 1 - f_i(S_{i-1}) / f_{i-1}(S_{i-1}) and gamma_i = 1 -
    opt_{i-1} / opt_i, both clipped at 0, alpha = 10 n max(theta_i, gamma_i); a step that loses
    f_i(S_{i-1}) - f_i(S_i) > 0 enters beta. alpha >= 1 leaves the theorem empty: "assumption
    fails", at the first step that needs it; so does a start below 1 - 1/e (possible only outside
    setting P). Otherwise (1 - 1/e)(1 - alpha) opt_i - beta is the bound. The product form of the
    induction is checked either way (numbers: induction).

    Numbers: ratio; alpha, theta, gamma (largest); beta as a share of opt; bound (what the formula
    gives, negative for alpha > 1; nan after too low a start); induction: the product bound with
    the true start in place of 1 - 1/e.
    """
    name = "paper-theorem"
    if not history.steps:
        return Result(name, Verdict.VACUOUS, note="the budget is never reached")
    value, opt = history.value.astype(float), history.opt.astype(float)
    before = history.before.astype(float)
    theta, gamma = np.zeros(history.steps), np.zeros(history.steps)
    with np.errstate(divide="ignore", invalid="ignore"):
        theta[1:] = np.maximum(0.0, 1.0 - np.where(value[:-1] > 0, before[1:] / value[:-1], 1.0))
        gamma[1:] = np.maximum(0.0, 1.0 - np.where(opt[1:] > 0, opt[:-1] / opt[1:], 1.0))
    lost = np.maximum(0, history.before - history.value).astype(float)
    start = value[0] / opt[0] if opt[0] else 1.0
    product = start * np.multiply.accumulate((1.0 - theta) * (1.0 - gamma))
    induction = product * opt - np.add.accumulate(lost)
    alpha = 10.0 * n * np.maximum(theta, gamma)
    beta = 10.0 * n * lost.max()
    worst = float(alpha.max())
    bound = np.full_like(opt, np.nan)
    if start >= 1 - 1 / math.e:
        bound = (1 - 1 / math.e) * (1 - worst) * opt - beta
    best = float(opt[-1]) or math.nan
    numbers = {
        "ratio": float(value[-1]) / best,
        "alpha": worst,
        "theta": float(theta.max()),
        "gamma": float(gamma.max()),
        "beta": float(beta) / best,
        "bound": float(bound[-1]) / best,
        "induction": float(induction[-1]) / best,
    }
    # comparisons with nan are false: no bound, no violation
    broken = (value < induction - CLOSE * opt) | (value < bound - CLOSE * opt)
    step = _first(history, broken)
    if step is not None:
        return Result(name, Verdict.VIOLATED, step, numbers)
    if worst >= 1:
        step = _first(history, alpha >= 1)
        note = f"alpha = {worst:.3g} is needed, below 1 is assumed"
        return Result(name, Verdict.FAILS, step, numbers, note)
    if start < 1 - 1 / math.e:
        note = f"the first full cache has {start:.3g} of the optimum, below 1 - 1/e"
        return Result(name, Verdict.FAILS, history.first, numbers, note)
    verdict = Verdict.VACUOUS if bound[-1] <= 0 else Verdict.HOLDS
    return Result(name, verdict, None, numbers)


# --- T1-T4: setting P and its neighbours ---------------------------------------------------------


def exactness(history: History, outside: str = "") -> Result:
    """T1: S_i is the top k at every step iff no token returns to the top k; first failures agree.

    Numbers: returns (steps at which a token returned), inexact (steps with S_i not the top k),
    ratio.
    """
    numbers = {
        "returns": float(history.returned.sum()),
        "inexact": float((~history.same).sum()),
        "ratio": _share(int(history.value[-1]), int(history.opt[-1])) if history.steps else 1.0,
    }
    if not history.steps:
        return Result("T1", Verdict.VACUOUS, note="the budget is never reached")
    returns, inexact = _first(history, history.returned), _first(history, ~history.same)
    if outside:
        return Result("T1", Verdict.FAILS, history.first, numbers, outside)
    if returns != inexact:
        step = min(s for s in (returns, inexact) if s is not None)
        return Result("T1", Verdict.VIOLATED, step, numbers)
    if returns is not None:
        return Result("T1", Verdict.FAILS, returns, numbers, "a token returns to the top k")
    return Result("T1", Verdict.HOLDS, None, numbers)


def post_eviction_mass(history: History, outside: str = "") -> Result:
    """T2: f_i(S_i) >= opt_i - sum over missed tokens of what they received after their eviction.

    Numbers: ratio, bound, rho (largest share that a missed token received after it went).
    """
    rho = float(history.late_share[-1]) if history.steps else 0.0
    return _bounded("T2", history, history.opt - history.late, outside, {"rho": rho})


def cached_scores(history: History, outside: str = "", *, rounded: bool = True) -> Result:
    """T3: as T2 with the missed mass M_i subtracted, for decisions by cached scores.

    Its proof gives more: of M_i only what renormalising added to the scores of tokens that do not
    belong. That bound is checked too, up to `CLOSE` (it is a float).

    rounded: the decisions were made with float64 scores, which allows 2 k (H i)^2 2^-52 in units of
    a row (the rows being fixed point); False for decisions in exact fractions.

    Numbers: ratio, bound (the sharp one), plain (with all of M), missed (M as a share of opt).
    """
    bound: NDArray[Any] = history.opt - history.late - history.missed
    slack = np.zeros(history.steps)
    if rounded and history.steps:
        steps = np.arange(history.first, history.first + history.steps, dtype=float) + 1
        slack = 2.0 * history.k * (history.heads * steps) ** 2 * 2.0**-52 * ONE
        bound = bound - np.ceil(slack).astype(np.int64)
    if not history.steps:
        return _bounded("T3", history, bound, outside, {})
    sharp = history.opt - history.late - history.inflated
    last = int(history.opt[-1])
    numbers = {
        "bound": float(sharp[-1]) / last if last else math.nan,
        "plain": _share(bound[-1].item(), last),
        "missed": _share(int(history.missed[-1]), last),
    }
    result = _bounded("T3", history, bound, outside, numbers)
    broken = _first(history, history.value < sharp - slack - CLOSE * history.opt)
    if result.verdict in (Verdict.HOLDS, Verdict.VACUOUS):
        if broken is not None:
            return Result("T3", Verdict.VIOLATED, broken, result.numbers, "the sharp bound")
        if sharp[-1] > 0:
            return Result("T3", Verdict.HOLDS, None, result.numbers)
    return result


def drift_certificate(history: History, outside: str = "") -> Result:
    """T4: ratio_i >= ratio_{i-1} g_i / G_i with signed growth factors; equivalently no step loses.

    It asks nothing else of a run: one outside setting P that never loses value is inside T4.

    Numbers: ratio, bound (the product of all g_i / G_i, from the ratio at the first step), clipped
    (the same with g_i and 1/G_i clipped at 1, as the paper's constants are).
    """
    if not history.steps:
        return Result("T4", Verdict.VACUOUS, note="the budget is never reached")
    value, opt = history.value.astype(float), history.opt.astype(float)
    before = history.before.astype(float)
    certificate = clipped = value[0] / opt[0] if opt[0] else 1.0
    for i in range(1, history.steps):
        ratio = value[i] / opt[i] if opt[i] else 1.0
        if value[i - 1] <= 0 or opt[i - 1] <= 0:  # no factor: start again from the ratio
            certificate = clipped = ratio
            continue
        growth, best = before[i] / value[i - 1], opt[i] / opt[i - 1]
        certificate *= growth / best
        clipped *= min(1.0, growth) * min(1.0, 1.0 / best)
    ratio = float(value[-1] / opt[-1]) if opt[-1] else 1.0
    numbers = {"ratio": ratio, "bound": float(certificate), "clipped": float(clipped)}
    step = _first(history, history.value < history.before)
    if outside and step is not None:
        return Result("T4", Verdict.FAILS, step, numbers, f"{outside}: a step loses value")
    if step is not None or ratio < certificate * (1 - CLOSE):
        return Result("T4", Verdict.VIOLATED, step, numbers)
    return Result("T4", Verdict.HOLDS if certificate > 0 else Verdict.VACUOUS, None, numbers)


# --- T5: outputs ---------------------------------------------------------------------------------


def output_error(weights: ArrayLike, values: ArrayLike, kept: ArrayLike) -> Result:
    """T5 for one head and one step: ||o - o_S|| <= (1 - r) max_{j not in S} ||v_j - o_S||.

    weights [n] >= 0, divided by their sum first; values [n, d]; kept: mask [n] of S. The Euclidean
    norm. Numbers: error, bound, recall.
    """
    w = np.asarray(weights, dtype=np.float64)
    v = np.asarray(values, dtype=np.float64)
    inside = np.asarray(kept, dtype=bool)
    total, mass = w.sum(), w[inside].sum()
    if not mass > 0:
        return Result("T5", Verdict.FAILS, note="the set has no mass, its output does not exist")
    output = w @ v / total
    over_cache = w[inside] @ v[inside] / mass
    recall = float(mass / total)
    error = float(np.linalg.norm(output - over_cache))
    away = np.linalg.norm(v[~inside] - over_cache, axis=1).max(initial=0.0)
    bound = float((1 - recall) * away)
    identity = output - over_cache - w[~inside] @ (v[~inside] - over_cache) / total
    scale = CLOSE * max(float(np.linalg.norm(v, axis=1).max(initial=0.0)), 1e-300)
    numbers = {"error": error, "bound": bound, "recall": recall}
    if error > bound + scale or float(np.linalg.norm(identity)) > scale:
        return Result("T5", Verdict.VIOLATED, None, numbers)
    return Result("T5", Verdict.HOLDS, None, numbers)


# --- T6: the offline optimum ---------------------------------------------------------------------


def brute_force_value(rows: Rows, k: int, prompt_len: int = 1) -> int:
    """OPT(k) by trying every schedule, early evictions included: for n up to 7 or so.

    The value is the sum over the decode steps t >= prompt_len of the attended mass.
    """
    table = [heads.sum(axis=0).tolist() for heads in rows.each()]
    n, p = rows.n, prompt_len

    @cache
    def best(t: int, cache: tuple[int, ...]) -> int:
        if t == n:
            return 0
        seen = (*cache, t)
        now = sum(table[t][j] for j in seen) if t >= p else 0
        if t < p - 1:
            return now + best(t + 1, seen)
        sizes = range(min(k, len(seen)) + 1)
        return now + max(best(t + 1, c) for s in sizes for c in itertools.combinations(seen, s))

    return best(0, ())


def assignment_value(rows: Rows, k: int, prompt_len: int = 1) -> int:
    """OPT(k) as the assignment problem of proof T6, solved by SciPy (exact below 2^53)."""
    from scipy.optimize import linear_sum_assignment

    n, p = rows.n, prompt_len
    table = np.zeros((n + 1, n), dtype=np.int64)
    for t, heads in enumerate(rows.each()):
        if t >= p:
            table[t, : t + 1] = heads.sum(axis=0)
    total = int(table.sum())
    later = np.cumsum(table[::-1], axis=0)[::-1]  # later[t, j]: what j receives from row t on
    steps = [p - 1] * max(0, p - k) if p < n else []
    steps += list(range(max(k, p), n - 1))
    if not steps:
        return total
    cost = np.full((len(steps), n), 4 * total + 1, dtype=np.int64)
    for i, t in enumerate(steps):
        cost[i, : t + 1] = later[t + 1, : t + 1]
    row, column = linear_sum_assignment(cost)
    return total - int(cost[row, column].sum())


def interval_program(rows: Rows, k: int, prompt_len: int = 1) -> tuple[float, NDArray[np.float64]]:
    """The linear program of proof T6c by HiGHS: its value (self terms included) and the prices [n].

    Variables: token j leaves after row e. For small n (n^2/2 variables).
    """
    from scipy.optimize import linprog

    n, p = rows.n, prompt_len
    table = np.zeros((n, n))
    for t, heads in enumerate(rows.each()):
        table[t, : t + 1] = heads.sum(axis=0)
    base = float(sum(table[t, t] for t in range(p, n)))
    stays = [(j, e) for j in range(n) for e in range(max(j + 1, p), n)]
    prices = np.zeros(n)
    if not stays:
        return base, prices
    profit = [table[max(j + 1, p) : e + 1, j].sum() for j, e in stays]
    limits = [float(min(k, t)) for t in range(p, n)] + [1.0] * n
    matrix = np.zeros((len(limits), len(stays)))
    for column, (j, e) in enumerate(stays):
        matrix[max(j + 1, p) - p : e + 1 - p, column] = 1
        matrix[n - p + j, column] = 1
    solved = linprog(-np.array(profit), A_ub=matrix, b_ub=limits, method="highs-ds")
    prices[p:] = -solved.ineqlin.marginals[: n - p]
    return base - float(solved.fun), prices


def offline_optimum(rows: Rows, k: int, prompt_len: int = 1) -> Result:
    """T6: trying every schedule, the assignment and the flow (as a linear program) agree.

    For small n. Numbers: optimum, assignment, flow.
    """
    tried = brute_force_value(rows, k, prompt_len)
    assigned = assignment_value(rows, k, prompt_len)
    flow = interval_program(rows, k, prompt_len)[0]
    numbers = {"optimum": float(tried), "assignment": float(assigned), "flow": flow}
    same = tried == assigned and abs(flow - tried) <= CLOSE * max(1, tried)
    return Result("T6", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)


def concave_in_budget(optima: Sequence[int], budgets: Sequence[int] | None = None) -> Result:
    """T6b: the optimum rises with the budget, by gains per slot that never grow.

    optima: OPT of rising budgets, by default 0, 1, 2, ... step: the position in `optima` of the
    first that breaks it.
    """
    at = list(range(len(optima))) if budgets is None else list(budgets)
    rises = [
        Fraction(int(after) - int(before), high - low)
        for (before, after), (low, high) in zip(
            itertools.pairwise(optima), itertools.pairwise(at), strict=True
        )
    ]
    for place, gain in enumerate(rises):
        if gain < 0 or (place and gain > rises[place - 1]):
            return Result("T6b", Verdict.VIOLATED, place + 1)
    verdict = Verdict.HOLDS if len(rises) > 1 else Verdict.VACUOUS
    return Result("T6b", verdict, None, {"last gain": float(rises[-1])} if rises else {})


def dual_value(rows: Rows, k: int, prices: ArrayLike, prompt_len: int = 1) -> int:
    """D(prices) of proof T6c, an integer: an upper bound on OPT(k) for nonnegative prices [n].

    Prices are whole numbers in the unit of the rows (fixed point for a trace).
    """
    price = np.asarray(prices)
    if price.dtype.kind not in "iu":
        raise TypeError(f"prices are whole numbers, not {price.dtype}")
    n, p = rows.n, prompt_len
    running = np.zeros(n, dtype=np.int64)  # sum of (A - price) of each token so far
    best = np.zeros(n, dtype=np.int64)
    total = 0
    for t, heads in enumerate(rows.each()):
        if t < p:
            continue
        row = heads.sum(axis=0)
        total += min(k, t) * int(price[t]) + int(row[t])
        running[:t] += row[:t] - int(price[t])
        np.maximum(best[:t], running[:t], out=best[:t])
    return total + int(best.sum())


def dual_certificate(
    rows: Rows, k: int, prices: ArrayLike, achieved: int, prompt_len: int = 1
) -> Result:
    """T6c: D(prices) is at least the value `achieved` by any schedule; equality proves optimality.

    Numbers: achieved, bound, gap (relative).
    """
    bound = dual_value(rows, k, prices, prompt_len)
    gap = _share(bound - achieved, bound) if bound else 0.0
    numbers = {"achieved": float(achieved), "bound": float(bound), "gap": gap}
    if np.asarray(prices).min(initial=0) < 0:
        return Result("T6c", Verdict.FAILS, None, numbers, "a price is negative")
    verdict = Verdict.HOLDS if bound >= achieved else Verdict.VIOLATED
    return Result("T6c", verdict, None, numbers)


# --- T7: inclusion -------------------------------------------------------------------------------


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


def stack_run(ranks: Callable[[int], Sequence[Any]], n: int, prompt_len: int = 1) -> NDArray[Any]:
    """One pass over one stack: evicted_at [n + 1, n] of every budget 0 ... n (proof T7).

    ranks(t): for every token 0 ... t its rank at step t, comparable and all different (use pairs
    with the token second); the least is evicted.
    """
    gone = np.full((n + 1, n), n, dtype=np.int64)
    stack: list[int] = []
    for t in range(prompt_len - 1, n):
        rank = ranks(t)
        if t == prompt_len - 1:
            stack = sorted(range(t + 1), key=lambda j: rank[j], reverse=True)
            for depth, token in enumerate(stack):
                gone[: depth + 1, token] = t
            continue
        carried = t
        gone[0, t] = t
        for depth, resident in enumerate(stack):
            if rank[resident] < rank[carried]:
                stack[depth], carried = carried, resident
            gone[depth + 1, carried] = t  # budget depth + 1 drops what falls past its depth
        stack.append(carried)
    return gone


# --- C1-C4 and T8: instances ---------------------------------------------------------------------


def literal_freeze(rows: Rows, k: int, algorithm: int = 1) -> Result:
    """C1: Algorithms 1 and 2 of arXiv 2306.14048 as printed keep the first k tokens for ever.

    The score runs over the cached tokens only, so the new token's is 0; Algorithm 2 adds scores up
    from the step at which the cache is full. The assumption is a positive score of every resident.
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
    """The matrix of C2, exact: rows (1), (.6, .4), then 1-d on token 1 and d/2 on 0 and t.

    Returned as whole numbers with their common denominator.
    """
    unit = math.lcm(5, (d / 2).denominator)
    matrix = np.zeros((n, n), dtype=np.int64)
    matrix[0, 0] = unit
    if n > 1:
        matrix[1, :2] = 3 * unit // 5, 2 * unit // 5
    half = int(d / 2 * unit)
    for t in range(2, n):
        matrix[t, 0] = matrix[t, t] = half
        matrix[t, 1] = unit - 2 * half
    return Rows.of(matrix), unit


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
    numbers = {"ratio": _share(int(history.value[-1]), int(history.opt[-1]))}
    return Result("C2", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)


def swap_instance(k: int, epsilon: Fraction = Fraction(1, 1000)) -> Coverage:
    """C3's coverage function: k points of weight 1, k of weight 1 + epsilon, then their union."""
    singles = [{p} for p in range(2 * k)]
    return Coverage([*singles, range(k, 2 * k)], [Fraction(1)] * k + [1 + epsilon] * k)


def swap_ratio(k: int, epsilon: Fraction = Fraction(1, 1000)) -> Result:
    """C3: one-swap greedy ends at k(1+epsilon), the best set has k(1+epsilon) + k - 1.

    Numbers: ratio, limit = k/(2k-1), and 1 - 1/e to compare with.
    """
    f = swap_instance(k, epsilon)
    reached, best = f.value(one_swap(f, k)[-1]), f.value(best_set(f, k))
    numbers = {"ratio": _share(reached, best), "limit": k / (2 * k - 1), "1-1/e": 1 - 1 / math.e}
    same = reached == k * (1 + epsilon) and best == k * (1 + epsilon) + k - 1
    return Result("C3", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)


def drift_instance(k: int, epsilon: Fraction = Fraction(1, 1000)) -> Coverage:
    """Proof T9.4: a coverage function on which one-swap greedy tends to 1/k of the best set."""
    sets: list[set[int]] = []
    weights: list[Number] = []
    for block in range(1, k + 1):
        first = len(weights)
        weights += [Fraction(1)] * k + [block * epsilon] * k
        whole = set(range(first, first + k))
        parts = [{first + q, first + k + q} for q in range(k)]
        sets += [whole, *parts] if block == 1 else [*parts, whole]
    return Coverage(sets, weights)


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
    needle, and the rest on the needle. Whole numbers: a row sums to `needle_unit(m)`.
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


# --- T9: shared caches ---------------------------------------------------------------------------


def shared_caches(f: SetFunction, k: int) -> Result:
    """T9: f monotone and submodular; one-shot greedy (1 - (1-1/k)^k), one-swap greedy 1/k.

    Tries all sets: for up to 8 tokens or so. Numbers: greedy, swap (both as shares of the optimum,
    greedy's net of f(∅)), limit = 1 - (1-1/k)^k.
    """
    for witness in (check_monotone(f), check_submodular(f)):
        if witness is not None:
            return Result("T9", Verdict.FAILS, None, {}, f"not {witness.property}")
    empty, best = f.value(()), f.value(best_set(f, k))
    greedy, swap = f.value(static_greedy(f, k)), f.value(one_swap(f, k)[-1])
    limit = 1 - (1 - Fraction(1, k)) ** k
    rises = at_least(float(greedy - empty), float(limit) * float(best - empty))
    swaps = at_least(k * swap, best)
    numbers = {
        "greedy": float(greedy - empty) / float(best - empty) if best != empty else 1.0,
        "swap": float(swap) / float(best) if best else 1.0,
        "limit": float(limit),
    }
    if empty < 0:
        return Result("T9", Verdict.FAILS, None, numbers, "f of the empty set is negative")
    return Result("T9", Verdict.HOLDS if rises and swaps else Verdict.VIOLATED, None, numbers)


__all__ = [
    "Result",
    "Run",
    "Verdict",
    "assignment_value",
    "brute_force_value",
    "cached_scores",
    "concave_in_budget",
    "drift_certificate",
    "drift_instance",
    "dual_certificate",
    "dual_value",
    "exactness",
    "inclusion",
    "interval_program",
    "literal_freeze",
    "needle",
    "needle_rows",
    "needle_unit",
    "no_free_lunch",
    "offline_optimum",
    "output_error",
    "paper_theorem",
    "post_eviction_mass",
    "shared_caches",
    "stack_run",
    "swap_instance",
    "swap_ratio",
    "trap",
    "trap_rows",
]
