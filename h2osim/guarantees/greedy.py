"""Choosing k tokens for a set function: greedy, lazily, one swap at a time, and truly best.

Ties: the smallest token is added first, the oldest (smallest) is dropped first.
"""

from __future__ import annotations

import heapq
import itertools

import numpy as np

from h2osim.guarantees.setfunctions import (
    Coverage,
    DynamicFunction,
    FacilityLocation,
    Number,
    SetFunction,
    Still,
)


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


def lazy_greedy(f: SetFunction, k: int) -> list[int]:
    """The same choice as `static_greedy` for submodular f, with fewer evaluations.

    A gain computed earlier is an upper bound, so only the top of a heap is ever renewed (Minoux
    1978). With rounded values the two may differ where gains tie up to rounding.
    """
    chosen: list[int] = []
    heap: list[tuple[Number, int, int]] = [(-f.gain((), x), x, 0) for x in range(f.size)]
    heapq.heapify(heap)
    while heap and len(chosen) < k:
        _, x, when = heapq.heappop(heap)
        if when == len(chosen):
            chosen.append(x)
        else:
            heapq.heappush(heap, (-f.gain(chosen, x), x, len(chosen)))
    return chosen


def one_swap(family: DynamicFunction | SetFunction, k: int, prompt_len: int = 1) -> list[list[int]]:
    """The paper's dynamic greedy (D.12): the cache after every step, each oldest first.

    Step i holds G = S + {i} and, when that is more than k, drops the token whose removal leaves the
    largest f_{S,i} (ties: the oldest). A set function stands for a family that does not change. In
    the prompt nothing is dropped; at its end tokens go one after the other.
    """
    members: DynamicFunction = family if isinstance(family, DynamicFunction) else Still(family)
    cache: list[int] = []
    caches = []
    for i in range(members.steps):
        f = members.at(i, cache)
        cache = [*cache, i]
        while i >= prompt_len - 1 and len(cache) > k:
            held = list(cache)
            left = [f.value(s for s in held if s != v) for v in held]
            cache.pop(max(range(len(held)), key=lambda q: (left[q], -q)))
        caches.append(list(cache))
    return caches


def best_set(f: SetFunction, k: int) -> list[int]:
    """A best set of at most k tokens, by trying all sets of min(k, size). For small ground sets.

    f must be monotone, else a smaller set could be better.
    """
    return list(
        max(itertools.combinations(range(f.size), min(k, f.size)), key=lambda T: f.value(T))
    )


def best_set_milp(f: Coverage | FacilityLocation, k: int) -> list[int]:
    """A best set of at most k tokens for coverage or facility location, as an integer program.

    Coverage: maximise sum_p w_p y_p, y_p <= sum of x_s over the tokens that cover p. Facility
    location: maximise sum_{c,s} likeness[c,s] y_{c,s}, y_{c,s} <= x_s, sum_s y_{c,s} <= 1. In both
    sum x <= k, x binary, y in [0, 1]. Solved by HiGHS (scipy.optimize.milp) in float64; the set it
    names is exact in its own right, its optimality is up to HiGHS's tolerance.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    n = f.size
    entries: list[tuple[int, int, float]] = [(0, s, 1.0) for s in range(n)]  # sum x <= k
    limits = [float(k)]
    profit = [0.0] * n
    if isinstance(f, Coverage):
        for p, weight in enumerate(f.weights):
            entries.append((len(limits), len(profit), 1.0))
            entries += [(len(limits), s, -1.0) for s in range(n) if p in f.sets[s]]
            limits.append(0.0)
            profit.append(float(weight))
    else:
        for row in f.likeness:
            first = len(profit)
            entries += [(len(limits), first + s, 1.0) for s in range(n)]
            limits.append(1.0)
            for s in range(n):
                entries += [(len(limits), first + s, 1.0), (len(limits), s, -1.0)]
                limits.append(0.0)
            profit += [float(value) for value in row]
    row_of, column_of, data = zip(*entries, strict=True)
    shape = (len(limits), len(profit))
    matrix = coo_array((data, (row_of, column_of)), shape=shape).tocsr()
    solved = milp(
        -np.array(profit),
        constraints=LinearConstraint(matrix, ub=np.array(limits)),
        integrality=np.r_[np.ones(n), np.zeros(len(profit) - n)],
        bounds=Bounds(0, 1),
    )
    if not solved.success:
        raise RuntimeError(f"HiGHS did not solve the instance: {solved.message}")
    return [s for s in range(n) if solved.x[s] > 0.5]
