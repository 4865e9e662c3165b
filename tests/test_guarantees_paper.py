"""The paper's theorem, C1 and C2: what a run keeps, the algorithm to the letter, the trap."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import statements
from dynamic_submodular import (
    AccumulatedAttention,
    check_udc1,
    check_udc2,
    dynamic_one_swap,
    opt,
)
from guarantee_cases import (
    ALLOWED,
    gone_after,
    history_of,
    ratio,
    refuted,
    rows_of,
    runs,
)
from hypothesis import given
from hypothesis import strategies as st
from statements.paper import trap_rows
from statements.setfunctions import (
    LOG,
    SQRT,
)
from statements.simulating import simulate

from h2osim.attention.fixed_point import ONE
from h2osim.guarantees import Verdict, checks
from h2osim.guarantees.history import Rows, Schedule, follow
from h2osim.traces.synthetic import synth


@given(runs(max_n=9))
def test_history_is_what_the_definitions_say(case: tuple[np.ndarray, int, int]) -> None:
    matrix, k, p = case
    summed = np.tril(matrix.sum(axis=0))
    n = summed.shape[0]
    rows = Rows.of(matrix)
    run = simulate(rows, k, p)
    history = follow(rows, run)
    cache: set[int] = set()
    missed = 0
    top_before: set[int] = set()
    for t in range(n):
        score = summed[: t + 1].sum(axis=0)
        attended = cache | {t}
        missed += int(summed[t].sum() - summed[t, sorted(attended)].sum()) if t >= p else 0
        before, cache = cache, {j for j in attended if run.evicted_at[j] > t}
        if t < history.first:
            continue
        i = t - history.first
        top = set(sorted(range(t + 1), key=lambda j: (score[j], j))[::-1][:k])
        assert history.value[i] == score[sorted(cache)].sum()
        assert history.opt[i] == score[sorted(top)].sum()
        assert history.same[i] == (cache == top)
        assert history.missed[i] == missed
        if i:
            assert history.before[i] == score[sorted(before)].sum()
            assert history.returned[i] == (not top <= top_before | {t})
        late = [int(summed[run.evicted_at[o] + 1 : t + 1, o].sum()) for o in top - cache]
        assert history.late[i] == sum(late)
        top_before = top
    assert history.steps == max(0, n - max(p, k) + 1)
    assert history.full


def test_simulate_by_hand() -> None:
    rows = rows_of((1,), (0, 1), (0.5, 0, 0.5))
    assert gone_after(rows, 1) == [1, 3, 2]  # a = (1.5, 1, .5): the new token goes at step 2
    assert gone_after(rows, 1, scores="cached") == [1, 2, 3]  # proof T3
    assert gone_after(rows, 1, recent=1) == [1, 2, 3]
    assert gone_after(rows, 1, 3) == [3, 2, 2]
    with pytest.raises(ValueError, match="leave none"):
        simulate(rows, 1, recent=2)


@given(runs(), st.sampled_from([0, 1]), st.sampled_from(["full", "cached"]))
def test_paper_theorem_holds(case: tuple[np.ndarray, int, int], recent: int, scores: str) -> None:
    matrix, _, _ = case
    result = checks.paper_theorem(history_of(case, recent=recent, scores=scores), matrix.shape[1])
    assert result.verdict in ALLOWED
    if result.verdict in (Verdict.HOLDS, Verdict.VACUOUS) and result.numbers:
        assert result.numbers["alpha"] < 1
        # CLOSE of guarantees/results.py: products of float64 ratios
        assert result.numbers["ratio"] >= result.numbers["bound"] - 1e-9


def test_paper_theorem_assumption_needs_a_top_that_does_not_grow() -> None:
    identity = np.eye(12, dtype=np.int64) * 100
    result = checks.paper_theorem(history_of((identity, 3, 1)), 12)
    assert result.verdict == Verdict.HOLDS
    assert result.numbers["alpha"] == 0
    # heavy hitters: everything on token 0
    heavy = np.zeros((12, 12), dtype=np.int64)
    heavy[:, 0] = 100
    result = checks.paper_theorem(history_of((heavy, 3, 1)), 12)
    assert result.verdict == Verdict.FAILS
    assert result.numbers["ratio"] == 1
    assert result.numbers["alpha"] == 10 * 12 / 4  # opt grows from 3 to 4 at once
    assert result.step == 3


@pytest.mark.parametrize("n", [3, 7, 96, 1000, 4096])
def test_alpha_of_one_is_too_much(n: int) -> None:
    """Alpha < 1 is assumed. Growth by exactly 1/(10 n) needs alpha = 1; a hair less is enough."""
    rows = rows_of((1,), (0, 1))
    two = follow(rows, simulate(rows, 1))
    for grown, verdict in ((1, Verdict.FAILS), (0, Verdict.HOLDS)):
        opts = np.array([10 * n - 1, 10 * n - 1 + grown]) * 2**20
        found = checks.paper_theorem(replace(two, value=opts, before=opts, opt=opts), n)
        assert found.verdict == verdict
    opts = np.array([(10 * n - 1) * 2**20 + 1, 10 * n * 2**20])
    found = checks.paper_theorem(replace(two, value=opts, before=opts, opt=opts), n)
    # it is 1 less 2**-20 / 10 n
    assert found.numbers["alpha"] == pytest.approx(1)
    assert found.verdict == Verdict.HOLDS  # alpha is just below 1, and the bound hardly above 0
    assert 0 < found.numbers["bound"] < 1e-5


def test_more_tokens_than_the_budget_are_outside_the_theorem() -> None:
    rows = rows_of((1,), (0, 1), (0, 1))
    history = follow(rows, Schedule(np.array([3, 3, 3]), 1, 1))
    found = checks.paper_theorem(history, 3)
    assert (found.verdict, found.note) == (Verdict.FAILS, "holds more than the budget")
    assert checks.drift_certificate(history).note == "holds more than the budget"


def test_paper_theorem_can_fail() -> None:
    """The product of the optimum's growth alone is no bound once a step may lose value."""

    def claim(case: tuple[np.ndarray, int, int]) -> bool:
        history = history_of(case, recent=1)
        return bool(np.all(history.value * history.opt[-1] >= history.opt[0] * history.opt[0]))

    found = refuted(runs(max_heads=1, max_n=6), claim)
    assert found[0].shape[1] <= 3
    history = history_of(found, recent=1)
    assert np.any(history.value < history.before)


