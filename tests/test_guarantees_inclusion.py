"""T7: caches of smaller budgets lie in those of larger ones, and one stack holds all."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from guarantee_cases import (
    refuted,
    rows_of,
    runs,
)
from hypothesis import given
from hypothesis import strategies as st
from statements.simulating import simulate, stack_run
from strategies import examples

from h2osim.guarantees import Verdict, checks
from h2osim.guarantees.history import Rows

RANKS: dict[str, Callable[[np.ndarray, int, int], float]] = {
    "accumulated": lambda a, t, j: int(a[: t + 1, j].sum()),
    "last row": lambda a, t, j: int(a[t, j]),
    "recency": lambda a, t, j: j,
    "mean": lambda a, t, j: float(Fraction(int(a[: t + 1, j].sum()), t + 1 - j)),
    "future": lambda a, t, j: int(a[t + 1 :, j].sum()),
    "window": lambda a, t, j: math.inf if t - j < 2 else int(a[: t + 1, j].sum()),
    "sinks": lambda a, t, j: math.inf if j < 2 else int(a[: t + 1, j].sum()),
}


def run_by_rank(rank: Callable[[int, int], float], n: int, k: int, p: int) -> list[int]:
    gone, cache = [n] * n, []
    for t in range(n):
        cache.append(t)
        while t >= p - 1 and len(cache) > k:
            least = min(cache, key=lambda j: (rank(t, j), j))
            cache.remove(least)
            gone[least] = t
    return gone


@pytest.mark.parametrize("name", RANKS)
@examples(20)
@given(case=runs(max_n=10))
def test_t7_holds(case: tuple[np.ndarray, int, int], name: str) -> None:
    matrix, _, p = case
    a = np.tril(matrix.sum(axis=0))
    n = a.shape[0]
    rank = lambda t, j: RANKS[name](a, t, j)  # noqa: E731
    direct = {k: run_by_rank(rank, n, k, p) for k in range(1, n + 1)}
    assert checks.inclusion(direct).verdict in {Verdict.HOLDS, Verdict.VACUOUS}
    stack = stack_run(lambda t: [(rank(t, j), j) for j in range(t + 1)], n, p)
    assert {k: stack[k].tolist() for k in direct} == direct
    held = [[attended_by(a, gone, p)] for gone in direct.values()]
    assert held == sorted(held)  # the recall does not fall when the budget grows


def attended_by(a: np.ndarray, gone: list[int], p: int) -> int:
    n = a.shape[0]
    return sum(int(a[t, [j for j in range(t + 1) if gone[j] >= t]].sum()) for t in range(p, n))


@examples(30)
@given(case=runs(max_n=10), data=st.data())
def test_t7_now_and_then(case: tuple[np.ndarray, int, int], data: st.DataObject) -> None:
    """Evicting at a drawn set of steps only, with any ranks: nested, and one stack has them all."""
    matrix, _, p = case
    a = np.tril(matrix.sum(axis=0))
    n = a.shape[0]
    rank = RANKS[data.draw(st.sampled_from(sorted(RANKS)))]
    steps = data.draw(st.sets(st.integers(p - 1, n - 1)))
    direct = {}
    for k in range(n + 1):
        gone, cache = [n] * n, []
        for t in range(n):
            cache.append(t)
            while t in steps and len(cache) > k:
                least = min(cache, key=lambda j: (rank(a, t, j), j))
                cache.remove(least)
                gone[least] = t
        direct[k] = gone
    assert checks.inclusion(direct).verdict in {Verdict.HOLDS, Verdict.VACUOUS}
    stack = stack_run(lambda t: [(rank(a, t, j), j) for j in range(t + 1)], n, p, steps)
    assert {k: stack[k].tolist() for k in direct} == direct


def test_t7_a_larger_cache_that_skipped_an_eviction() -> None:
    """The proof's example: two tokens more before the eviction are one too many."""
    a = np.array([[10, 0, 0, 0], [6, 4, 0, 0], [1, 2, 7, 0], [3, 3, 2, 2]])

    def run(k: int, steps: set[int]) -> list[int]:
        gone, cache = [4] * 4, []
        for t in range(4):
            cache.append(t)
            while t in steps and len(cache) > k:
                least = min(cache, key=lambda j: (a[t, j], j))
                cache.remove(least)
                gone[least] = t
        return gone

    skipped = {1: run(1, {0, 1, 2, 3}), 2: run(2, {3})}
    assert skipped == {1: [2, 1, 3, 4], 2: [4, 4, 3, 3]}
    assert checks.inclusion(skipped).verdict == Verdict.VIOLATED


