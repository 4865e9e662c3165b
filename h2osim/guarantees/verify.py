"""Everything that is proved, held against a recorded trace: one line a unit, budget and statement.

The replays come from `h2osim.replay`; what they kept and missed is recomputed here from the rows
and the evictions alone. A line that says "violated" is a wrong theorem or a wrong program, and
`write_counterexample` saves the unit as a trace to look at.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from h2osim.guarantees import checks
from h2osim.guarantees.choosing import best_set
from h2osim.guarantees.history import History, Rows, Run, follow_all
from h2osim.guarantees.results import Result, Verdict
from h2osim.guarantees.setfunctions import (
    IDENTITY,
    LOG,
    SQRT,
    FacilityLocation,
    SharedCache,
    capped,
)
from h2osim.optima.solving import optimum
from h2osim.policies.declaration import Configured
from h2osim.policies.text import parse
from h2osim.replays.replaying import decode_start, replay
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

POLICIES = ("h2o:recent=0,scores=full", "h2o:recent=0,scores=cached", "h2o")
"""What is verified by default: setting P of the proofs, the same on cached scores (T3), and H2O as
it is deployed (half of the budget recent, cached scores), which the theorems do not cover."""

OFFLINE = "offline optimum"
"""Stands where a line's policy does in the lines about the optimum itself (T6, T6b, T6c)."""

SETS = 300_000
"""Most sets that the dynamic greedy's objective is compared with, over all steps."""

OUTPUT_STEPS = 16
"""Steps of a run at which the attention output is compared (T5), evenly spread."""


@dataclass(frozen=True)
class Line:
    """One finding. budget: tokens; None where the statement is about all budgets together."""

    policy: str
    layer: int
    unit: int
    label: str
    budget: int | None
    result: Result

    def record(self) -> dict[str, Any]:
        """Flat, for CSV and JSON: numbers become columns of their names, nan becomes None."""
        numbers = {
            name: None if math.isnan(value) else value
            for name, value in self.result.numbers.items()
        }
        return {
            "policy": self.policy,
            "layer": self.layer,
            "unit": self.unit,
            "budget": self.budget,
            "guarantee": self.result.guarantee,
            "verdict": str(self.result.verdict),
            "step": self.result.step,
            "note": self.result.note,
            **numbers,
        }


def outside_setting(configured: Configured, k: int) -> str:
    """Why a policy is not setting P of the proofs, in words; "" when it is.

    Setting P: h2o with full scores, nothing protected, evicting throughout.
    """
    values = configured.values
    if configured.policy.name != "h2o":
        return f"{configured.policy.name} is another rule than accumulated attention"
    if values["when"] != "always":
        return "nothing is evicted after the prompt"
    if protected := int(configured.numbers(k)["recent"]):
        return f"the newest {protected} tokens are protected"
    if sinks := int(configured.numbers(k)["sinks"]):
        return f"{sinks} sinks are protected"
    return "the scores are cached ones" if configured.scores == "cached" else ""


def verify(
    trace: Trace,
    policies: str | Sequence[str] = POLICIES,
    budgets: float | Sequence[float] = (0.05, 0.1, 0.2),
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layers: Iterable[int] | None = None,
    offline: bool = True,
    progress: Progress | None = None,
) -> list[Line]:
    """Check every statement that speaks about a run, for every policy, unit and budget.

    Per policy, unit and budget: the paper's theorem with the constants it needs, T1 to T4 (T3 only
    for cached scores), T5 where values are recorded, and T6, the attention kept against the offline
    optimum; per policy and unit T7 over the budgets. A policy outside a statement's setting gets
    "does not apply" and the numbers all the same. Last come the lines of the optimum itself:
    its schedule keeps what is claimed (T6) and its prices prove it best (T6c), per budget, and it
    is concave (T6b).

    Parameters are those of `h2osim.replay`; offline=False leaves the optimum out (it costs more
    than all the rest on long traces). Lines come policy by policy, layer by layer, unit by unit,
    budgets rising. UserError as in `replay`.
    """
    chosen = [policies] if isinstance(policies, str) else list(policies)
    layers = None if layers is None else list(layers)
    configured = {text: parse(text) for text in chosen}
    found = replay(
        trace,
        chosen,
        budgets,
        prompt_len=prompt_len,
        share=share,
        engine=engine,
        layers=layers,
        progress=progress,
    )
    p = decode_start(trace, prompt_len)
    tokens = sorted(int(k) for k in found.budget.values)
    lines: list[Line] = []
    best = None
    if offline:
        best = optimum(trace, tokens, prompt_len=prompt_len, share=share, layers=layers)
    units = [u for u in trace.units(share) if u.layer in set(found.layer.values.tolist())]
    for done, unit in enumerate(units):
        if progress is not None:
            progress(done, len(units), f"checking {unit.label}")
        gone = found.evicted_at.sel(layer=unit.layer, unit=unit.index)
        runs = {
            (text, k): Run(gone.sel(policy=text, budget=k).values.astype(np.int64), k, p)
            for text in chosen
            for k in tokens
        }
        rows, here = Rows.of_unit(unit), None
        if best is not None:
            here = best.sel(layer=unit.layer, unit=unit.index)
            for k in tokens:
                left = here.evicted_at.sel(budget=k).values.astype(np.int64)
                runs[OFFLINE, k] = Run(left, k, p)
        histories = dict(zip(runs, follow_all(rows, list(runs.values())), strict=True))
        for text in chosen:
            how = configured[text]
            for k in tokens:
                results = list(_of_run(how, histories[text, k], unit, runs[text, k]))
                if here is not None and not how.policy.readmits:
                    results.append(_against(here.sel(budget=k), histories[text, k]))
                for result in results:
                    lines.append(Line(text, unit.layer, unit.index, unit.label, k, result))
            over = {k: runs[text, k].evicted_at for k in tokens}
            inside = how.inclusive(len(unit.heads))
            nested = checks.inclusion(over, "" if inside else "rank or timing hangs on the cache")
            lines.append(Line(text, unit.layer, unit.index, unit.label, None, nested))
        if here is not None:
            for k in tokens:
                for result in _of_optimum(here.sel(budget=k), histories[OFFLINE, k], rows):
                    lines.append(Line(OFFLINE, unit.layer, unit.index, unit.label, k, result))
            concave = checks.concave_in_budget(here.kept.sel(budget=tokens).values.tolist(), tokens)
            if bool((here.kept == here.bound).all()):
                lines.append(Line(OFFLINE, unit.layer, unit.index, unit.label, None, concave))
    place = {text: i for i, text in enumerate([*chosen, OFFLINE])}
    return sorted(lines, key=lambda line: place[line.policy])  # stable: units stay in order


