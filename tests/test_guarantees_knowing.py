"""M2 to M5, M7: chance, recall, the future, predictions of it, and the past that decides alone."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import statements
from guarantee_cases import matrices, refuted, rows_of, runs
from hypothesis import given
from hypothesis import strategies as st
from statements.online import needle_rows, needle_unit, random_rank_value
from statements.optimum import (
    assignment_schedule,
    assignment_value,
    belady_rows,
    brute_force_value,
    schedule_value,
)
from statements.simulating import simulate
from strategies import examples

from h2osim.guarantees import Verdict, checks
from h2osim.guarantees.history import Rows, Schedule
from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace

# --- M2 ------------------------------------------------------------------------------------------


@examples(25)
@given(runs(max_n=5))
def test_m2_holds(case: tuple[np.ndarray, int, int]) -> None:
    matrix, k, p = case
    verdict = statements.online.random_rank(Rows.of(matrix), k, p).verdict
    assert verdict == (Verdict.HOLDS if 1 <= k < matrix.shape[1] else Verdict.FAILS)


def test_m2_expectation_over_all_orders() -> None:
    """The policy itself: its mean recall over many seeds is the formula's, up to chance."""
    scores = np.zeros((1, 7, 7))
    for t in range(7):
        scores[0, t, : t + 1] = 1 / 8
        scores[0, t, (3 * t) % (t + 1)] += (8 - t - 1) / 8
    trace = Trace.from_scores(scores, prompt_len=2)
    expected = random_rank_value(Rows.of_unit(trace.units()[0]), 3, 2) / 2**24 / 5
    seeds = [f"random:seed={seed}" for seed in range(200)]
    found = replay(trace, seeds, 3, engine="naive").recall.values.ravel()
    spread = float(found.std()) / math.sqrt(len(found))
    assert spread > 0
    assert abs(float(found.mean()) - float(expected)) < 5 * spread
    # and exactly, where every order can be gone through, with budgets of nothing and of all
    rows = Rows.of_unit(trace.units()[0])
    for k in (0, 1, 3, 6, 7, 9):
        assert statements.online.random_rank(rows, k, 2).verdict != Verdict.VIOLATED


def test_m2_can_fail() -> None:
    # the needle of the proof: exactly k/(n-1) of one slot's optimum, and of any number of slots
    rows = needle_rows(4, 2)
    for k in range(1, 5):
        found = statements.online.random_rank(rows, k, 4)
        assert found.numbers["expected"] == k / 4
        assert random_rank_value(rows, k, 4) * 4 == k * brute_force_value(rows, 1, 4)
    # a fixed set is worth nothing there
    first = Schedule(np.array([5, 5, 3, 3, 5]), 2, 4)
    assert schedule_value(rows, first.evicted_at, 4) == 0
    # no better constant: k/(n-1) and a little is refuted
    small = needle_rows(4, 2, eta=1)
    more = random_rank_value(small, 1, 4) / brute_force_value(small, 1, 4)
    assert Fraction(1, 4) < more < Fraction(1, 4) + Fraction(4, needle_unit(4))
    with pytest.raises(ValueError, match="too many orders"):
        statements.online.random_rank(needle_rows(8, 1), 2)


# --- M3 ------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=9))
def test_m3_holds(row: list[tuple[int, bool]]) -> None:
    weights, kept = [w for w, _ in row], [inside for _, inside in row]
    mass = sum(w for w, inside in row if inside)
    result = statements.recall.what_recall_is(weights, kept)
    assert result.verdict == (Verdict.HOLDS if mass else Verdict.FAILS)
    if mass:  # the first one in fractions
        whole = Fraction(sum(weights))
        distance = sum(abs(w / whole - (Fraction(w, mass) if inside else 0)) for w, inside in row)
        assert distance / 2 == 1 - mass / whole


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=6),
    st.integers(1, 5),
    st.lists(st.integers(-4, 4), min_size=6, max_size=6),
)
def test_m3_no_values_are_worse(weights: list[int], k: int, values: list[int]) -> None:
    n = len(weights)
    kept = np.arange(n) < min(k, n)
    mass, whole = sum(w for w, inside in zip(weights, kept, strict=True) if inside), sum(weights)
    if not mass:
        return
    v = np.array(values[:n]) / 4
    w = np.array(weights)
    error = abs(w @ v / whole - w[kept] @ v[kept] / mass)
    # both sides are float64 sums of a few numbers
    assert error <= statements.recall.what_recall_is(weights, kept).numbers["error"] + 1e-12


