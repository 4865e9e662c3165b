"""Checks every proved statement on a recorded trace: one line a unit, budget and statement.

The replays come from `h2osim.replay`; what they kept and missed is recomputed here from the rows
and the evictions alone. A verdict "violated" means a wrong theorem or a wrong program;
`write_counterexample` then saves the unit as a trace.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from h2osim.guarantees import checks
from h2osim.guarantees.findings import CACHED, against, of_optimum, of_run, outside_setting
from h2osim.guarantees.history import Rows, Schedule, follow_all
from h2osim.guarantees.results import Result, Verdict
from h2osim.optima.solving import optimum
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.text import parse, parse_all
from h2osim.replays.budgets import Budget, decode_start
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.support.given import whole_numbers
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace

POLICIES = ("h2o:recent=0,scores=full", "h2o:recent=0,scores=cached", "h2o")
"""What is verified by default: setting P of the proofs, the same on cached scores (T3), and H2O as
it is deployed (half of the budget recent, cached scores), which the theorems do not cover."""

OFFLINE = "offline optimum"
"""Stands where a line's policy does in the lines about the optimum itself (T6, T6b, T6c)."""


@dataclass(frozen=True)
class Line:
    """One finding. budget: tokens; None where the statement is about all budgets together."""

    policy: str
    layer: int
    unit: int
    label: str
    budget: int | None
    result: Result

    @property
    def slack(self) -> float | None:
        """How much more there is than the statement promises; None where it promises nothing.

        T6: how far a run is below the optimum, as a share; T6c: the gap between schedule and
        prices; T5: the bound less the error; else ratio less bound.
        """
        numbers = self.result.numbers
        if self.result.verdict not in (Verdict.HOLDS, Verdict.VACUOUS):
            return None
        if self.result.guarantee == "T6":
            return 1.0 - numbers["ratio"] if "ratio" in numbers else None
        if self.result.guarantee == "T6c":
            return numbers["gap"]
        if "bound" not in numbers:
            return None
        if "error" in numbers:
            return numbers["bound"] - numbers["error"]
        return numbers["ratio"] - numbers["bound"]

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


