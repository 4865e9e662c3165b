"""The paper's theorem: 4.4, or D.32 in the appendix, of arXiv 2306.14048."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from h2osim.guarantees.checks.setting_p import OVER_BUDGET, first_step
from h2osim.guarantees.history import History
from h2osim.guarantees.results import CLOSE, Result, Verdict


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