def test_m3_can_fail() -> None:
    # known values: the token of less recall has the smaller error
    w, v = np.array([0.4, 0.3, 0.3]), np.array([[1.0], [-1.0], [0.5]])
    heavy = checks.output_error(w, v, [True, False, False]).numbers
    light = checks.output_error(w, v, [False, False, True]).numbers
    # float64 sums and a norm
    assert (heavy["recall"], light["recall"]) == pytest.approx((0.4, 0.3))
    assert (heavy["error"], light["error"]) == pytest.approx((0.75, 0.25))
    # without renormalisation the worst error is half as large
    full, cut = np.array([0.5, 0.5]), np.array([0.5, 0.0])
    assert np.abs(full - cut).sum() == 0.5
    assert statements.recall.what_recall_is(full, [True, False]).numbers["error"] == 1.0
    assert statements.recall.what_recall_is([0.0, 1.0], [True, False]).verdict == Verdict.FAILS


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8).filter(lambda a: len(a) % 2 == 0))
def test_m3_zero_error_is_partition(numbers: list[int]) -> None:
    """Equal weights: a set without output error is a half of equal size and equal sum."""
    half = len(numbers) // 2
    subsets = list(itertools.combinations(range(len(numbers)), half))
    split = any(2 * sum(numbers[j] for j in s) == sum(numbers) for s in subsets)
    values = np.array(numbers, float)[:, None]
    weights = np.full(len(numbers), 1 / len(numbers))
    errors = [
        checks.output_error(weights, values, np.isin(np.arange(len(numbers)), s)).numbers["error"]
        for s in subsets
    ]
    # float64 sums of up to eight numbers below 10; an uneven split is off by 1/8 at least
    assert (min(errors) < 1e-12) == split


# --- M4 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 3, 4, 10, 40])
def test_m4_numbers(m: int) -> None:
    found = statements.optimum.no_belady_rule(m)
    assert found.verdict == Verdict.HOLDS
    # the formula in float64 against one rounding of the exact quotient
    assert found.numbers["ratio"] == pytest.approx((2 + m / (m + 1)) / (m + 1))
    if m <= 4:
        assert brute_force_value(belady_rows(m), 1) == (m + 1) ** 2


def test_m4_can_fail() -> None:
    assert statements.optimum.no_belady_rule(1).verdict == Verdict.VIOLATED  # both keep 5/2
    # the policy of the library does what the proof says
    m = 7  # an eighth is exact
    scores = np.zeros((1, m + 3, m + 3))
    rows = belady_rows(m)
    for t in range(m + 3):
        scores[0, t, : t + 1] = rows.head_rows(t)[0] / (m + 1)
    trace = Trace.from_scores(scores, prompt_len=1)
    gone = replay(trace, "future", 1).evicted_at.values.ravel()
    assert schedule_value(rows, gone) == 2 * (m + 1) + m
    # where everything comes in one row, future mass is the right order
    once = np.zeros((5, 5), dtype=int)
    once[4] = [3, 9, 1, 5, 0]
    for k in (1, 2, 3):
        best = sum(sorted(once[4])[::-1][:k])
        assert assignment_value(Rows.of(once), k, 4) == best


# --- M5 ------------------------------------------------------------------------------------------


@examples(60)
@given(st.data())
def test_m5_holds(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))
    sizes = {"min_n": n, "max_n": n, "max_heads": 1}
    truth, guess = data.draw(matrices(**sizes)), data.draw(matrices(**sizes))
    k, p = data.draw(st.integers(0, n + 1)), data.draw(st.integers(1, n))
    result = statements.optimum.prediction_error(Rows.of(truth), Rows.of(guess), k, p)
    assert result.verdict in {Verdict.HOLDS, Verdict.VACUOUS}
    again = statements.optimum.prediction_error(Rows.of(truth), Rows.of(truth), k, p)
    assert again.numbers.get("ratio", 1) == 1 or math.isnan(again.numbers["ratio"])


def test_m5_is_tight() -> None:
    before = ((1.0,), (0.5, 0.5))
    truth = rows_of(*before, (1.0, 0, 0))
    equal = statements.optimum.prediction_error(truth, rows_of(*before, (0.5, 0.5, 0)), 1, 2)
    assert equal.numbers["bound"] == 0  # the distance is the whole optimum
    wrong = statements.optimum.prediction_error(truth, rows_of(*before, (0.49, 0.51, 0)), 1, 2)
    assert wrong.numbers["ratio"] == 0  # and it is lost, once the choice is forced
    assert wrong.numbers["bound"] == -0.02


