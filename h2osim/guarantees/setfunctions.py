"""The dynamic submodular framework of H2O as code: set functions and exact checkers.

The paper (arXiv 2306.14048) keeps, for every step i and cache content Z, a set function
f_{Z,i}(T) = F(Z, i, T) of the tokens kept (Definitions 4.1 and D.4). Here a `SetFunction` is one
such function on the tokens 0 ... size-1, a `DynamicFunction` the whole family. The checkers look at
every case of a small ground set and return the first `Witness` that breaks the property, or None.

Scores that are integers or fractions give exact values, and the checkers compare exactly. Where a
square root or a logarithm makes floats, they allow `TOLERANCE`, relative to the larger side.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

Number = int | float | Fraction
Direction = Literal["fall", "growth"]

TOLERANCE = 1e-9
"""Relative slack of a comparison in which a float takes part; exact numbers get none."""


class SetFunction(Protocol):
    """A function of sets of tokens."""

    @property
    def size(self) -> int:
        """Number of tokens; the ground set is 0 ... size-1."""

    def value(self, chosen: Iterable[int]) -> Number:
        """f(T)."""

    def gain(self, chosen: Iterable[int], token: int) -> Number:
        """The marginal gain f(T + token) - f(T)."""


@runtime_checkable
class DynamicFunction(Protocol):
    """A family F(Z, i, ·): one set function for each step and cache content."""

    @property
    def steps(self) -> int:
        """Number of steps; step i knows the tokens 0 ... i."""

    def at(self, step: int, cache: Iterable[int]) -> SetFunction:
        """f_{Z,i} for i = step and Z = cache, on the tokens 0 ... step."""


def at_least(left: Number, right: Number) -> bool:
    """Whether left >= right, exactly for integers and fractions, up to `TOLERANCE` for floats."""
    if isinstance(left, float) or isinstance(right, float):
        return left >= right - TOLERANCE * max(1.0, abs(float(left)), abs(float(right)))
    return left >= right


# --- concave shapes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A nondecreasing concave h on [0, inf), applied to a mass."""

    name: str
    of: Callable[[Number], Number]


IDENTITY = Shape("identity", lambda z: z)
SQRT = Shape("sqrt", lambda z: math.sqrt(1 + z))
LOG = Shape("log", lambda z: math.log1p(z))
SHAPES = {shape.name: shape for shape in (IDENTITY, SQRT, LOG)}
"""The three shapes that the paper names (Algorithm 2): z, sqrt(1+z), log(1+z)."""


def capped(limit: Number) -> Shape:
    """min(z, limit): concave, and exact on exact numbers."""
    return Shape(f"min(z,{limit})", lambda z: min(z, limit))


# --- set functions -------------------------------------------------------------------------------


class _Function(ABC):
    """What all the set functions here share: the gain as a difference of two values."""

    size: int

    @abstractmethod
    def value(self, chosen: Iterable[int]) -> Number:
        """f(T)."""

    def gain(self, chosen: Iterable[int], token: int) -> Number:
        """f(T + token) - f(T)."""
        held = frozenset(chosen)
        return self.value(held | {token}) - self.value(held)


class SharedCache(_Function):
    """f(T) = sum over heads h of shape(sum_{s in T} scores[h, s]): one cache for several heads.

    Monotone and submodular for nonnegative scores; modular only for the identity (proof T9). One
    head gives F_score of the paper's Algorithm 2. scores: [heads, tokens] of any exact or float
    numbers.
    """

    def __init__(self, scores: Any, shape: Shape = IDENTITY) -> None:
        rows = scores.tolist() if isinstance(scores, np.ndarray) else scores
        self.scores: list[list[Number]] = [list(row) for row in rows]
        self.shape = shape
        self.size = len(self.scores[0])

    def value(self, chosen: Iterable[int]) -> Number:
        """f(T); heads are added in order."""
        held = sorted(frozenset(chosen))
        total: Number = 0
        for row in self.scores:
            mass: Number = 0
            for s in held:
                mass = mass + row[s]
            total = total + self.shape.of(mass)
        return total


