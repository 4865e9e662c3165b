"""Results of all checks on one run of a unit, and on its offline optimum."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.guarantees import checks
from h2osim.guarantees.history import History, Rows, Schedule
from h2osim.guarantees.results import Result, Verdict
from h2osim.policies.declaration import Configured
from h2osim.traces.unit import Unit

CACHED = "cached scores"
"""Why a run with renormalised scores is not setting P."""

SETS = 300_000
"""Most sets that the dynamic greedy's objective is compared with, over all steps."""

OUTPUT_STEPS = 16
"""Steps of a run at which the attention output is compared (T5), evenly spread."""


def outside_setting(configured: Configured, k: int) -> str:
    """Why a policy is not setting P of the proofs, in words; "" when it is.

    Setting P: h2o with full scores, nothing protected, evicting throughout.
    """
    values = configured.values
    if configured.policy.name != "h2o":
        return f"{configured.policy.name} ranks otherwise"
    if values["when"] != "always":
        return "does not evict in every step"
    if configured.largest_head:
        return "ranks by the largest head"
    if protected := int(configured.numbers(k)["recent"]):
        return f"newest {protected} protected"
    if sinks := int(configured.numbers(k)["sinks"]):
        return f"{sinks} sinks protected"
    return CACHED if configured.scores == "cached" else ""


def of_run(how: Configured, history: History, unit: Unit, run: Schedule) -> Iterator[Result]:
    """The result of every statement about a run; see `verify`."""
    if how.policy.readmits:
        note = "re-admits tokens"
        for name in ("paper-theorem", "T1", "T2", "T4"):
            yield Result(name, Verdict.FAILS, run.prompt_len, {}, note)
        return
    outside = outside_setting(how, run.k)
    yield checks.paper_theorem(history, unit.n)
    yield checks.exactness(history, outside)
    yield checks.post_eviction_mass(history, outside)
    if how.scores == "cached":
        beyond = "" if outside == CACHED else outside
        yield checks.cached_scores(history, beyond)
    yield checks.drift_certificate(history, outside)
    if how.policy.name == "h2o" and how.when == "always" and not how.largest_head:
        recent = int(how.numbers(run.k)["recent"])
        yield checks.freezing(Rows.of_unit(unit), run, recent, cached=how.scores == "cached")
    if unit.has_values:
        yield output_errors(unit, run)
    if how.policy.name == "greedy":
        yield greedy_ratio(how, unit, run)


SHAPES: dict[str, Callable[[Any], Any]] = {
    "mass": lambda z: z,
    "sqrt": lambda z: math.sqrt(1 + z),
    "log": math.log1p,
    "coverage": lambda z: min(z, Fraction(1, 2)),
}
"""Of the policy `greedy`: what a head's mass is worth, by objective."""


def _objective(name: str, scores: NDArray[Any], held: Any) -> Any:
    """What the tokens `held` are worth; scores [heads, tokens], fractions."""
    heads = scores[:, list(held)].tolist()
    if name == "facility":
        return sum(max(row, default=0) for row in heads)
    return sum(SHAPES[name](sum(row)) for row in heads)


