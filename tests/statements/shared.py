"""C3, T9, M1, M6 and M8: heads that share a cache, and what each way of choosing guarantees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from h2osim.guarantees.results import Result, Verdict, share
from statements.choosing import (
    best_set,
    delete_down,
    one_swap,
    static_greedy,
)
from statements.choosing import threshold_swap as swap_with_threshold
from statements.setfunctions import (
    Coverage,
    Number,
    SetFunction,
    Shape,
    SharedCache,
    at_least,
    check_monotone,
    check_submodular,
    subsets,
)


def swap_instance(k: int, epsilon: Fraction = Fraction(1, 1000)) -> Coverage:
    """C3's coverage function: k points of weight 1, k of weight 1 + epsilon, the union of these.

    The generator `coverage` is the same function, counted over heads, for epsilon = 1 / copies.
    """
    singles = [{p} for p in range(2 * k)]
    return Coverage([*singles, range(k, 2 * k)], [Fraction(1)] * k + [1 + epsilon] * k)


def swap_ratio(k: int, epsilon: Fraction = Fraction(1, 1000)) -> Result:
    """C3: one-swap greedy ends at k(1+epsilon), the best set has k(1+epsilon) + k - 1.

    Numbers: ratio, limit = k/(2k-1), and 1 - 1/e to compare with.
    """
    f = swap_instance(k, epsilon)
    reached, best = f.value(one_swap(f, k)[-1]), f.value(best_set(f, k))
    numbers = {"ratio": share(reached, best), "limit": k / (2 * k - 1), "1-1/e": 1 - 1 / math.e}
    same = reached == k * (1 + epsilon) and best == k * (1 + epsilon) + k - 1
    return Result("C3", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)


def drift_instance(k: int, epsilon: Fraction = Fraction(1, 1000)) -> Coverage:
    """Proof T9.4: a coverage function on which one-swap greedy tends to 1/k of the best set."""
    sets: list[set[int]] = []
    weights: list[Number] = []
    for block in range(1, k + 1):
        first = len(weights)
        weights += [Fraction(1)] * k + [block * epsilon] * k
        whole = set(range(first, first + k))
        parts = [{first + q, first + k + q} for q in range(k)]
        sets += [whole, *parts] if block == 1 else [*parts, whole]
    return Coverage(sets, weights)


def shared_caches(f: SetFunction, k: int) -> Result:
    """T9: f monotone and submodular; one-shot greedy (1 - (1-1/k)^k), one-swap greedy 1/k.

    Tries all sets: for up to 8 tokens or so. Numbers: greedy, swap (both as shares of the optimum,
    greedy's net of f(∅)), limit = 1 - (1-1/k)^k.
    """
    for witness in (check_monotone(f), check_submodular(f)):
        if witness is not None:
            return Result("T9", Verdict.FAILS, None, {}, f"not {witness.property}")
    empty, best = f.value(()), f.value(best_set(f, k))
    greedy, swap = f.value(static_greedy(f, k)), f.value(one_swap(f, k)[-1])
    limit = 1 - (1 - Fraction(1, k)) ** k
    rises = at_least(float(greedy - empty), float(limit) * float(best - empty))
    swaps = at_least(k * swap, best)
    numbers = {
        "greedy": float(greedy - empty) / float(best - empty) if best != empty else 1.0,
        "swap": float(swap) / float(best) if best else 1.0,
        "limit": float(limit),
    }
    if empty < 0:
        return Result("T9", Verdict.FAILS, None, numbers, "f of the empty set is negative")
    return Result("T9", Verdict.HOLDS if rises and swaps else Verdict.VIOLATED, None, numbers)


def _outside(f: SetFunction) -> str:
    """Why f is not a nonnegative monotone submodular function, in words; "" if it is one."""
    for witness in (check_monotone(f), check_submodular(f)):
        if witness is not None:
            return f"not {witness.property}"
    return "f of the empty set is negative" if f.value(()) < 0 else ""


def threshold_swap(f: SetFunction, k: int, factor: Number = Fraction(1)) -> Result:
    """M1: swapping only for a gain of factor f(S)/k keeps opt / (2 + factor + 1/factor).

    After every arrival, against the best k of the tokens that have come. Tries all sets: for up to
    8 tokens or so. Numbers: ratio (least over the steps), bound.
    """
    bound = 1 / (2 + Fraction(factor) + 1 / Fraction(factor))
    ratio, broken = 1.0, None
    for step, cache in enumerate(swap_with_threshold(f, k, factor)):
        best = max(f.value(held) for held in subsets(range(step + 1), k))
        value = f.value(cache)
        ratio = min(ratio, float(value) / float(best)) if best else ratio
        if broken is None and not at_least(value, bound * best):
            broken = step
    numbers = {"ratio": ratio, "bound": float(bound)}
    if why := _outside(f):
        return Result("M1", Verdict.FAILS, broken, numbers, why)
    return Result("M1", Verdict.HOLDS if broken is None else Verdict.VIOLATED, broken, numbers)


def turned_away_instance(k: int, epsilon: Fraction = Fraction(1, 1000)) -> Coverage:
    """M1's worst known instance: k tokens fill the cache, and k better ones are turned away."""
    held = [set(range(k * j, k * (j + 1))) for j in range(k)]
    later = [{k * j + i for j in range(k)} | {k * k + i} for i in range(k)]
    weights: list[Number] = [Fraction(1, k)] * (k * k)
    return Coverage([*held, *later], weights + [2 - Fraction(1, k) - epsilon] * k)


def prompt_deletion(f: SetFunction, k: int) -> Result:
    """M6: deleting one at a time from all p tokens leaves at least k/p of their value.

    Numbers: ratio (over the best k), whole (over all tokens), bound = k/p.
    """
    value, everything = f.value(delete_down(f, k)), f.value(range(f.size))
    best, bound = f.value(best_set(f, k)), Fraction(min(k, f.size), f.size)
    numbers = {
        "ratio": float(value) / float(best) if best else 1.0,
        "whole": float(value) / float(everything) if everything else 1.0,
        "bound": float(bound),
    }
    if why := _outside(f):
        return Result("M6", Verdict.FAILS, None, numbers, why)
    fine = at_least(value, bound * everything)
    return Result("M6", Verdict.HOLDS if fine else Verdict.VIOLATED, None, numbers)


def deletion_instance(m: int, epsilon: Fraction = Fraction(1, 1000)) -> Coverage:
    """M6: a token with m points, and m tokens with one of them and a private point each."""
    singles = [{i, m + i} for i in range(m)]
    return Coverage([range(m), *singles], [Fraction(1)] * m + [epsilon] * m)


def concave_utilities(edges: Sequence[tuple[int, int]], k: int, shape: Shape) -> Result:
    """M8: k tokens serve the heads of a cubic graph fully exactly if k vertices are independent.

    edges: of a graph in which every vertex has three; a head an edge, a token a vertex, half of a
    head's mass on each end. All sets of k vertices are tried. Numbers: best, target, independent
    (1 if there are k independent vertices).
    """
    vertices = sorted({v for edge in edges for v in edge})
    degree = [sum(v in edge for edge in edges) for v in vertices]
    half = Fraction(1, 2)
    heads = [[half if v in edge else Fraction(0) for v in vertices] for edge in edges]
    f = SharedCache(heads, shape)
    zero, one, two = (shape.of(z) for z in (Fraction(0), half, Fraction(1)))
    target = (len(edges) - 3 * k) * zero + 3 * k * one
    sets = [held for held in subsets(range(len(vertices)), k) if len(held) == k]
    best = max(f.value(held) for held in sets)
    free = any(
        not any({vertices.index(a), vertices.index(b)} <= held for a, b in edges) for held in sets
    )
    numbers = {"best": float(best), "target": float(target), "independent": float(free)}
    if set(degree) != {3}:
        return Result("M8", Verdict.FAILS, None, numbers, "the graph is not cubic")
    if at_least(zero + two, 2 * one):
        return Result("M8", Verdict.FAILS, None, numbers, "the utility is a straight line")
    same = at_least(best, target) == free
    return Result("M8", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)