def attention_mass(scores: Any, shape: Shape = IDENTITY) -> SharedCache:
    """f(T) = shape(sum_{s in T} scores[s]), scores [tokens]: H2O's F_score, of one head."""
    row = scores.tolist() if isinstance(scores, np.ndarray) else list(scores)
    return SharedCache([row], shape)


class FacilityLocation(_Function):
    """f(T) = sum over clients c of max_{s in T} likeness[c, s], 0 for the empty set.

    Monotone and submodular for nonnegative likeness. likeness: [clients, tokens].
    """

    def __init__(self, likeness: Any) -> None:
        rows = likeness.tolist() if isinstance(likeness, np.ndarray) else likeness
        self.likeness: list[list[Number]] = [list(row) for row in rows]
        self.size = len(self.likeness[0])

    def value(self, chosen: Iterable[int]) -> Number:
        """f(T)."""
        held = frozenset(chosen)
        total: Number = 0
        for row in self.likeness:
            total = total + max((row[s] for s in held), default=0)
        return total


class Coverage(_Function):
    """f(T) = weight of the union of the sets of the tokens in T. Monotone and submodular.

    sets: for each token the points it covers; weights: of the points 0 ... (default 1 each).
    """

    def __init__(
        self, sets: Sequence[Iterable[int]], weights: Sequence[Number] | None = None
    ) -> None:
        self.sets = [frozenset(points) for points in sets]
        points = max((p for points in self.sets for p in points), default=-1) + 1
        self.weights: list[Number] = [1] * points if weights is None else list(weights)
        self.size = len(self.sets)

    def value(self, chosen: Iterable[int]) -> Number:
        """f(T)."""
        covered = frozenset().union(*(self.sets[s] for s in chosen))
        total: Number = 0
        for p in sorted(covered):
            total = total + self.weights[p]
        return total


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


# --- exact checkers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """A case that breaks a property: `left` ought to be at least `right`.

    small, large: the two sets of the case; token: the one added, if any; step and cache: of the
    family's member, if it is about a family.
    """

    property: str
    left: Number
    right: Number
    small: frozenset[int] = frozenset()
    large: frozenset[int] = frozenset()
    token: int | None = None
    step: int | None = None
    cache: frozenset[int] | None = None


def subsets(ground: Iterable[int], most: int | None = None) -> Iterator[frozenset[int]]:
    """All subsets, small ones first; of at most `most` elements."""
    items = sorted(ground)
    for size in range(min(len(items), len(items) if most is None else most) + 1):
        yield from map(frozenset, itertools.combinations(items, size))


def check_monotone(f: SetFunction) -> Witness | None:
    """f(T + x) >= f(T) for every T and x (the universal monotone condition D.23, one member).

    Adding one token at a time is enough: chains of such steps connect any T to any larger set.
    """
    for small in subsets(range(f.size)):
        for x in sorted(set(range(f.size)) - small):
            left, right = f.value(small | {x}), f.value(small)
            if not at_least(left, right):
                return Witness("monotone", left, right, small, small | {x}, x)
    return None


def check_submodular(f: SetFunction, *, above: Iterable[int] = ()) -> Witness | None:
    """Diminishing returns for all X ⊆ Y that contain `above`, and all x outside Y.

    Checked for Y = X + y, which implies the rest (apply it along a chain from X to Y). With `above`
    = Z it is the condition of Definition D.4 for one member of the family.
    """
    base = frozenset(above)
    rest = sorted(set(range(f.size)) - base)
    for extra in subsets(rest):
        small = base | extra
        outside = [x for x in rest if x not in extra]
        values = {x: f.value(small | {x}) for x in outside}
        here = f.value(small)
        for x, y in itertools.permutations(outside, 2):
            left, right = values[x] - here, f.value(small | {x, y}) - values[y]
            if not at_least(left, right):
                return Witness("submodular", left, right, small, small | {y}, x)
    return None


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
