"""T6, T6b and T6c: the offline optimum, its concavity and its prices."""

from __future__ import annotations

import numpy as np
import pytest
import statements
from guarantee_cases import (
    matrices,
    refuted,
    rows_of,
    runs,
)
from hypothesis import given
from hypothesis import strategies as st
from statements.optimum import (
    assignment_value,
    brute_force_value,
    interval_program,
    path_values,
    row_by_row_values,
)
from statements.simulating import simulate
from strategies import examples

from h2osim.attention.fixed_point import ONE
from h2osim.guarantees import Verdict, checks
from h2osim.guarantees.checks.optimum import dual_value
from h2osim.guarantees.history import Rows


def attended(matrix: np.ndarray, k: int, p: int) -> int:
    rows = Rows.of(matrix)
    gone = simulate(rows, k, p).evicted_at
    return sum(
        int(rows.head_rows(t).sum(axis=0)[gone[: t + 1] >= t].sum()) for t in range(p, rows.n)
    )


@examples(30)
@given(runs(max_n=6))
def test_t6_holds(case: tuple[np.ndarray, int, int]) -> None:
    matrix, k, p = case
    assert statements.optimum.offline_optimum(Rows.of(matrix), k, p).verdict == Verdict.HOLDS


@examples(40)
@given(matrices(max_n=6), st.integers(0, 9), st.data())
def test_t6_formulations_of_any_size(matrix: np.ndarray, k: int, data: st.DataObject) -> None:
    """Budgets of nothing and of more than there is, prompts up to the whole text."""
    p = data.draw(st.integers(1, matrix.shape[1]))
    rows = Rows.of(matrix)
    assert statements.optimum.offline_optimum(rows, k, p).verdict == Verdict.HOLDS
    every = [brute_force_value(rows, c, p) for c in range(rows.n + 1)]
    assert row_by_row_values(rows, p) == path_values(rows, rows.n, p) == every


def test_t6_can_fail() -> None:
    # the per-step top k with re-admission is more than the optimum
    rows = rows_of((1,), (1, 0), (1, 0, 0), (0, 1, 0, 0))
    result = statements.optimum.offline_optimum(rows, 1)
    assert result.numbers["optimum"] == result.numbers["assignment"] == 200
    table = [rows.head_rows(t)[0] for t in range(4)]
    readmitting = sum(int(row[-1] + np.sort(row[:-1])[::-1][:1].sum()) for row in table[1:])
    assert readmitting == 300
    # negative values: not evicting early is wrong
    negative = Rows.of(np.array([[1, 0], [-1, 1]]))
    assert brute_force_value(negative, 1) == 1
    assert assignment_value(negative, 1) == 0
    # H2O is not optimal
    found = refuted(
        runs(max_n=5, max_heads=1),
        lambda case: attended(*case) == assignment_value(Rows.of(case[0]), *case[1:]),
    )
    assert found[0].shape[1] <= 4


@examples(30)
@given(runs(min_n=2, max_n=12))
def test_t6b_holds(case: tuple[np.ndarray, int, int]) -> None:
    matrix, _, p = case
    rows = Rows.of(matrix)
    optima = [assignment_value(rows, k, p) for k in range(rows.n + 1)]
    assert checks.concave_in_budget(optima).verdict == Verdict.HOLDS
    some = sorted({0, 1, rows.n // 2, rows.n})
    assert checks.concave_in_budget([optima[k] for k in some], some).verdict != Verdict.VIOLATED
    assert optima[-1] == sum(int(rows.head_rows(t).sum()) for t in range(p, rows.n))


@examples(30)
@given(st.lists(matrices(max_n=7), min_size=1, max_size=3), st.data())
def test_t6b_allocation(units: list[np.ndarray], data: st.DataObject) -> None:
    curves = []
    for matrix in units:
        p = data.draw(st.integers(1, matrix.shape[1]))
        curves.append([assignment_value(Rows.of(matrix), k, p) for k in range(matrix.shape[1] + 1)])
    assert statements.optimum.best_allocation(curves).verdict == Verdict.HOLDS


def test_t6b_can_fail() -> None:
    rows = rows_of((1,), (0.6, 0.4), (0, 1), (0, 1))  # H2O's own curve need not be concave
    square = np.array([[100, 0, 0, 0], [60, 40, 0, 0], [0, 100, 0, 0], [0, 100, 0, 0]])
    curve = [40, *(attended(square, k, 1) for k in (1, 2, 3))]
    assert curve == [40, 100, 300, 300]
    result = checks.concave_in_budget(curve)
    assert (result.verdict, result.step) == (Verdict.VIOLATED, 2)
    assert checks.concave_in_budget([0, 0, 3]).verdict == Verdict.VIOLATED
    assert checks.concave_in_budget([3, 2]).verdict == Verdict.VIOLATED
    # each gain is compared with the one before it, not with the first
    result = checks.concave_in_budget([0, 5, 6, 8])
    assert (result.verdict, result.step) == (Verdict.VIOLATED, 3)
    assert checks.concave_in_budget([0, 5, 6, 8, 8], [0, 1, 2, 4, 5]).verdict == Verdict.HOLDS
    # one curve that is not concave: giving slots by gains starves it
    starved = statements.optimum.best_allocation([[0, 0, 3], [0, 1, 2]])
    assert (starved.verdict, starved.note) == (Verdict.FAILS, "a curve is not concave")
    optima = [assignment_value(rows, k) for k in range(4)]
    assert checks.concave_in_budget(optima).verdict == Verdict.HOLDS


@examples(30)
@given(runs(max_n=7, max_heads=1), st.lists(st.integers(0, ONE), min_size=7, max_size=7))
def test_t6c_holds(case: tuple[np.ndarray, int, int], prices: list[int]) -> None:
    matrix, k, p = case
    rows = Rows.of(matrix)
    best = assignment_value(rows, k, p)
    given_prices = np.array(prices)[: rows.n]
    assert checks.dual_certificate(rows, k, given_prices, best, p).verdict == Verdict.HOLDS
    value, optimal = interval_program(rows, k, p)
    # HiGHS works in float64 to tolerances of 1e-7; values are integers up to 2**26 or so
    assert value == pytest.approx(best, abs=1)
    whole_prices = np.rint(optimal).astype(np.int64)
    assert dual_value(rows, k, whole_prices, p) == best  # equality, with whole prices
    negative = given_prices - ONE // 2  # remark: with full caches any sign is a bound
    assert dual_value(rows, k, negative, p) >= best


def test_t6c_can_fail() -> None:
    rows = rows_of((1,), (1, 0), (1, 0, 0), (0, 1, 0, 0))
    assert dual_value(rows, 1, np.array([0, 100, 100, 0])) == 200  # tight
    assert dual_value(rows, 1, np.zeros(4, int)) == 300  # the re-admission bound
    assert dual_value(rows, 5, np.array([0, 0, 0, -100])) == 300
    claimed = checks.dual_certificate(rows, 1, np.array([0, 100, 100, 0]), 201)
    assert claimed.verdict == Verdict.VIOLATED
    assert checks.dual_certificate(rows, 1, np.full(4, -1), 0).verdict == Verdict.FAILS

    def one_slot_too_few(case: tuple[np.ndarray, int, int]) -> bool:
        matrix, k, p = case
        rows = Rows.of(matrix)
        price = np.full(rows.n, ONE // 4)
        short = dual_value(rows, k, price, p) - int(price[p:].sum())
        return short >= assignment_value(rows, k, p)

    refuted(runs(max_n=5), one_slot_too_few)