def test_printed_udc2_is_refuted_by_the_trap() -> None:
    """UDC1 and UDC2 as printed hold with 0, the promised (1 - 1/e) does not (proof, remark 4)."""
    rows, _ = trap_rows(8, Fraction(1, 10))
    matrix = np.stack([np.pad(rows.head_rows(t)[0], (0, 7 - t)) for t in range(8)])
    family = AccumulatedAttention(matrix)
    assert check_udc1(family, 1, theta=0) is None
    opts = [opt(family, i, 1) for i in range(family.steps)]
    assert check_udc2(opts, gamma=0) is None
    assert check_udc2(opts, gamma=Fraction(1, 80), direction="growth") is not None
    history = history_of((matrix, 1, 1))
    assert ratio(history) < 1 - 1 / math.e
    rows, unit = trap_rows(500)
    history = follow(rows, simulate(rows, 1))
    assert history.value[-1] == Fraction("1.849") * unit
    assert history.opt[-1] == Fraction("497.902") * unit


@given(runs())
def test_first_k_meets_the_same_lemma(case: tuple[np.ndarray, int, int]) -> None:
    """Keeping the first k for ever loses nothing at any step: all that the induction asks."""
    matrix, k, _ = case
    n = matrix.shape[1]
    first_k = np.where(np.arange(n) < k, n, np.arange(n))
    history = follow(Rows.of(matrix), Schedule(first_k, k, 1))
    assert np.all(history.value >= history.before)
    assert checks.drift_certificate(history).verdict in {Verdict.HOLDS, Verdict.VACUOUS}
    assert checks.paper_theorem(history, n).verdict != Verdict.VIOLATED


