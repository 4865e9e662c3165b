"""C3 and T9: heads that share a cache, and what greedy choices keep."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import statements
from guarantee_cases import (
    refuted,
)
from hypothesis import given
from hypothesis import strategies as st
from statements.choosing import (
    best_set,
    one_swap,
    static_greedy,
)
from statements.setfunctions import (
    LOG,
    SQRT,
    Coverage,
    Shape,
    SharedCache,
    capped,
)
from statements.shared import (
    drift_instance,
    swap_instance,
)

from h2osim.attention.fixed_point import ONE
from h2osim.guarantees import Verdict
from h2osim.traces.synthetic import synth


@pytest.mark.parametrize("k", [2, 3, 4, 5, 6])
def test_c3_numbers(k: int) -> None:
    result = statements.shared.swap_ratio(k)
    assert result.verdict == Verdict.HOLDS
    # every y weighs epsilon = 1/1000 more than an x
    assert result.numbers["ratio"] == pytest.approx(k / (2 * k - 1), rel=1e-3)
    assert (result.numbers["ratio"] < 1 - 1 / math.e) == (k >= 3)


@pytest.mark.parametrize(("k", "copies"), [(2, 3), (3, 2)])
def test_c3_generator_has_the_function_of_the_statement(k: int, copies: int) -> None:
    """What a set covers of the last row's heads is M/2 times its value, for every set of tokens."""
    f = swap_instance(k, Fraction(1, copies))
    (unit,) = synth("coverage", 2 * k + 2, k=k, copies=copies).units()
    row = unit.head_rows(2 * k + 1)
    for size in range(2 * k + 2):
        for some in itertools.combinations(range(2 * k + 1), size):
            covered = int(np.minimum(row[:, list(some)].sum(axis=1), ONE // 2).sum())
            assert covered == f.value(some) * copies * (ONE // 2)


def test_c3_can_fail() -> None:
    f = swap_instance(4)
    assert f.value(static_greedy(f, 4)) == f.value(best_set(f, 4))  # with all tokens in sight
    first = [f.sets[-1], *f.sets[:-1]]  # Z first
    early = Coverage(first, f.weights)
    assert early.value(one_swap(early, 4)[-1]) == early.value(best_set(early, 4))


@st.composite
def shared(draw: st.DrawFn) -> tuple[SharedCache, int]:
    tokens = draw(st.integers(1, 6))
    row = st.lists(st.integers(0, 6), min_size=tokens, max_size=tokens)
    shape = draw(st.sampled_from([SQRT, LOG, capped(3), capped(1)]))
    rows = draw(st.lists(row, min_size=1, max_size=4))
    return SharedCache(rows, shape), draw(st.integers(1, 4))


@given(shared())
def test_t9_holds(case: tuple[SharedCache, int]) -> None:
    assert statements.shared.shared_caches(*case).verdict == Verdict.HOLDS


def test_t9_can_fail() -> None:
    square = Shape("z^2", lambda z: z * z)
    for wrong in (SharedCache([[1, 1]], square), SharedCache([[1, -1]])):
        assert statements.shared.shared_caches(wrong, 1).verdict == Verdict.FAILS
    # one-swap greedy has neither 1 - 1/e nor C3's k/(2k-1)
    f = drift_instance(3)
    reached, best = f.value(one_swap(f, 3)[-1]), f.value([0, 7, 11])
    assert reached < Fraction(3, 5) * best < (1 - 1 / math.e) * float(best)

    def swap_is_exact(sets: list[set[int]]) -> bool:
        return statements.shared.shared_caches(Coverage(sets), 2).numbers["swap"] == 1

    refuted(st.lists(st.sets(st.integers(0, 4)), min_size=4, max_size=6), swap_is_exact)


@pytest.mark.parametrize(("k", "expected"), [(1, 1.0), (2, 0.501), (3, 0.334), (4, 0.251)])
def test_t9_drift_instance(k: int, expected: float) -> None:
    f = drift_instance(k)
    reached = f.value(one_swap(f, k)[-1])
    whole_tokens = [s for s in range(f.size) if f.value([s]) == k and len(f.sets[s]) == k]
    assert len(whole_tokens) == k
    best = f.value(whole_tokens) if k > 1 else f.value(best_set(f, 1))
    assert reached == k + k * k * Fraction(1, 1000)
    assert float(reached / best) == pytest.approx(expected, abs=2e-3)
    if k in (2, 3):
        assert k * reached >= f.value(best_set(f, k)) >= best  # T9.3, on its worst instance
    assert f.value(static_greedy(f, k)) >= best - k * k * Fraction(1, 100)


def test_t9_drift_as_a_shared_cache() -> None:
    # one head a point, min(z, 1), as the proof says
    f = drift_instance(3)
    scores = [[f.weights[p] if p in f.sets[s] else 0 for s in range(f.size)] for p in range(18)]
    as_heads = SharedCache(scores, capped(1))
    assert one_swap(as_heads, 3) == one_swap(f, 3)
    assert as_heads.value([0, 7, 11]) == f.value([0, 7, 11]) == 9


def test_t9_greedy_differs_from_optimum() -> None:
    f = SharedCache([[1.2, 0, 5], [2, 5, 0]], LOG)
    assert static_greedy(f, 2) == [0, 2]
    assert best_set(f, 2) == [1, 2]
    # a sum of logarithms against the logarithm of a product
    assert f.value([0, 2]) == pytest.approx(math.log(21.6))
    assert f.value([0, 2]) / f.value([1, 2]) == pytest.approx(0.857, abs=1e-3)
