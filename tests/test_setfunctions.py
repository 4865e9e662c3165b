"""Set functions, their exact checkers, and the greedy choices among them."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from dynamic_submodular import (
    AccumulatedAttention,
    CurrentAttention,
    Still,
    attention_mass,
    best_set_milp,
    check_dynamic_monotone,
    check_dynamic_submodular,
    check_modular,
    check_udc1,
    check_udc2,
    dynamic_one_swap,
    lazy_greedy,
    opt,
)
from hypothesis import given
from hypothesis import strategies as st
from statements.choosing import (
    best_set,
    cheapest_removal,
    one_swap,
    static_greedy,
    threshold_swap,
)
from statements.setfunctions import (
    IDENTITY,
    LOG,
    SHAPES,
    SQRT,
    Coverage,
    FacilityLocation,
    SharedCache,
    capped,
    check_monotone,
    check_submodular,
)
from statements.simulating import simulate
from strategies import examples, sixteenths

from h2osim.guarantees.history import Rows
from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace


def matrices(tokens: int, most_rows: int = 4) -> st.SearchStrategy[list[list[int]]]:
    entry = st.integers(0, 6)
    row = st.lists(entry, min_size=tokens, max_size=tokens)
    return st.lists(row, min_size=1, max_size=most_rows)


@st.composite
def functions(draw: st.DrawFn, tokens: int = 5) -> Any:
    """Any of the monotone submodular functions here, with whole numbers."""
    kind = draw(st.sampled_from(["mass", "shared", "capped", "facility", "coverage"]))
    rows = draw(matrices(tokens))
    if kind == "mass":
        return attention_mass(rows[0])
    if kind == "shared":
        return SharedCache(rows, draw(st.sampled_from([SQRT, LOG, IDENTITY])))
    if kind == "capped":
        return SharedCache(rows, capped(draw(st.integers(0, 8))))
    if kind == "facility":
        return FacilityLocation(rows)
    sets = draw(st.lists(st.sets(st.integers(0, 5)), min_size=tokens, max_size=tokens))
    return Coverage(sets, draw(st.lists(st.integers(0, 5), min_size=6, max_size=6)))


@given(functions())
def test_they_are_monotone_and_submodular(f: Any) -> None:
    assert check_monotone(f) is None
    assert check_submodular(f) is None


@given(functions(), st.data())
def test_gain_is_the_difference_of_values(f: Any, data: st.DataObject) -> None:
    held = data.draw(st.sets(st.integers(0, f.size - 1)))
    token = data.draw(st.integers(0, f.size - 1))
    assert f.gain(held, token) == f.value(held | {token}) - f.value(held)


def test_values_by_hand() -> None:
    assert attention_mass([3, 0, 4]).value([0, 2]) == 7
    assert SharedCache([[3, 0, 4], [0, 2, 1]], SQRT).value([0, 1]) == 2 + math.sqrt(3)
    assert SharedCache([[3, 0], [0, 2]], LOG).value([0]) == math.log(4)
    assert FacilityLocation([[1, 5, 2], [4, 0, 4]]).value([0, 2]) == 6
    assert Coverage([{0, 1}, {1, 2}], [2, 3, 4]).value([0, 1]) == 9
    assert all(f([]) == 0 for f in (attention_mass([1]).value, Coverage([{0}]).value))


def test_checkers_return_witnesses() -> None:
    class Square:
        size = 2

        def value(self, chosen: Any) -> int:
            return len(frozenset(chosen)) ** 2

        def gain(self, chosen: Any, token: int) -> int:
            held = frozenset(chosen)
            return self.value(held | {token}) - self.value(held)

    witness = check_submodular(Square())
    assert witness is not None
    assert (witness.small, witness.large, witness.token) == (frozenset(), {1}, 0)
    assert (witness.left, witness.right) == (1, 3)  # the gain of token 0 at ∅, and beside token 1
    falling = check_monotone(attention_mass([1, -1]))
    assert falling is not None
    assert falling.token == 1
    assert (falling.left, falling.right) == (-1, 0)


@given(matrices(4))
def test_modular_only_for_the_identity_or_disjoint_heads(rows: list[list[int]]) -> None:
    assert check_modular(SharedCache(rows)) is None
    shared = any(sum(x > 0 for x in row) > 1 for row in rows)
    assert (check_modular(SharedCache(rows, SQRT)) is not None) == shared  # proof T9.1


@examples(15)
@given(sixteenths(max_n=4, max_heads=2, layers=1))
def test_attention_families_are_dynamic_submodular(scores: np.ndarray) -> None:
    rows = np.rint(scores[0] * 16).astype(int)
    for shape in (*SHAPES.values(), capped(8)):
        assert check_dynamic_submodular(AccumulatedAttention(rows, shape)) is None
        assert check_dynamic_monotone(AccumulatedAttention(rows, shape)) is None
    assert check_dynamic_submodular(CurrentAttention(rows)) is None
    assert check_dynamic_monotone(CurrentAttention(rows)) is None


@examples(25)
@given(sixteenths(min_n=2, max_n=5, max_heads=2, layers=1), st.integers(1, 2))
def test_accumulated_scores_meet_both_conditions_as_printed_with_zero(
    scores: np.ndarray, k: int
) -> None:
    family = AccumulatedAttention(np.rint(scores[0] * 16).astype(int))
    assert check_udc1(family, k, theta=0) is None
    opts = [opt(family, i, k) for i in range(family.steps)]
    assert check_udc2(opts, gamma=0) is None
    for i, value in enumerate(opts):  # opt_i of a family that ignores Z is the top-k sum
        assert value == sum(sorted(family.sums.sum(axis=0)[i], reverse=True)[:k])


def test_conditions_fail_with_witnesses_in_either_direction() -> None:
    # token 0 gets everything, twice: its score grows, so growth fails and fall does not
    rows = np.array([[1, 0], [1, 0]])
    family = AccumulatedAttention(rows)
    grown = check_udc1(family, 1, Fraction(1, 3), "growth")
    assert grown is not None
    assert (grown.left, grown.right, grown.step) == (1, Fraction(4, 3), 1)
    assert check_udc1(family, 1, Fraction(1, 2), "growth") is None
    assert check_udc1(family, 1, 0) is None
    assert check_udc2([4, 4, 2], Fraction(1, 2)) is None
    fell = check_udc2([4, 4, 1], Fraction(1, 2), first=7)
    assert fell is not None
    assert (fell.step, fell.left, fell.right) == (9, 1, 2)
    assert check_udc2([4, 4, 1], 0, "growth") is None
    rose = check_udc2([4, 5], Fraction(1, 10), "growth")
    assert rose is not None
    assert (rose.left, rose.right) == (4, Fraction(9, 2))


def test_a_family_that_depends_on_the_cache_breaks_udc1() -> None:
    # once token 0 is alone in the cache, the renormalised row gives it everything it had not before
    family = CurrentAttention(np.array([[4, 0, 0], [1, 3, 0], [1, 3, 0]]))
    found = check_udc1(family, 1, Fraction(1, 10))
    assert found is not None
    assert found.property == "UDC1 (fall)"


# --- choosing ------------------------------------------------------------------------------------


@given(functions(), st.integers(1, 5))
def test_lazy_greedy_is_greedy(f: Any, k: int) -> None:
    lazy = lazy_greedy(f, k)
    if isinstance(f, SharedCache) and f.shape in (SQRT, LOG):  # rounding may decide a tie
        for q, token in enumerate(lazy):
            best = max(f.gain(lazy[:q], x) for x in range(f.size) if x not in lazy[:q])
            # float64 sums in another order
            assert f.gain(lazy[:q], token) == pytest.approx(best)
    else:
        assert lazy == static_greedy(f, k)


def test_lazy_greedy_evaluates_less() -> None:
    class Counting(FacilityLocation):
        calls = 0

        def gain(self, chosen: Any, token: int) -> Any:
            self.calls += 1
            return super().gain(chosen, token)

    likeness = np.random.default_rng(0).integers(0, 100, (30, 60))
    plain, lazy = Counting(likeness), Counting(likeness)
    assert static_greedy(plain, 10) == lazy_greedy(lazy, 10)
    assert lazy.calls < 0.6 * plain.calls


@given(functions(), st.integers(1, 4))
def test_milp_finds_a_best_set(f: Any, k: int) -> None:
    if isinstance(f, Coverage | FacilityLocation):
        chosen = best_set_milp(f, k)
        assert len(chosen) <= k
        assert f.value(chosen) == f.value(best_set(f, k))


@given(sixteenths(max_n=12, layers=1), st.integers(1, 6), st.integers(1, 4))
def test_dynamic_greedy_on_modular_objectives_is_h2o(scores: np.ndarray, k: int, p: int) -> None:
    rows = np.rint(scores[0] * 16).astype(int)
    n = rows.shape[1]
    p = min(p, n)
    caches = dynamic_one_swap(AccumulatedAttention(rows), k, p)
    run = simulate(Rows.of(rows), k, p)
    assert caches == [[j for j in range(t + 1) if run.evicted_at[j] > t] for t in range(n)]


def test_dynamic_greedy_differs_from_h2o_on_a_shared_cache() -> None:
    # two heads; the sum prefers two tokens of head 0, sqrt one token of each head
    rows = np.zeros((2, 4, 4), dtype=int)
    rows[0, 3, :4] = [9, 8, 0, 0]
    rows[1, 3, :4] = [0, 0, 4, 0]
    assert dynamic_one_swap(AccumulatedAttention(rows), 3, 4)[-1] == [0, 1, 2]
    assert dynamic_one_swap(AccumulatedAttention(rows), 2, 4)[-1] == [0, 1]
    assert dynamic_one_swap(AccumulatedAttention(rows, SQRT), 2, 4)[-1] == [0, 2]


def test_a_set_function_stands_for_a_family_at_rest() -> None:
    f = attention_mass([3, 1, 4, 1, 5])
    expected = [[0], [0, 1], [0, 2], [0, 2], [2, 4]]
    assert dynamic_one_swap(f, 2) == dynamic_one_swap(Still(f), 2) == one_swap(f, 2) == expected


@examples(20)
@given(sixteenths(min_n=2, max_n=10, layers=1), st.integers(1, 5), st.integers(1, 4))
def test_the_policy_is_this_greedy(scores: np.ndarray, k: int, p: int) -> None:
    """`greedy:objective=…` of the engines against `one_swap`; sixteenths, so sums are exact."""
    heads, n = scores.shape[1:3]
    k, p = min(k, n), min(p, n - 1)
    trace = Trace.from_scores(scores, group_size=heads, prompt_len=p)
    for objective, shape in (("mass", IDENTITY), ("sqrt", SQRT)):
        found = replay(trace, f"greedy:objective={objective},scores=full", k, engine="naive")
        gone = found.evicted_at.values.ravel()
        caches = dynamic_one_swap(AccumulatedAttention(scores[0], shape), k, p)
        held = [[j for j in range(t + 1) if gone[j] > t] for t in range(n)]
        assert held == caches, objective


@examples(30)
@given(sixteenths(min_n=2, max_n=10, layers=1), st.integers(1, 5), st.integers(1, 9))
def test_the_policy_with_a_threshold_is_the_rule_of_m1(scores: np.ndarray, k: int, p: int) -> None:
    """`greedy:swap=threshold`: a prompt is a stream under its last row, then one token a row."""
    heads, n = scores.shape[1:3]
    k, p = min(k, n), min(p, n - 1)
    trace = Trace.from_scores(scores, group_size=heads, prompt_len=p)
    half = capped(Fraction(1, 2))
    rows = scores[0].astype(np.float64)
    sums = np.add.accumulate(rows, axis=1)
    for objective, of in (
        ("mass", lambda t: SharedCache(sums[:, t, : t + 1])),
        ("sqrt", lambda t: SharedCache(sums[:, t, : t + 1], SQRT)),
        ("coverage", lambda t: SharedCache(rows[:, t, : t + 1], half)),
        ("facility", lambda t: FacilityLocation(sums[:, t, : t + 1])),
    ):
        policy = f"greedy:objective={objective},swap=threshold,scores=full"
        gone = replay(trace, policy, k, engine="naive").evicted_at.values.ravel()
        cache = threshold_swap(of(p - 1), k)[-1]  # the prompt, token by token
        assert cache == [j for j in range(p) if gone[j] > p - 1], objective
        for t in range(p, n):
            f = of(t)
            cache = [*cache, t]
            if len(cache) > k:
                now = f.value(cache[:-1])
                left, place = cheapest_removal(f, cache, range(k))
                cache.pop(place if k * (left - now) >= now else k)
            assert cache == [j for j in range(t + 1) if gone[j] > t], (objective, t)