def _of_run(how: Configured, history: History, unit: Unit, run: Run) -> Iterator[Result]:
    if how.policy.readmits:
        note = "the policy re-admits tokens; the statements are about runs that do not"
        for name in ("paper-theorem", "T1", "T2", "T4"):
            yield Result(name, Verdict.FAILS, run.prompt_len, {}, note)
        return
    outside = outside_setting(how, run.k)
    yield checks.paper_theorem(history, unit.n)
    yield checks.exactness(history, outside)
    yield checks.post_eviction_mass(history, outside)
    if how.scores == "cached":
        beyond = "" if outside == "the scores are cached ones" else outside
        yield checks.cached_scores(history, beyond)
    yield checks.drift_certificate(history, outside)
    if "v" in unit.trace.tensors(unit.layer):
        yield output_errors(unit, run)
    if how.policy.name == "greedy":
        yield greedy_ratio(how, unit, run)


def greedy_ratio(how: Configured, unit: Unit, run: Run, most: int = SETS) -> Result:
    """The dynamic greedy's objective over the best set's, least over the steps (T9, C3).

    T9 promises opt/k for a function that stays; over time rows change it, so its assumption fails
    here and the ratio is a measurement. Tries all sets, hence for small units only (``most`` sets).
    """
    objective, n, k = str(how.values["objective"]), unit.n, run.k
    if n * math.comb(n, min(k, n)) > most:
        return Result("T9", Verdict.FAILS, None, {}, "too large to try all sets")
    rows = np.zeros((len(unit.heads), n, n), object)
    for t in range(n):
        rows[:, t, : t + 1] = unit.head_rows(t)
    rows = rows * Fraction(1, 2**24)
    scores = rows if objective == "coverage" else np.add.accumulate(rows, axis=1)
    shapes = {"mass": IDENTITY, "sqrt": SQRT, "log": LOG, "coverage": capped(Fraction(1, 2))}
    least, where = 1.0, None
    for t in range(max(run.prompt_len, k) - 1, n):
        now = scores[:, t, : t + 1]
        f = (
            FacilityLocation(now)
            if objective == "facility"
            else SharedCache(now, shapes[objective])
        )
        best = f.value(best_set(f, k))
        held = f.value(j for j in range(t + 1) if run.evicted_at[j] > t)
        ratio = float(held) / float(best) if best else 1.0
        if ratio < least:
            least, where = ratio, t
    note = "the objective changes with the rows; the ratio is measured"
    return Result("T9", Verdict.FAILS, where, {"ratio": least, "bound": 1 / k}, note)


def _against(best: Any, history: History) -> Result:
    """T6 of a run: it keeps at most what the optimum is bounded by. best: one unit and budget."""
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


