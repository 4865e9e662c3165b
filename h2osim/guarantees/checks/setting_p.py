"""T1 to T4 and M7: accumulated attention, the least is evicted (setting P), and what is near it.

They read a `History` of any run. `outside` says in words why the run is not in the setting of the
statement (a protected recent window, cached scores, ...); the verdict is then "does not apply",
with the numbers all the same. Comparisons of sums are exact integers; products of ratios are taken
in float64, up to `CLOSE`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import ONE
from h2osim.guarantees.history import History, Rows, Schedule
from h2osim.guarantees.results import CLOSE, Result, Verdict, share

NEVER_FULL = "the budget is never reached"
OVER_BUDGET = "holds more than the budget"


def first_step(history: History, broken: NDArray[np.bool_]) -> int | None:
    """The first of the history's steps that is marked, None if there is none."""
    where = np.flatnonzero(broken)
    return history.first + int(where[0]) if len(where) else None


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
        return Result(name, Verdict.VACUOUS, note=NEVER_FULL)
    step = first_step(history, history.value < bound)
    last = int(history.opt[-1])
    numbers = {
        "ratio": share(int(history.value[-1]), last),
        "bound": share(bound[-1].item(), last),
        **numbers,
    }
    if outside:
        return Result(name, Verdict.FAILS, history.first, numbers, outside)
    if step is not None:
        return Result(name, Verdict.VIOLATED, step, numbers, note)
    verdict = Verdict.VACUOUS if bound[-1] <= 0 else Verdict.HOLDS
    return Result(name, verdict, None, numbers, note)


def exactness(history: History, outside: str = "") -> Result:
    """T1: S_i is the top k at every step iff no token returns to the top k; first failures agree.

    Numbers: returns (steps at which a token returned), inexact (steps with S_i not the top k),
    ratio.
    """
    numbers = {
        "returns": float(history.returned.sum()),
        "inexact": float((~history.same).sum()),
        "ratio": share(int(history.value[-1]), int(history.opt[-1])) if history.steps else 1.0,
    }
    if not history.steps:
        return Result("T1", Verdict.VACUOUS, note=NEVER_FULL)
    returns, inexact = first_step(history, history.returned), first_step(history, ~history.same)
    if outside:
        return Result("T1", Verdict.FAILS, history.first, numbers, outside)
    if returns != inexact:
        step = min(s for s in (returns, inexact) if s is not None)
        return Result("T1", Verdict.VIOLATED, step, numbers)
    if returns is not None:
        return Result("T1", Verdict.FAILS, returns, numbers, "a token returns to the top k")
    return Result("T1", Verdict.HOLDS, None, numbers)


def post_eviction_mass(history: History, outside: str = "") -> Result:
    """T2: f_i(S_i) >= f_i(O) - sum over missed tokens of O of what came after their eviction.

    For O = OPT_i, whose numbers are given, and for every other set O of at most k tokens at once:
    the right side is a sum over O of a_i(o) for cached and a_{t_o}(o) for evicted tokens, so the
    worst O is the top k of these (`History.worst`).

    Numbers: ratio, bound, rho (largest share that a missed token received after it went).
    """
    rho = float(history.late_share[-1]) if history.steps else 0.0
    result = _bounded("T2", history, history.opt - history.late, outside, {"rho": rho})
    return _every_set(result, history, history.value < history.worst)


def _every_set(result: Result, history: History, broken: NDArray[np.bool_]) -> Result:
    """The result, or that some other set of k tokens breaks the statement."""
    step = first_step(history, broken)
    if result.verdict in (Verdict.HOLDS, Verdict.VACUOUS) and step is not None:
        note = "for a set other than the top k"
        return Result(result.guarantee, Verdict.VIOLATED, step, result.numbers, note)
    return result


