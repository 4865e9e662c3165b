"""The dynamic submodular framework of H2O as code, for the tests of the paper's theorem.

The paper (arXiv 2306.14048) keeps, for every step i and cache content Z, a set function
f_{Z,i}(T) = F(Z, i, T) of the tokens kept (Definitions 4.1 and D.4). A `DynamicFunction` is such a
family. The checkers go through every case and return the first `Witness`, or None.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike
from statements.setfunctions import (
    IDENTITY,
    Coverage,
    FacilityLocation,
    Number,
    SetFunction,
    Shape,
    SharedCache,
    Witness,
    at_least,
    check_monotone,
    check_submodular,
    subsets,
)

Direction = Literal["fall", "growth"]


@runtime_checkable
class DynamicFunction(Protocol):
    """A family F(Z, i, ·): one set function for each step and cache content."""

    @property
    def steps(self) -> int:
        """Number of steps; step i knows the tokens 0 ... i."""

    def at(self, step: int, cache: Iterable[int]) -> SetFunction:
        """f_{Z,i} for i = step and Z = cache, on the tokens 0 ... step."""


def attention_mass(scores: Any, shape: Shape = IDENTITY) -> SharedCache:
    """f(T) = shape(sum_{s in T} scores[s]), scores [tokens]: H2O's F_score, of one head."""
    row = scores.tolist() if isinstance(scores, np.ndarray) else list(scores)
    return SharedCache([row], shape)


@dataclass(frozen=True)
class Still:
    """A family that does not change: token i arrives at step i, the values stay the same."""

    function: SetFunction

    @property
    def steps(self) -> int:
        """One step for each token."""
        return self.function.size

    def at(self, step: int, cache: Iterable[int]) -> SetFunction:
        """The same function at every step."""
        return self.function


class AccumulatedAttention:
    """f_i(T) = sum over heads of shape(sum_{s in T} sum_{t <= i} rows[h, t, s]), whatever Z is.

    H2O's objective on full scores (Algorithm 2 in its faithful reading, self column counted). rows:
    [heads, n, n] (or [n, n]) integers or fractions, row t zero beyond t.
    """

    def __init__(self, rows: ArrayLike, shape: Shape = IDENTITY) -> None:
        matrix = np.asarray(rows)
        self.rows = matrix[None] if matrix.ndim == 2 else matrix
        self.sums = np.add.accumulate(self.rows, axis=1)
        self.shape = shape

    @property
    def steps(self) -> int:
        """The number of rows, n."""
        return int(self.rows.shape[1])

    def at(self, step: int, cache: Iterable[int]) -> SharedCache:
        """f_i; the cache makes no difference."""
        return SharedCache(self.sums[:, step, : step + 1], self.shape)


class CurrentAttention(AccumulatedAttention):
    """f_{Z,i}(T) = sum over heads of shape(mass of T in row i, renormalised over Z + {i}).

    Algorithm 1's objective with the self column counted. It depends on Z: tokens outside have 0. A
    head that gives Z + {i} no mass counts 0.
    """

    def at(self, step: int, cache: Iterable[int]) -> SharedCache:
        """f_{Z,i}, in fractions."""
        seen = sorted({*cache, step})
        scores = []
        for row in self.rows[:, step, : step + 1].tolist():
            mass = sum(row[s] for s in seen)
            share = [Fraction(0)] * (step + 1)
            for s in seen:
                share[s] = Fraction(row[s]) / Fraction(mass) if mass else Fraction(0)
            scores.append(share)
        return SharedCache(scores, self.shape)


def check_modular(f: SetFunction) -> Witness | None:
    """Equal returns: f(X + x) - f(X) the same for every X without x.

    Submodular, and its mirror image; the witness of a submodular function that is not modular has
    the larger return as `right`.
    """
    found = check_submodular(f)
    if found is not None:
        return found
    for x in range(f.size):
        first = f.value({x}) - f.value(())
        last = f.value(range(f.size)) - f.value(set(range(f.size)) - {x})
        if not at_least(last, first):
            rest = frozenset(range(f.size)) - {x}
            return Witness("modular", last, first, frozenset(), rest, x)
    return None


def check_dynamic_submodular(family: DynamicFunction, most: int | None = None) -> Witness | None:
    """Definition D.4: every member f_{Z,i} has diminishing returns above Z (|Z| <= most)."""
    return _each_member(
        family, most, lambda f, cache: check_submodular(f, above=cache), "dynamic submodular"
    )


def check_dynamic_monotone(family: DynamicFunction, most: int | None = None) -> Witness | None:
    """The universal monotone condition D.23: every member is monotone (|Z| <= most)."""
    return _each_member(family, most, lambda f, cache: check_monotone(f), "universal monotone")


def check_udc1(
    family: DynamicFunction, k: int, theta: Number, direction: Direction = "fall"
) -> Witness | None:
    """UDC1 (D.25) for every i and all caches Z, S of at most k with S within one token of Z.

    fall (as printed): f_{S,i}(S) >= (1 - theta) f_{Z,i-1}(S); growth (the other way round):
    f_{Z,i-1}(S) >= (1 - theta) f_{S,i}(S). S lies among the tokens 0 ... i-1, which both functions
    know.
    """
    for i in range(1, family.steps):
        known = range(i)
        for before in subsets(known, k):
            old = family.at(i - 1, before)
            for after in subsets(known, k):
                if len(after - before) > 1:
                    continue
                was, now = old.value(after), family.at(i, after).value(after)
                left, right = (now, was) if direction == "fall" else (was, now)
                if not at_least(left, (1 - theta) * right):
                    bound = (1 - theta) * right
                    return Witness(f"UDC1 ({direction})", left, bound, before, after, None, i)
    return None


def opt(family: DynamicFunction, step: int, k: int) -> Number:
    """opt_i (D.27): the largest f_{X,i}(Y) over |X|, |Y| <= k, Y at most one token beyond X."""
    known = range(step + 1)
    return max(
        member.value(chosen)
        for cache in subsets(known, k)
        for member in (family.at(step, cache),)
        for chosen in subsets(known, k)
        if len(chosen - cache) <= 1
    )


def check_udc2(
    opts: Sequence[Number], gamma: Number, direction: Direction = "fall", first: int = 0
) -> Witness | None:
    """UDC2 (D.28) on the values opt_first, opt_{first+1}, ...

    fall (as printed): opt_i >= (1 - gamma) opt_{i-1}; growth (what the induction needs, proof
    paper-theorem): opt_{i-1} >= (1 - gamma) opt_i.
    """
    for i in range(1, len(opts)):
        before, after = opts[i - 1], opts[i]
        left, right = (after, before) if direction == "fall" else (before, after)
        if not at_least(left, (1 - gamma) * right):
            return Witness(f"UDC2 ({direction})", left, (1 - gamma) * right, step=first + i)
    return None


def _each_member(
    family: DynamicFunction,
    most: int | None,
    check: Callable[[SetFunction, frozenset[int]], Witness | None],
    name: str,
) -> Witness | None:
    for i in range(family.steps):
        for cache in subsets(range(i + 1), most):
            found = check(family.at(i, cache), cache)
            if found is not None:
                return Witness(
                    name,
                    found.left,
                    found.right,
                    found.small,
                    found.large,
                    found.token,
                    i,
                    cache,
                )
    return None


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


def dynamic_one_swap(
    family: DynamicFunction | SetFunction, k: int, prompt_len: int = 1
) -> list[list[int]]:
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
