"""The paper's theorem (arXiv 2306.14048, D.32), its algorithm to the letter, the trap."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from h2osim.guarantees.checks.setting_p import OVER_BUDGET, first_step
from h2osim.guarantees.history import History, Rows, follow, simulate
from h2osim.guarantees.results import CLOSE, Result, Verdict, share


def paper_theorem(history: History, n: int) -> Result:
    """Theorem 4.4 / D.32 of arXiv 2306.14048 with UDC2 in the direction its induction needs.

    Least constants of the run: theta_i = 1 - f_i(S_{i-1}) / f_{i-1}(S_{i-1}) and gamma_i = 1 -
    opt_{i-1} / opt_i, both clipped at 0, alpha = 10 n max(theta_i, gamma_i); a step that loses
    f_i(S_{i-1}) - f_i(S_i) > 0 enters beta. alpha >= 1 leaves the theorem empty: "assumption
    fails", at the first step that needs it; so does a start below 1 - 1/e (possible only outside
    setting P). Otherwise (1 - 1/e)(1 - alpha) opt_i - beta is the bound. The product form of the
    induction is checked either way (numbers: induction). The constants come from the run, so no run
    can violate the theorem: "violated" would mean that the induction or this program is wrong.

    Numbers: ratio; alpha, theta, gamma (largest); beta as a share of opt; bound (what the formula
    gives, negative for alpha > 1; nan after too low a start); induction: the product bound with
    the true start in place of 1 - 1/e.
    """
    name = "paper-theorem"
    if not history.steps:
        return Result(name, Verdict.VACUOUS, note="the budget is never reached")
    if not history.within:
        return Result(name, Verdict.FAILS, history.first, note=OVER_BUDGET)
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
    step = first_step(history, broken)
    if step is not None:
        return Result(name, Verdict.VIOLATED, step, numbers)
    needed = too_fast(history, n)
    if needed.any():
        step = first_step(history, needed)
        note = f"needs alpha = {worst:.3g}, not < 1"
        return Result(name, Verdict.FAILS, step, numbers, note)
    if start < 1 - 1 / math.e:
        note = f"the first full cache has {start:.3g} of the optimum, below 1 - 1/e"
        return Result(name, Verdict.FAILS, history.first, numbers, note)
    verdict = Verdict.VACUOUS if bound[-1] <= 0 else Verdict.HOLDS
    return Result(name, verdict, None, numbers)


def too_fast(history: History, n: int) -> NDArray[np.bool_]:
    """Steps at which alpha = 10 n max(theta_i, gamma_i) is 1 or more, decided in integers."""
    value, before, opt = (x.astype(object) for x in (history.value, history.before, history.opt))
    broken = np.zeros(history.steps, dtype=bool)
    growth = 10 * n * (opt[1:] - opt[:-1]) >= opt[1:]
    drift = 10 * n * (value[:-1] - before[1:]) >= value[:-1]
    broken[1:] = (growth & (opt[1:] > 0)) | (drift & (value[:-1] > 0))
    return broken


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
    numbers = {"ratio": share(int(history.value[-1]), int(history.opt[-1]))}
    return Result("C2", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)