@given(runs(max_n=8, max_heads=1))
def test_concave_h_never_changes_a_decision(case: tuple[np.ndarray, int, int]) -> None:
    """In float64, on multiples of 2^-24, for the three shapes of the paper."""
    matrix, k, p = case
    scores = matrix / ONE
    plain = dynamic_one_swap(AccumulatedAttention(scores), k, p)
    # removing the prompt's surplus one by one is the same for every shape as well
    assert dynamic_one_swap(AccumulatedAttention(scores, SQRT), k, p) == plain
    assert dynamic_one_swap(AccumulatedAttention(scores, LOG), k, p) == plain


@given(runs(max_heads=1), st.sampled_from([1, 2]))
def test_c1_holds(case: tuple[np.ndarray, int, int], algorithm: int) -> None:
    matrix, k, _ = case
    positive = np.tril(matrix + 1)
    result = statements.paper.literal_freeze(Rows.of(positive), k, algorithm)
    assert result.verdict == Verdict.HOLDS
    result = statements.paper.literal_freeze(Rows.of(matrix), k, algorithm)
    assert result.verdict != Verdict.VIOLATED


def test_c1_can_fail() -> None:
    rows = rows_of((1,), (0, 1))
    result = statements.paper.literal_freeze(rows, 1)
    assert result.verdict == Verdict.FAILS  # a resident without attention
    # "H2O in setting P keeps the first k" is wrong
    found = refuted(
        runs(max_heads=1, max_n=6),
        lambda case: (
            set(np.flatnonzero(simulate(Rows.of(case[0]), case[1]).evicted_at > 99)) == set()
            and bool(
                np.all(
                    simulate(Rows.of(case[0]), case[1]).evicted_at[: case[1]] == case[0].shape[1]
                )
            )
        ),
    )
    assert found[0].shape[1] <= 3


def test_c1_generator_freezes() -> None:
    unit = synth("freeze", 24).units()[0]
    # attention looks one token back, so three of the four residents get none: the proof is silent
    result = statements.paper.literal_freeze(Rows.of_unit(unit), 4)
    assert (result.verdict, result.step) == (Verdict.FAILS, 4)


@pytest.mark.parametrize(("n", "expected"), [(5, 0.471), (50, 0.0336), (500, 0.00371)])
def test_c2_numbers(n: int, expected: float) -> None:
    exact = statements.paper.trap(n)
    assert exact.verdict == Verdict.HOLDS
    # `expected` has three digits
    assert exact.numbers["ratio"] == pytest.approx(expected, rel=2e-3)
    rows = Rows.of_unit(synth("trap", n, d=1e-3).units()[0])
    history = follow(rows, simulate(rows, 1))
    # three digits, and entries rounded to float16
    assert ratio(history) == pytest.approx(expected, rel=2e-3)
    # the best feasible sequence keeps token 1 and reaches opt
    keep_one = np.where(np.arange(n) == 1, n, np.maximum(np.arange(n), 1))
    best = follow(rows, Schedule(keep_one, 1, 1))
    assert best.value[-1] == best.opt[-1]
    # as above
    assert float(history.value[-1]) / float(best.value[-1]) == pytest.approx(expected, rel=2e-3)


@given(st.integers(1, 40), st.fractions(Fraction(1, 1000), Fraction(49, 100), max_denominator=1000))
def test_c2_formula(n: int, d: Fraction) -> None:
    assert statements.paper.trap(n, d).verdict == Verdict.HOLDS


def test_c2_can_fail() -> None:
    with_window = [follow(rows, simulate(rows, 2, recent=1)) for rows in [trap_rows(400)[0]]]
    assert ratio(with_window[0]) < 0.02  # a protected newest token does not save it
    roomy = follow(trap_rows(400)[0], simulate(trap_rows(400)[0], 2))
    assert ratio(roomy) == 1  # two slots do
    with pytest.raises(AssertionError):
        assert statements.paper.trap(50).numbers["ratio"] > 1 - 1 / math.e
