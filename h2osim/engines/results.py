"""What an engine gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Errors:
    """Errors that were asked for, by variable: float64 [budgets], or of one budget a number.

    Of one budget [steps] too.
    """

    of: Mapping[str, np.ndarray] = field(default_factory=dict)
    steps: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a replay found, in exact integers (fixed point: multiples of 2**-24).

    ``kept[t - p]`` is the mass attended in decode step t; ``evicted_at[j]`` the step after which
    token j is never attended again (n if it stays); ``held`` the most keys that a decode step
    attended besides its own.
    """

    kept: np.ndarray
    evicted_at: np.ndarray
    held: int
    errors: Errors = Errors()


@dataclass(frozen=True)
class Curve:
    """What one pass found for every budget, in exact integers (fixed point).

    ``kept[k - 1]`` is the mass attended over all decode steps at budget k; ``held[k - 1]`` the most
    keys attended besides the own one; ``evicted_at[b, j]`` as in an outcome, for the budgets
    asked for.
    """

    kept: np.ndarray
    held: np.ndarray
    evicted_at: np.ndarray
    errors: Errors = Errors()


@dataclass(frozen=True)
class Bracket:
    """lower <= optimum of a budget <= upper <= whole, in exact integers, with what proves it.

    ``evicted_at`` int32 [n] is a schedule that keeps exactly `lower`; ``price`` int64 [n] are
    prices λ with D(λ) = `upper`; both None where they were not asked for. ``readings``: how many
    times the rows were read.
    """

    lower: int
    upper: int
    whole: int
    evicted_at: Any
    price: Any
    readings: int