def test_m5_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    # half of the distance is not enough
    def half(case: tuple[np.ndarray, np.ndarray]) -> bool:
        truth, guess = (Rows.of(m) for m in case)
        if truth.n != guess.n:
            return True
        numbers = statements.optimum.prediction_error(truth, guess, 1).numbers
        if math.isnan(numbers["ratio"]):
            return True
        return numbers["ratio"] >= (1 + numbers["bound"]) / 2

    pairs = st.tuples(
        matrices(min_n=3, max_n=3, max_heads=1), matrices(min_n=3, max_n=3, max_heads=1)
    )
    refuted(pairs, half, shrink=False)
    # a schedule that is not the predicted optimum is found out, by the half that is counted
    before = ((1.0,), (0.5, 0.5))
    truth, guess = rows_of(*before, (1, 0, 0)), rows_of(*before, (0.75, 0.25, 0))

    def careless(rows: Rows, k: int, prompt_len: int = 1) -> np.ndarray:
        return np.array([3, 1, 3]) if rows is truth else np.array([1, 3, 3])

    monkeypatch.setattr("statements.optimum.assignment_schedule", careless)
    assert statements.optimum.prediction_error(truth, guess, 1, 2).verdict == Verdict.VIOLATED
    monkeypatch.undo()
    # and it has no such bound
    truth = rows_of((1.0,), (0.5, 0.5), (1.0, 0, 0))
    assert schedule_value(truth, np.array([1, 3, 3]), 2) == 0 < assignment_value(truth, 1, 2)
    assert assignment_schedule(truth, 1, 2).tolist() == [3, 1, 3]


# --- M7 ------------------------------------------------------------------------------------------


@st.composite
def heavy(draw: st.DrawFn) -> tuple[Rows, int, int, int]:
    """Rows that like the first tokens, so that the cache freezes sooner or later."""
    n, heads = draw(st.integers(3, 14)), draw(st.integers(1, 2))
    matrix = np.zeros((heads, n, n), dtype=np.int64)
    for head in range(heads):
        for t in range(n):
            favourite = draw(st.integers(0, t) | st.integers(0, min(t, 1)))
            share = draw(st.sampled_from([2, 3, 4]))
            matrix[head, t, favourite] += share
            matrix[head, t, t] += 4 - share
    recent = draw(st.integers(0, 2))
    k = draw(st.integers(recent + 1, recent + 3))
    return Rows.of(matrix), k, draw(st.integers(1, n)), recent


@examples(80)
@given(heavy(), st.sampled_from(["full", "cached"]))
def test_m7_holds(case: tuple[Rows, int, int, int], scores: str) -> None:
    rows, k, p, recent = case
    run = simulate(rows, k, p, scores=scores, recent=recent)
    result = checks.freezing(rows, run, recent, cached=scores == "cached")
    assert result.verdict in {Verdict.HOLDS, Verdict.FAILS}
    if result.verdict == Verdict.HOLDS and scores == "full":
        for t in range(int(result.step or 0) + 1, rows.n):  # who has left the window goes
            assert np.flatnonzero(run.evicted_at == t).tolist() == [t - recent]


def test_m7_is_tight() -> None:
    at = rows_of((1,), (0, 1))
    found = checks.freezing(at, simulate(at, 1), 0)
    assert (found.verdict, found.numbers["least"]) == (Verdict.FAILS, 1.0)
    assert simulate(at, 1).evicted_at.tolist() == [1, 2]  # exactly H(R+1) does not keep token 0
    above = rows_of((1,), (1, 0), (0, 0, 1), (0, 0, 0, 1))
    found = checks.freezing(above, simulate(above, 1), 0)
    assert (found.verdict, found.step) == (Verdict.HOLDS, 1)


def test_m7_can_fail() -> None:
    # with decay the residents forget: token 0 is frozen by its sum, and goes
    rows = rows_of((1,), (1, 0), (1, 0, 0), (0, 0, 0, 1))
    forgetting = Schedule(np.array([3, 1, 2, 4]), 1, 1)
    assert checks.freezing(rows, forgetting, 0).verdict == Verdict.VIOLATED

    # a threshold of R rows instead of R + 1 is not enough: token 0 has 1.5 and leaves
    rows = rows_of((1,), (0.5, 0.5), (0, 0, 1), (0, 0, 1, 0))
    run = simulate(rows, 2, recent=1)
    assert run.evicted_at.tolist() == [3, 2, 4, 4]
    found = checks.freezing(rows, run, 1)
    assert (found.verdict, found.numbers["least"]) == (Verdict.FAILS, 1.0)  # token 2 at the end