def cached_scores(history: History, outside: str = "", *, rounded: bool = True) -> Result:
    """T3: as T2 with the missed mass M_i subtracted, for decisions by cached scores.

    Its proof gives more: of M_i only what renormalising added to the scores of tokens that do not
    belong. That bound is checked too, up to `CLOSE` (it is a float). Both are checked for every set
    O of at most k tokens in the place of the top k, as in `post_eviction_mass`.

    rounded: the decisions were made with float64 scores, which allows 2 k (H i)^2 2^-52 in units of
    a row (the rows being fixed point); False for decisions in exact fractions.

    Numbers: ratio, bound (the sharp one), plain (with all of M), missed (M as a share of opt).
    """
    bound: NDArray[Any] = history.opt - history.late - history.missed
    slack = np.zeros(history.steps)
    if rounded and history.steps:
        steps = np.arange(history.first, history.first + history.steps, dtype=float) + 1
        slack = 2.0 * history.k * (history.heads * steps) ** 2 * 2.0**-52 * ONE
        bound = bound - np.floor(slack).astype(np.int64)  # whole numbers cannot miss by less
    if not history.steps:
        return _bounded("T3", history, bound, outside, {})
    sharp = history.opt - history.late - history.inflated
    last = int(history.opt[-1])
    numbers = {
        "bound": float(sharp[-1]) / last if last else math.nan,
        "plain": share(bound[-1].item(), last),
        "missed": share(int(history.missed[-1]), last),
    }
    result = _bounded("T3", history, bound, outside, numbers)
    broken = first_step(history, history.value < sharp - slack - CLOSE * history.opt)
    if result.verdict in (Verdict.HOLDS, Verdict.VACUOUS):
        if broken is not None:
            return Result("T3", Verdict.VIOLATED, broken, result.numbers, "the sharp bound")
        if sharp[-1] > 0:
            result = Result("T3", Verdict.HOLDS, None, result.numbers)
    worst = history.worst - history.missed - np.floor(slack)
    result = _every_set(result, history, history.value < worst)
    return _every_set(result, history, history.surplus > slack + CLOSE * history.opt)


def drift_certificate(history: History, outside: str = "") -> Result:
    """T4: ratio_i >= ratio_{i-1} g_i / G_i with signed growth factors; equivalently no step loses.

    It asks nothing else of a run: one outside setting P that never loses value is inside T4.

    Numbers: ratio, bound (the product of all g_i / G_i, from the ratio at the first step), clipped
    (the same with g_i and 1/G_i clipped at 1, as the paper's constants are).
    """
    if not history.steps:
        return Result("T4", Verdict.VACUOUS, note=NEVER_FULL)
    if not history.within:
        return Result("T4", Verdict.FAILS, history.first, note=OVER_BUDGET)
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
    step = first_step(history, history.value < history.before)
    if outside and step is not None:
        return Result("T4", Verdict.FAILS, step, numbers, "a step loses value")
    if step is not None or ratio < certificate * (1 - CLOSE):
        return Result("T4", Verdict.VIOLATED, step, numbers)
    return Result("T4", Verdict.HOLDS if certificate > 0 else Verdict.VACUOUS, None, numbers)


def freezing(rows: Rows, run: Schedule, recent: int, *, cached: bool = False) -> Result:
    """M7: once every unprotected resident has more than H(R+1), none of them ever leaves.

    H is the largest mass of a row, R = recent the number of newest tokens that are protected.
    cached: the run decided by renormalised scores; what such scores gain is added up here in
    float64, and the threshold is raised by their rounding. step: the step from which the cache is
    frozen, or the step that broke the statement. Numbers: least, the largest value over the steps
    of the least unprotected resident's score over H(R+1); above 1 the cache is frozen.
    """
    n, p = rows.n, run.prompt_len
    gone = np.asarray(run.evicted_at)
    heaviest = max(int(heads.sum()) for heads in rows.each())
    score: NDArray[Any] = np.zeros(n, dtype=np.float64 if cached else np.int64)
    limit = heaviest * (recent + 1)
    frozen: int | None = None
    residents = np.zeros(n, dtype=bool)
    most = 0.0
    for t, heads in enumerate(rows.each()):
        if frozen is not None and np.any(residents & (gone == t)):
            return Result("M7", Verdict.VIOLATED, t, {"least": most})
        seen = gone[: t + 1] >= t
        for row in heads:
            whole, mass = int(row.sum()), int(row[seen].sum())
            if cached and t >= p and mass:
                score[: t + 1][seen] += row[seen] * (whole / mass)
            else:
                score[: t + 1] += row
        kept = gone[: t + 1] > t
        settled = kept & (np.arange(t + 1) <= t - recent)
        if frozen is not None or t < max(p, run.k) - 1 or not settled.any():
            continue
        slack = 2.0 * (rows.heads * (t + 1)) ** 2 * 2.0**-52 * ONE if cached else 0
        least = score[: t + 1][settled].min() - slack
        most = max(most, float(least) / limit if limit else 0.0)
        if least > limit and int(kept.sum()) == run.k:
            frozen = t
            residents[: t + 1] = settled
    numbers = {"least": most}
    if frozen is None:
        return Result("M7", Verdict.FAILS, None, numbers, "some resident has too little")
    return Result("M7", Verdict.HOLDS, frozen, numbers)
