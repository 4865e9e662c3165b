"""Set functions on the tokens 0 ... size-1, and checkers of monotonicity and diminishing returns.

They are the objectives of a cache that several heads share (proof T9). The checkers look at every
case of a small ground set and return the first `Witness` that breaks the property, or None.

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
from typing import Any, Protocol

import numpy as np

Number = int | float | Fraction

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


# --- exact checkers ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """A case that breaks a property: `left` ought to be at least `right`.

    small, large: the two sets of the case; token: the one added, if any; step and cache: which
    function it is, where functions change with time or with the cache.
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