def test_t7_counterexamples() -> None:
    rows = rows_of((1,), (0, 1), (1, 0))
    window = {k: simulate(rows, k, recent=k // 2).evicted_at for k in (1, 2)}
    result = checks.inclusion(window)
    assert (result.verdict, result.step, result.numbers["token"]) == (Verdict.VIOLATED, 2, 1)

    rows = rows_of((1,), (0, 1), (0.5, 0, 0.5))
    cached = {k: simulate(rows, k, scores="cached").evicted_at for k in (1, 2)}
    assert cached[1].tolist() == [1, 2, 3]
    assert checks.inclusion(cached).verdict == Verdict.VIOLATED
    assert checks.inclusion(cached, "cached scores").verdict == Verdict.FAILS

    heads = np.array([[[4, 0, 0], [4, 0, 0], [1, 3, 0]], [[4, 0, 0], [2, 2, 0], [1, 1, 2]]])
    assert last_row_cached(heads, 1) == [3, 1, 2]
    assert last_row_cached(heads, 2) == [2, 3, 3]

    drops = np.array([[10, 0, 0], [4, 6, 0], [5, 3, 2]])  # drop to half of k, rounded up
    halving = {k: halve_on_overflow(drops, k) for k in (1, 2)}
    assert checks.inclusion(halving).verdict == Verdict.VIOLATED


def last_row_cached(heads: np.ndarray, k: int) -> list[int]:
    n = heads.shape[1]
    gone, cache = [n] * n, []
    for t in range(n):
        cache.append(t)
        mass = [sum(int(h[t, j]) for j in cache) for h in heads]
        shown = {
            j: sum(Fraction(int(h[t, j]), m) for h, m in zip(heads, mass, strict=True) if m)
            for j in cache
        }
        if len(cache) > k:
            least = min(cache, key=lambda j: (shown[j], j))
            cache.remove(least)
            gone[least] = t
    return gone


def halve_on_overflow(a: np.ndarray, k: int) -> list[int]:
    n = a.shape[0]
    gone, cache = [n] * n, []
    for t in range(n):
        cache.append(t)
        if len(cache) > k:
            for j in sorted(cache, key=lambda j: (a[t, j], j))[: len(cache) - -(-k // 2)]:
                cache.remove(j)
                gone[j] = t
    return gone


def test_t7_can_fail() -> None:
    for how in ({"scores": "cached"}, {}):

        def nested(case: tuple[np.ndarray, int, int], how: dict[str, Any] = how) -> bool:
            matrix, _, p = case
            rows = Rows.of(matrix)
            more = how or {}
            found = {
                k: simulate(rows, k, p, recent=0 if more else k // 2, **more).evicted_at
                for k in range(1, rows.n)
            }
            return checks.inclusion(found).verdict != Verdict.VIOLATED

        refuted(runs(max_n=6), nested, shrink=False)

    def one_head_last_row(case: tuple[np.ndarray, int, int]) -> bool:
        matrix = np.tril(case[0])
        found = {k: last_row_cached(matrix, k) for k in range(1, matrix.shape[1])}
        return checks.inclusion(found).verdict != Verdict.VIOLATED

    refuted(runs(max_n=6, max_heads=2), one_head_last_row, shrink=False)  # two heads break it ...


@given(runs(max_n=9, max_heads=1))
def test_t7_cached_last_row_of_one_head(case: tuple[np.ndarray, int, int]) -> None:
    matrix = np.tril(case[0])  # ... one head does not: it divides by one number
    found = {k: last_row_cached(matrix, k) for k in range(1, matrix.shape[1])}
    assert checks.inclusion(found).verdict != Verdict.VIOLATED