def verify(
    trace: Trace,
    policies: str | Policy | Configured | Sequence[str | Policy | Configured] = POLICIES,
    budgets: float | Sequence[Budget] = (0.05, 0.1, 0.2),
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
    for cached scores), T5 where values are recorded, M7 for accumulated attention, and T6, the
    attention kept against the offline optimum; per policy and unit T7 over the budgets. A policy
    outside a statement's setting gets "does not apply" and the numbers all the same. Last come the
    lines of the optimum itself: its schedule keeps what is claimed (T6) and its prices prove it
    best (T6c), per budget, and it is concave (T6b).

    Parameters are those of `h2osim.replay`; offline=False leaves the optimum out (it costs more
    than all the rest on long traces). Lines come policy by policy, layer by layer, unit by unit,
    budgets rising. UserError as in `replay`.
    """
    configured = {one.text: one for one in parse_all(policies)}
    chosen = list(configured)
    layers = whole_numbers("layers", layers)
    found = replay(
        trace,
        list(configured.values()),
        budgets,
        prompt_len=prompt_len,
        share=share,
        engine=engine,
        layers=layers,
        progress=progress,
    )
    if "slots" in found:
        raise UserError(
            "budgets: found some by unit; statements are about one budget for all units"
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
            (text, k): Schedule(gone.sel(policy=text, budget=k).values.astype(np.int64), k, p)
            for text in chosen
            for k in tokens
        }
        rows, here = Rows.of_unit(unit), None
        if best is not None:
            here = best.sel(layer=unit.layer, unit=unit.index)
            for k in tokens:
                left = here.evicted_at.sel(budget=k).values.astype(np.int64)
                runs[OFFLINE, k] = Schedule(left, k, p)
        histories = dict(zip(runs, follow_all(rows, list(runs.values())), strict=True))
        for text in chosen:
            how = configured[text]
            for k in tokens:
                results = list(of_run(how, histories[text, k], unit, runs[text, k]))
                if here is not None and not how.policy.readmits:
                    results.append(against(here.sel(budget=k), histories[text, k]))
                for result in results:
                    lines.append(Line(text, unit.layer, unit.index, unit.label, k, result))
            over = {k: runs[text, k].evicted_at for k in tokens}
            inside = how.inclusive(len(unit.heads))
            nested = checks.inclusion(over, "" if inside else "rank depends on the cache")
            lines.append(Line(text, unit.layer, unit.index, unit.label, None, nested))
        if here is not None:
            for k in tokens:
                for result in of_optimum(here.sel(budget=k), histories[OFFLINE, k], rows):
                    lines.append(Line(OFFLINE, unit.layer, unit.index, unit.label, k, result))
            concave = checks.concave_in_budget(here.kept.sel(budget=tokens).values.tolist(), tokens)
            if bool((here.kept == here.bound).all()):
                lines.append(Line(OFFLINE, unit.layer, unit.index, unit.label, None, concave))
    order = [*chosen, OFFLINE]
    return sorted(lines, key=lambda line: order.index(line.policy))  # stable: units stay in order


def counts(lines: Iterable[Line]) -> dict[str, int]:
    """How many lines hold (vacuously or not), do not apply, are violated."""
    verdicts = [line.result.verdict for line in lines]
    return {
        "hold": verdicts.count(Verdict.HOLDS) + verdicts.count(Verdict.VACUOUS),
        "do not apply": verdicts.count(Verdict.FAILS),
        "violated": verdicts.count(Verdict.VIOLATED),
    }


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
    found: Mapping[str, Any] = {k: v for k, v in line.record().items() if v is not None}
    alone = Trace.from_packed(
        unit.all_bits()[None],
        group_size=len(unit.heads),
        prompt_len=trace.prompt_len,
        layers=[unit.layer],
        name=f"counterexample-{line.result.guarantee}-{trace.name}",
        provenance={key: str(value) for key, value in found.items()} | {"trace": trace.name},
    )
    return alone.save(path)


def over_time(
    trace: Trace,
    policy: str | Policy | Configured,
    budget: Budget,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layer: int | None = None,
    unit: int = 0,
    proved: bool = False,
) -> dict[str, np.ndarray]:
    """The series behind the lines of one run, for plots: arrays over the steps i = max(p, k) - 1 …

    step; ratio f_i(S_i)/opt_i; t2, t3 and sharp, the bounds of T2 and T3 over opt_i; certificate
    and clipped, the products of T4; alpha, what the paper's theorem needs because of step i, 10 n
    times the larger of theta_i and gamma_i; late, missed and inflated, the terms of the bounds
    over opt_i (late is the post-eviction mass). layer: a model layer (default: the first); unit:
    its number in the layer. proved: leave out the bounds that do not apply to this policy.
    """
    which = trace.layers[0] if layer is None else layer
    found = replay(
        trace,
        policy,
        [budget],
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
    run = Schedule(gone, k, decode_start(trace, prompt_len))
    history = follow_all(Rows.of_unit(units[unit]), [run])[0]
    value, opt = history.value.astype(float), history.opt.astype(float)
    before = history.before.astype(float)
    growth, best = np.ones(history.steps), np.ones(history.steps)
    growth[1:], best[1:] = before[1:] / value[:-1], opt[1:] / opt[:-1]
    start = value[:1] / opt[:1]
    theta, gamma = np.maximum(0, 1 - growth), np.maximum(0, 1 - 1 / best)
    multiply = np.multiply.accumulate
    series = {
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
    outside = outside_setting(parse(policy), k)
    beyond = {"": ("t3", "sharp"), CACHED: ("t2", "certificate", "clipped")}
    everything = ("t2", "t3", "sharp", "certificate", "clipped")
    for name in beyond.get(outside, everything) if proved else ():
        del series[name]
    return series
