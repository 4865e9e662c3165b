"""Choosing k tokens for a set function: built up, swapped in, deleted down, and truly best.

Ties: the smallest token is added first, the oldest (smallest) is dropped first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from fractions import Fraction

from statements.setfunctions import Number, SetFunction


def static_greedy(f: SetFunction, k: int) -> list[int]:
    """Add the token with the largest gain, min(k, size) times; in the order of choice.

    At least (1 - (1 - 1/k)^k) of the optimum for monotone submodular f with f(∅) = 0 (Nemhauser,
    Wolsey and Fisher 1978; proof T9). size * k evaluations.
    """
    chosen: list[int] = []
    for _ in range(min(k, f.size)):
        rest = [x for x in range(f.size) if x not in chosen]
        chosen.append(max(rest, key=lambda x: (f.gain(chosen, x), -x)))
    return chosen


def cheapest_removal(f: SetFunction, held: list[int], places: Iterable[int]) -> tuple[Number, int]:
    """Of the places in `held`, the one whose token is missed least: f without it, and the place."""
    left = {q: f.value(s for s in held if s != held[q]) for q in places}
    best = max(left, key=lambda q: (left[q], -q))
    return left[best], best


def one_swap(f: SetFunction, k: int) -> list[list[int]]:
    """The cache after every step, oldest first, when tokens arrive one by one (no prompt).

    Step i holds S + {i} and, when that is more than k, drops the token whose removal leaves the
    largest f: the dynamic greedy of arXiv 2306.14048 (D.12) on a function that does not change.
    """
    cache: list[int] = []
    caches = []
    for i in range(f.size):
        cache = [*cache, i]
        if len(cache) > k:
            _, place = cheapest_removal(f, cache, range(len(cache)))
            cache.pop(place)
        caches.append(list(cache))
    return caches


def threshold_swap(f: SetFunction, k: int, factor: Number = Fraction(1)) -> list[list[int]]:
    """As `one_swap`, but a swap is made only if it gains at least factor * f(S)/k (proof M1).

    k >= 1. Otherwise the new token goes.
    """
    cache: list[int] = []
    caches = []
    for i in range(f.size):
        if len(cache) < k:
            cache = [*cache, i]
        else:
            now, held = f.value(cache), [*cache, i]
            value, place = cheapest_removal(f, held, range(k))
            if k * (value - now) >= factor * now:
                cache = held[:place] + held[place + 1 :]
        caches.append(list(cache))
    return caches


def delete_down(f: SetFunction, k: int) -> list[int]:
    """All tokens, less one at a time the one that is missed least, until k are left (proof M6)."""
    held = list(range(f.size))
    while len(held) > k:
        _, place = cheapest_removal(f, held, range(len(held)))
        held.pop(place)
    return held


def best_set(f: SetFunction, k: int) -> list[int]:
    """A best set of at most k tokens, by trying all sets of min(k, size). For small ground sets.

    f must be monotone, else a smaller set could be better.
    """
    return list(
        max(itertools.combinations(range(f.size), min(k, f.size)), key=lambda T: f.value(T))
    )