def _of_optimum(best: Any, history: History, rows: Rows) -> Iterator[Result]:
    """T6: the schedule keeps what is claimed, recomputed here; T6c: its prices bound the rest."""
    whole, claimed, k = int(best.mass), int(best.kept), history.k
    kept = whole - history.lost
    numbers = {"recall": kept / whole if whole else math.nan}
    right = kept == claimed and history.within
    yield Result("T6", Verdict.HOLDS if right else Verdict.VIOLATED, None, numbers)
    prices = np.rint(np.ldexp(best.price.values, 24)).astype(np.int64)
    found = checks.dual_certificate(rows, k, prices, kept, history.prompt_len)
    numbers = {
        "recall": kept / whole if whole else math.nan,
        "ratio": 1.0 - found.numbers["gap"],
        "gap": found.numbers["gap"],
    }
    yield dataclasses.replace(found, numbers=numbers)


def output_errors(unit: Unit, run: Run, most: int = OUTPUT_STEPS) -> Result:
    """T5 at up to `most` evenly spread decode steps of a run, every head.

    The first violation as it is; otherwise numbers: error and bound where the error is largest,
    recall there, and used, the largest error / bound. UserError when values are not recorded.
    """
    values = unit.values()
    per_value = len(unit.heads) // len(unit.kv)
    steps = np.unique(np.linspace(run.prompt_len, unit.n - 1, most).astype(int))
    worst: Result | None = None
    used = 0.0
    for t in steps[steps >= run.prompt_len].tolist():
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
        return Result("T5", Verdict.VACUOUS, note="no step keeps any mass")
    return dataclasses.replace(worst, numbers={**worst.numbers, "used": used})


def violations(lines: Iterable[Line]) -> list[Line]:
    """The lines that say "violated": none, unless a theorem or a program is wrong."""
    return [line for line in lines if line.result.verdict == Verdict.VIOLATED]


def write_counterexample(
    trace: Trace, line: Line, path: str | os.PathLike[str], *, share: str = "group"
) -> Path:
    """Save the unit of a line as a trace of its own, with what was found in its provenance.

    Returns the folder. UserError when it exists already or the trace has no such unit.
    """
    here = [u for u in trace.units(share) if (u.layer, u.index) == (line.layer, line.unit)]
    if not here:
        raise UserError(f"trace {trace.name}: no unit {line.unit} in layer {line.layer} ({share})")
    unit = here[0]
    bits = np.concatenate([block.bits for block in unit.blocks()], axis=1)
    found: Mapping[str, Any] = {k: v for k, v in line.record().items() if v is not None}
    alone = Trace.from_packed(
        bits[None],
        group_size=len(unit.heads),
        prompt_len=trace.prompt_len,
        layers=[unit.layer],
        name=f"counterexample-{line.result.guarantee}-{trace.name}",
        provenance={key: str(value) for key, value in found.items()} | {"trace": trace.name},
    )
    return alone.save(path)


def over_time(
    trace: Trace,
    policy: str,
    budget: float,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layer: int | None = None,
    unit: int = 0,
) -> dict[str, np.ndarray]:
    """The series behind the lines of one run, for plots: arrays over the steps i = max(p, k) - 1 …

    step; ratio f_i(S_i)/opt_i; t2, t3 and sharp, the bounds of T2 and T3 over opt_i; certificate
    and clipped, the products of T4; alpha, what the paper's theorem needs because of step i, 10 n
    times the larger of theta_i and gamma_i; late, missed and inflated, the terms of the bounds
    over opt_i (late is the post-eviction mass). layer: a model layer (default: the first); unit:
    its number in the layer.
    """
    which = trace.layers[0] if layer is None else layer
    found = replay(
        trace,
        policy,
        budget,
        prompt_len=prompt_len,
        share=share,
        engine=engine,
        layers=[which],
    )
    units = {u.index: u for u in trace.units(share) if u.layer == which}
    if unit not in units:
        raise UserError(f"trace {trace.name}: no unit {unit} in layer {which} ({share})")
    k = int(found.budget.values[0])
    gone = found.evicted_at.values[0, 0, list(units).index(unit), 0].astype(np.int64)
    run = Run(gone, k, decode_start(trace, prompt_len))
    history = follow_all(Rows.of_unit(units[unit]), [run])[0]
    value, opt = history.value.astype(float), history.opt.astype(float)
    before = history.before.astype(float)
    growth, best = np.ones(history.steps), np.ones(history.steps)
    growth[1:], best[1:] = before[1:] / value[:-1], opt[1:] / opt[:-1]
    start = value[:1] / opt[:1]
    theta, gamma = np.maximum(0, 1 - growth), np.maximum(0, 1 - 1 / best)
    multiply = np.multiply.accumulate
    return {
        "step": np.arange(history.first, history.first + history.steps),
        "ratio": value / opt,
        "t2": (opt - history.late) / opt,
        "t3": (opt - history.late - history.missed) / opt,
        "sharp": (opt - history.late - history.inflated) / opt,
        "certificate": start * multiply(growth / best),
        "clipped": start * multiply(np.minimum(1, growth) * np.minimum(1, 1 / best)),
        "alpha": 10 * trace.n * np.maximum(theta, gamma),
        "late": history.late / opt,
        "inflated": history.inflated / opt,
        "missed": history.missed / opt,
    }
