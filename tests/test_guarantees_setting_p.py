"""T1 to T5: accumulated attention, what is near it, and the attention output."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from guarantee_cases import (
    ALLOWED,
    OUTSIDE,
    found_out,
    history_of,
    ratio,
    refuted,
    rows_of,
    runs,
    whole,
)
from hypothesis import given
from hypothesis import strategies as st
from statements.paper import trap_rows
from statements.simulating import simulate

from h2osim.attention.fixed_point import ONE
from h2osim.guarantees import Verdict, checks
from h2osim.guarantees.history import Rows, Schedule, follow


@given(runs())
def test_t1_holds(case: tuple[np.ndarray, int, int]) -> None:
    result = checks.exactness(history_of(case))
    assert result.verdict in ALLOWED
    if result.verdict == Verdict.HOLDS:
        assert result.numbers["ratio"] == 1
    if result.verdict == Verdict.FAILS:
        assert result.numbers["returns"] > 0


def test_t1_can_fail() -> None:
    # equal values do not mean that nothing returned (ties): the converse of the corollary is wrong
    def values_say_the_same(case: tuple[np.ndarray, int, int]) -> bool:
        history = history_of(case)
        return bool(np.all(history.value == history.opt)) == (not history.returned.any())

    refuted(runs(max_heads=1, max_n=5), values_say_the_same)
    tied = history_of((whole(np.array([[[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0]]])), 1, 1))
    assert (tied.value[-1], tied.returned[-1]) == (tied.opt[-1], True)
    # a protected window passed off as setting P is found out
    for how in OUTSIDE:
        found_out(checks.exactness, how)
    cached = (0.7, 0.3), *((1.0,),) * 4, (0, 0, 0.2, 0.2, 0.2, 0.2, 0.2)
    rows = rows_of((1.0,), *cached)
    result = checks.exactness(follow(rows, simulate(rows, 2, scores="cached")))
    assert (result.verdict, result.step) == (Verdict.VIOLATED, 6)
    assert checks.exactness(follow(rows, simulate(rows, 2))).verdict == Verdict.HOLDS


@given(runs())
def test_t2_holds(case: tuple[np.ndarray, int, int]) -> None:
    history = history_of(case)
    result = checks.post_eviction_mass(history)
    assert result.verdict in {Verdict.HOLDS, Verdict.VACUOUS}
    if history.steps:
        rho = history.late_share
        assert np.all(history.value >= (1 - rho) * history.opt - 1)
        # two quotients, each rounded once
        assert result.numbers["ratio"] >= 1 - result.numbers["rho"] - 1e-12


@given(runs(), st.data())
def test_t2_of_any_set(case: tuple[np.ndarray, int, int], data: st.DataObject) -> None:
    """The statement for a drawn set O, written out; `History.worst` is at least its right side."""
    matrix, k, p = case
    rows, n = Rows.of(matrix), matrix.shape[1]
    run = simulate(rows, k, p)
    history = follow(rows, run)
    if not history.steps:
        return
    i = data.draw(st.integers(history.first, n - 1))
    chosen = data.draw(st.sets(st.integers(0, i), max_size=k))
    summed = np.tril(matrix.sum(axis=0))
    score = summed[: i + 1].sum(axis=0)
    left = {o: run.evicted_at[o] for o in chosen if run.evicted_at[o] <= i}
    late = sum(int(summed[gone + 1 : i + 1, o].sum()) for o, gone in left.items())
    right = int(score[sorted(chosen)].sum()) - late
    at = i - history.first
    assert history.value[at] >= history.worst[at] >= right
    assert history.worst[at] >= history.opt[at] - history.late[at]


@given(runs(min_n=2, max_n=6), st.integers(0, 1))
def test_the_worst_set_is_the_worst(case: tuple[np.ndarray, int, int], recent: int) -> None:
    """`History.worst` of any run, setting P or not, against all sets of at most k tokens."""
    matrix, k, p = case
    rows = Rows.of(matrix)
    run = simulate(rows, k, p, recent=recent)
    history = follow(rows, run)
    summed = np.tril(matrix.sum(axis=0))
    for at in range(history.steps):
        i = history.first + at
        known = [int(summed[: min(gone, i) + 1, o].sum()) for o, gone in enumerate(run.evicted_at)]
        sets = itertools.combinations(range(i + 1), min(k, i + 1))
        assert history.worst[at] == max(sum(known[o] for o in chosen) for chosen in sets)


def test_t2_can_fail() -> None:
    def half_of_it(case: tuple[np.ndarray, int, int]) -> bool:
        h = history_of(case)
        return bool(np.all(2 * h.value >= 2 * h.opt - h.late))

    assert refuted(runs(max_n=6), half_of_it)[0].shape[1] <= 3
    for how in OUTSIDE:
        history = history_of(found_out(checks.post_eviction_mass, how), **how)
        assert checks.post_eviction_mass(history, "outside").verdict == Verdict.FAILS
    # a run that only a set other than the top k finds out
    other: dict[str, Any] = {
        "value": np.array([5]),
        "opt": np.array([9]),
        "late": np.array([4]),
        "worst": np.array([6]),
        "late_share": np.array([1.0]),
    }
    history = replace(follow(rows_of((1,)), simulate(rows_of((1,)), 1)), **other)
    result = checks.post_eviction_mass(history)
    assert (result.verdict, result.note) == (Verdict.VIOLATED, "for a set other than the top k")
    keep_first = follow(rows_of((1,), (0, 3), (0, 1)), Schedule(np.array([3, 1, 2]), 1, 1))
    assert checks.post_eviction_mass(keep_first).verdict == Verdict.VIOLATED


def test_t2_is_tight() -> None:
    rows = rows_of((1,), (0, 1), (1, 0))
    history = follow(rows, simulate(rows, 1))
    assert history.late[-1] == 100
    assert history.value[-1] == history.opt[-1] - history.late[-1] == 100


@given(runs(max_n=10))
def test_t3_holds(case: tuple[np.ndarray, int, int]) -> None:
    history = history_of(case, scores="cached")
    assert checks.cached_scores(history, rounded=False).verdict in {Verdict.HOLDS, Verdict.VACUOUS}
    assert checks.cached_scores(history).verdict in {Verdict.HOLDS, Verdict.VACUOUS}


@given(runs(max_n=9), st.data())
def test_t3_of_any_set(case: tuple[np.ndarray, int, int], data: st.DataObject) -> None:
    """Both bounds for a drawn set O, in fractions, by scores that are added up here again."""
    matrix, k, p = case
    rows, n = Rows.of(matrix), matrix.shape[1]
    run = simulate(rows, k, p, scores="cached")
    history = follow(rows, run)
    if not history.steps:
        return
    i = data.draw(st.integers(history.first, n - 1))
    chosen = data.draw(st.sets(st.integers(0, i), max_size=k))
    full, shown = np.zeros(n, object), np.zeros(n, object)
    full_then, shown_then = full.copy(), shown.copy()
    missed = 0
    for t in range(i + 1):
        seen = run.evicted_at[: t + 1] >= t
        for row in rows.head_rows(t).tolist():
            whole_row, mass = sum(row), sum(x for x, here in zip(row, seen, strict=True) if here)
            missed += whole_row - mass if t >= p else 0
            for j, x in enumerate(row):
                full[j] += x
                if seen[j] and t < p:
                    shown[j] += x
                elif seen[j] and mass:
                    shown[j] += Fraction(x * whole_row, mass)
        out = [j for j in range(t + 1) if run.evicted_at[j] == t]
        full_then[out], shown_then[out] = full[out], shown[out]
    kept = {j for j in range(i + 1) if run.evicted_at[j] > i}
    right = sum(full[o] if o in kept else full_then[o] for o in chosen)
    assert sum(full[s] for s in kept) >= right - missed
    # the sharp form: what was evicted did not look better than what stayed
    assert sum(shown_then[o] for o in chosen - kept) <= sum(shown[s] for s in kept - chosen)
    at = i - history.first
    assert history.surplus[at] <= 1e-9 * max(1, history.opt[at])
    assert history.worst[at] >= right


def test_t3_slack_is_that_of_its_rounding() -> None:
    """A step below the bound by more than 2 k (H i)^2 2^-52 of a row is a violation."""
    rows = rows_of((1,), (0, 1), (0.5, 0, 0.5))
    tight = follow(rows, simulate(rows, 1, scores="cached"))
    far = 2**20
    series = {name: getattr(tight, name) * far for name in ("value", "opt", "late", "missed")}
    series |= {"worst": tight.worst * far, "inflated": tight.inflated * far}
    heads = 8192  # so many that the rounding of three steps is not nothing
    scaled = replace(tight, **series, surplus=tight.surplus * 0, heads=heads)
    allowed = math.floor(2 * 1 * (heads * 3) ** 2 * 2.0**-52 * ONE)
    assert allowed == 4
    for short, verdict in ((0, Verdict.HOLDS), (allowed, Verdict.HOLDS), (5, Verdict.VIOLATED)):
        value = scaled.value.copy()
        value[-1] -= short
        assert checks.cached_scores(replace(scaled, value=value)).verdict == verdict
    value = scaled.value.copy()
    value[-1] -= 1
    exact = checks.cached_scores(replace(scaled, value=value), rounded=False)
    assert exact.verdict == Verdict.VIOLATED


def test_t3_can_fail() -> None:
    # a window keeps the newest token, which shows 0, and drops one that shows 2
    rows = rows_of((1,), (1, 0))
    history = follow(rows, simulate(rows, 1, scores="cached", recent=1))
    assert history.surplus.tolist() == [0, 200]
    fine = follow(rows, simulate(rows, 1, scores="cached"))
    assert checks.cached_scores(fine).verdict == Verdict.HOLDS
    shown = checks.cached_scores(replace(fine, surplus=fine.surplus + 1))
    assert (shown.verdict, shown.note) == (Verdict.VIOLATED, "for a set other than the top k")

    def three_quarters(case: tuple[np.ndarray, int, int]) -> bool:
        h = history_of(case, scores="cached")
        return bool(np.all(4 * h.value >= 4 * (h.opt - h.late) - 3 * h.missed))

    found = refuted(runs(max_n=6), three_quarters)
    assert found[0].shape[1] <= 4
    found_out(lambda h: checks.cached_scores(h, rounded=False), {"scores": "cached", "recent": 1})


def test_t3_is_tight() -> None:
    rows = rows_of((1,), (0, 1), (0.5, 0, 0.5))
    h = follow(rows, simulate(rows, 1, scores="cached"))
    assert (h.value[-1], h.opt[-1], h.late[-1], h.missed[-1]) == (50, 150, 50, 50)
    assert h.value[-1] == h.opt[-1] - h.late[-1] - h.missed[-1]
    assert h.inflated[-1] == h.missed[-1]


@given(runs(max_n=10))
def test_t3_inflation_is_part_of_the_missed_mass(case: tuple[np.ndarray, int, int]) -> None:
    history = history_of(case, scores="cached")
    # inflated is a float64 sum of what are integers in missed
    assert np.all(history.inflated <= history.missed * (1 + 1e-12) + 1e-6)


def test_t3_sharp_bound_can_fail() -> None:
    def half_of_it(case: tuple[np.ndarray, int, int]) -> bool:
        h = history_of(case, scores="cached")
        return bool(np.all(h.value >= h.opt - h.late - h.inflated / 2 - 1e-6))

    refuted(runs(max_n=6), half_of_it)


@given(runs())
def test_t4_holds(case: tuple[np.ndarray, int, int]) -> None:
    result = checks.drift_certificate(history_of(case))
    assert result.verdict in {Verdict.HOLDS, Verdict.VACUOUS}
    if "bound" in result.numbers:
        numbers = result.numbers
        # products of up to n rounded ratios
        assert numbers["clipped"] <= numbers["bound"] * (1 + 1e-9) <= numbers["ratio"] * (1 + 1e-8)


def test_t4_can_fail() -> None:
    def without_growth_of_the_optimum(case: tuple[np.ndarray, int, int]) -> bool:
        h = history_of(case)
        return bool(np.all(h.value[1:] * h.opt[:-1] >= h.value[:-1] * h.opt[1:]))

    assert refuted(runs(max_n=6), without_growth_of_the_optimum)
    for how in OUTSIDE:
        found_out(checks.drift_certificate, how)
    rows = rows_of((1,), (0, 1), (0.5, 0, 0.5))  # the numbers of the proof file
    h = follow(rows, simulate(rows, 1, scores="cached"))
    assert (h.before[-1] / h.value[-2], h.opt[-1] / h.opt[-2], ratio(h)) == (1, 1.5, 1 / 3)


def test_t4_is_useful_where_the_clipped_product_is_not() -> None:
    trap = checks.drift_certificate(
        follow(trap_rows(5)[0], Schedule(np.array([5, 1, 2, 3, 4]), 1, 1))
    )
    # a product of rounded ratios; the others are given by three digits
    assert trap.numbers["bound"] == pytest.approx(trap.numbers["ratio"])
    assert trap.numbers["ratio"] == pytest.approx(0.471, abs=1e-3)
    assert trap.numbers["clipped"] == pytest.approx(0.294, abs=1e-3)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        matrix = np.zeros((200, 200))
        for t in range(200):
            matrix[t, : t + 1] = rng.dirichlet(np.full(t + 1, 0.05))
        numbers = checks.drift_certificate(history_of((whole(matrix[None]), 20, 1))).numbers
        assert 0.88 < numbers["bound"] <= numbers["ratio"] + 1e-12 < 0.96
        assert numbers["clipped"] < 0.3


@st.composite
def outputs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    n, d = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    entry = st.integers(-6, 6)
    weights = np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)), float)
    values = np.array(draw(st.lists(entry, min_size=n * d, max_size=n * d)), float).reshape(n, d)
    kept = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return weights, values, kept


@given(outputs())
def test_t5_holds(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    weights, _, kept = case
    result = checks.output_error(*case)
    expected = ALLOWED if weights[kept].sum() else {Verdict.FAILS}
    assert result.verdict in expected


def test_t5_can_fail() -> None:
    def distance_to_the_full_output(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> bool:
        weights, values, kept = case
        if not weights[kept].sum():
            return True
        numbers = checks.output_error(*case).numbers
        away = np.linalg.norm(values[~kept] - weights @ values / weights.sum(), axis=1)
        # CLOSE of guarantees/results.py
        return numbers["error"] <= (1 - numbers["recall"]) * away.max(initial=0) + 1e-9

    refuted(outputs(), distance_to_the_full_output)
    tight = checks.output_error([0.5, 0.5], [[0], [1]], [True, False])
    assert tight.numbers["error"] == tight.numbers["bound"] == 0.5
    loose = checks.output_error([0.5, 0.25, 0.25], [[0], [1], [-1]], [True, False, False])
    assert (loose.numbers["error"], loose.numbers["bound"]) == (0, 0.5)
