"""The borders of every verdict: histories written by hand that miss a statement by one, at a step.

The drawn runs of test_guarantees.py show that what is proved holds. These show that the checks
would say so if it did not, at the first step where it breaks, and not a step or a unit later.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import statements
from statements import optimum as formulations

from h2osim.guarantees import checks
from h2osim.guarantees.findings import against, of_optimum
from h2osim.guarantees.history import History, Rows, Schedule, follow
from h2osim.guarantees.results import Verdict

FIRST, STEPS = 1, 4


def history(**series: Any) -> History:
    """Steps 1 ... 4 of a cache of two tokens that is the top k throughout, but for `series`."""
    rows = np.tril(np.ones((5, 5), np.int64))
    made = follow(Rows.of(rows), Schedule(np.array([2, 3, 4, 5, 5]), 2, 1))
    same: dict[str, Any] = {
        name: np.array([10, 10, 10, 10]) for name in ("value", "before", "opt", "worst")
    }
    same |= {name: np.zeros(STEPS, np.int64) for name in ("late", "missed")}
    same |= {name: np.zeros(STEPS) for name in ("late_share", "inflated", "surplus")}
    same |= {"same": np.ones(STEPS, bool), "returned": np.zeros(STEPS, bool), "within": True}
    return replace(made, **{**same, **{name: np.array(s) for name, s in series.items()}})


def test_the_history_by_hand_is_fine() -> None:
    made = history()
    assert (made.first, made.steps) == (FIRST, STEPS)
    for check in (checks.exactness, checks.post_eviction_mass, checks.drift_certificate):
        assert check(made).verdict == Verdict.HOLDS
    assert checks.cached_scores(made, rounded=False).verdict == Verdict.HOLDS
    assert checks.paper_theorem(made, 5).verdict == Verdict.HOLDS


def marks(*steps: int) -> np.ndarray:
    return np.isin(np.arange(FIRST, FIRST + STEPS), steps)


@pytest.mark.parametrize(
    ("returned", "inexact", "verdict", "step"),
    [
        ((), (), Verdict.HOLDS, None),
        ((2, 4), (2,), Verdict.FAILS, 2),
        ((3,), (2,), Verdict.VIOLATED, 2),
        ((2,), (3,), Verdict.VIOLATED, 2),
        ((), (3,), Verdict.VIOLATED, 3),
        ((4,), (), Verdict.VIOLATED, 4),
    ],
)
def test_t1_first_failures_agree(
    returned: tuple[int, ...], inexact: tuple[int, ...], verdict: Verdict, step: int | None
) -> None:
    found = checks.exactness(history(returned=marks(*returned), same=~marks(*inexact)))
    assert (found.verdict, found.step) == (verdict, step)


def test_t2_and_t3_by_one_at_a_step_in_between() -> None:
    for check in (checks.post_eviction_mass, lambda h: checks.cached_scores(h, rounded=False)):
        found = check(history(value=[10, 6, 5, 10], late=[0, 4, 4, 0]))
        # it is the top k itself, not some other set, that finds this out
        assert (found.verdict, found.step, found.note) == (Verdict.VIOLATED, 3, "")
    missing = history(value=[10, 6, 5, 10], late=[0, 2, 2, 0], missed=[0, 2, 3, 3])
    worst, inflated = missing.value + missing.missed, missing.missed.astype(float)
    fine = replace(missing, worst=worst, inflated=inflated)
    assert checks.cached_scores(fine, rounded=False).verdict == Verdict.HOLDS
    other = replace(fine, worst=fine.worst + np.array([0, 0, 1, 0]))
    found = checks.cached_scores(other, rounded=False)
    assert (found.verdict, found.step) == (Verdict.VIOLATED, 3)
    assert found.note == "for a set other than the top k"


def test_t4_a_step_that_loses_is_named_wherever_it_is() -> None:
    for step in range(FIRST, FIRST + STEPS):
        before = np.full(STEPS, 10)
        before[step - FIRST] = 11
        found = checks.drift_certificate(history(before=before))
        assert (found.verdict, found.step) == (Verdict.VIOLATED, step)
        found = checks.drift_certificate(history(before=before), "outside")
        assert (found.verdict, found.step) == (Verdict.FAILS, step)
    assert checks.drift_certificate(history(), "outside").verdict == Verdict.HOLDS


@pytest.mark.parametrize(("loss", "verdict"), [(1, Verdict.FAILS), (0, Verdict.HOLDS)])
def test_alpha_of_one_from_what_is_lost_between_steps(loss: int, verdict: Verdict) -> None:
    """theta_i = 1 - f_i(S_{i-1}) / f_{i-1}(S_{i-1}) of exactly 1/(10 n) needs alpha = 1."""
    n = 5
    kept = np.array([10 * n, 10 * n, 10 * n - loss, 10 * n - loss])
    found = checks.paper_theorem(history(value=kept, before=kept, opt=kept), n)
    assert (found.verdict, found.step) == (verdict, 3 if loss else None)


@pytest.mark.parametrize("name", ["assignment_value", "row_by_row_values", "path_values"])
def test_t6_each_formulation_counts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows.of(np.tril(np.arange(1, 17).reshape(4, 4)))
    assert statements.optimum.offline_optimum(rows, 2).verdict == Verdict.HOLDS
    real = getattr(formulations, name)

    def off(*args: Any) -> Any:
        found = real(*args)
        return [value + 1 for value in found] if isinstance(found, list) else found + 1

    monkeypatch.setattr(formulations, name, off)
    assert statements.optimum.offline_optimum(rows, 2).verdict == Verdict.VIOLATED


def test_t6_the_linear_program_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Rows.of(np.tril(np.arange(1, 17).reshape(4, 4)))
    value, prices = formulations.interval_program(rows, 2)
    monkeypatch.setattr(formulations, "interval_program", lambda *_: (value + 1e-3, prices))
    assert statements.optimum.offline_optimum(rows, 2).verdict == Verdict.VIOLATED


def test_t6b_gains_are_compared_with_the_one_before() -> None:
    for optima, step in (([0, 5, 9, 10, 12], 4), ([0, 1, 3], 2), ([4, 3], 1), ([0, 0, 1], 2)):
        found = checks.concave_in_budget(optima)
        assert (found.verdict, found.step) == (Verdict.VIOLATED, step)
    assert checks.concave_in_budget([0, 5, 9, 10, 11]).verdict == Verdict.HOLDS
    assert checks.concave_in_budget([0, 9, 11], [0, 2, 3]).verdict == Verdict.HOLDS
    assert checks.concave_in_budget([0, 3, 5], [0, 2, 3]).verdict == Verdict.VIOLATED


@pytest.mark.parametrize(
    ("more", "within", "verdict"),
    [(0, True, Verdict.HOLDS), (1, True, Verdict.VIOLATED), (0, False, Verdict.FAILS)],
)
def test_t6_of_a_run_is_held_to_the_bound(more: int, within: bool, verdict: Verdict) -> None:
    made = replace(history(), lost=10, within=within)
    best = SimpleNamespace(mass=100, kept=80, bound=90 - more)
    assert against(best, made).verdict == verdict


@pytest.mark.parametrize(
    ("claimed", "within", "verdict"),
    [
        (90, True, Verdict.HOLDS),
        (89, True, Verdict.VIOLATED),
        (91, True, Verdict.VIOLATED),
        (90, False, Verdict.VIOLATED),
    ],
)
def test_t6_of_the_optimum_keeps_what_it_claims_within_the_budget(
    claimed: int, within: bool, verdict: Verdict
) -> None:
    made = replace(history(), lost=10, within=within)
    price = SimpleNamespace(values=np.zeros(5))
    best = SimpleNamespace(mass=100, kept=claimed, price=price)
    rows = Rows.of(np.tril(np.ones((5, 5), np.int64)))
    assert next(of_optimum(best, made, rows)).verdict == verdict


def test_t6c_a_bound_is_met_or_missed_by_one() -> None:
    rows = Rows.of(np.tril(np.full((4, 4), 7)))
    prices = np.array([0, 3, 2, 1])
    bound = checks.optimum.dual_value(rows, 2, prices)
    assert checks.dual_certificate(rows, 2, prices, bound).verdict == Verdict.HOLDS
    assert checks.dual_certificate(rows, 2, prices, bound + 1).verdict == Verdict.VIOLATED
    assert checks.dual_certificate(rows, 2, -prices, 0).verdict == Verdict.FAILS