def greedy_ratio(how: Configured, unit: Unit, run: Schedule, most: int = SETS) -> Result:
    """The dynamic greedy's objective over the best set's, least over the steps (T9 and M6, or M1).

    They promise a share of the best set of a function that stays; over time rows change it, so they
    do not apply, and the ratio is a measurement. The bound is what they would promise: a quarter
    with swap=threshold (M1); else 1/k on a stream (T9), 1/(p/k + k - 1) after a prompt of p > k + 1
    tokens (M6). Tries all sets, hence for small units only (``most`` sets).
    """
    threshold = how.values["swap"] == "threshold"
    name, p = "M1" if threshold else "T9", run.prompt_len
    objective, n, k = str(how.values["objective"]), unit.n, run.k
    if n * math.comb(n, min(k, n)) > most:
        return Result(name, Verdict.FAILS, None, {}, "too large to try all sets")
    rows = np.zeros((len(unit.heads), n, n), object)
    for t in range(n):
        rows[:, t, : t + 1] = unit.head_rows(t)
    rows = rows * Fraction(1, 2**24)
    scores = rows if objective == "coverage" else np.add.accumulate(rows, axis=1)
    least, where = 1.0, None
    for t in range(max(run.prompt_len, k) - 1, n):
        now = scores[:, t, : t + 1]
        sets = itertools.combinations(range(t + 1), min(k, t + 1))
        best = max(_objective(objective, now, held) for held in sets)
        held = _objective(objective, now, np.flatnonzero(run.evicted_at[: t + 1] > t))
        ratio = float(held) / float(best) if best else 1.0
        if ratio < least:
            least, where = ratio, t
    bound = 1 / 4 if threshold else 1 / (k if p <= k + 1 else p / k + k - 1)
    note = "the objective changes"
    return Result(name, Verdict.FAILS, where, {"ratio": least, "bound": bound}, note)


def against(best: Any, history: History) -> Result:
    """T6 of a run: it keeps at most the upper bound of the optimum. best: one unit and budget."""
    whole, bound, schedule = int(best.mass), int(best.bound), int(best.kept)
    kept = whole - history.lost
    numbers = {
        "ratio": kept / schedule if schedule else 1.0,
        "recall": kept / whole if whole else math.nan,
        "optimum": schedule / whole if whole else math.nan,
    }
    if not history.within:
        return Result("T6", Verdict.FAILS, None, numbers, checks.OVER_BUDGET)
    return Result("T6", Verdict.HOLDS if kept <= bound else Verdict.VIOLATED, None, numbers)


def of_optimum(best: Any, history: History, rows: Rows) -> Iterator[Result]:
    """T6: the schedule keeps what is claimed, recomputed here; T6c: its prices bound the rest."""
    whole, claimed, k = int(best.mass), int(best.kept), history.k
    kept = whole - history.lost
    numbers = {"recall": kept / whole if whole else math.nan}
    right = kept == claimed and history.within
    yield Result("T6", Verdict.HOLDS if right else Verdict.VIOLATED, None, numbers)
    prices = best.price_fixed.values
    found = checks.dual_certificate(rows, k, prices, kept, history.prompt_len)
    numbers = {
        "recall": kept / whole if whole else math.nan,
        "ratio": 1.0 - found.numbers["gap"],
        "gap": found.numbers["gap"],
    }
    yield dataclasses.replace(found, numbers=numbers)


def output_errors(unit: Unit, run: Schedule, most: int = OUTPUT_STEPS) -> Result:
    """T5 at up to `most` evenly spread decode steps of a run, every head.

    The first violation as it is; otherwise numbers: error and bound where the error is largest,
    recall there, and used, the largest error / bound. UserError when values are not recorded.
    """
    values = unit.values()
    per_value = len(unit.heads) // len(unit.kv)
    steps = np.unique(np.linspace(run.prompt_len, unit.n - 1, most).astype(int))
    worst: Result | None = None
    used = 0.0
    for t in steps[(run.prompt_len <= steps) & (steps < unit.n)].tolist():
        kept = run.evicted_at[: t + 1] >= t
        for h, row in enumerate(unit.head_rows(t)):
            found = checks.output_error(row, values[h // per_value, : t + 1], kept)
            if found.verdict == Verdict.VIOLATED:
                return dataclasses.replace(found, step=t)
            if found.verdict == Verdict.FAILS:
                continue
            if found.numbers["bound"] > 0:
                used = max(used, found.numbers["error"] / found.numbers["bound"])
            if worst is None or found.numbers["error"] > worst.numbers["error"]:
                worst = found
    if worst is None:
        return Result("T5", Verdict.VACUOUS, note="no decode step keeps any mass")
    return dataclasses.replace(worst, numbers={**worst.numbers, "used": used})
