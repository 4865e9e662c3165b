"""What an engine is given and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from h2osim.policies.declaration import Configured
from h2osim.traces.unit import Unit


@dataclass(frozen=True)
class Job:
    """One unit replayed under one policy at one budget.

    ``budget`` is k in tokens, ``prompt_len`` is p; decoding is the steps p … n-1.
    """

    unit: Unit
    configured: Configured
    budget: int
    prompt_len: int

    @cached_property
    def scalars(self) -> dict[str, int | float]:
        """The values every rule may name, besides those of a token or a step."""
        return {
            **self.configured.numbers(self.budget),
            "k": self.budget,
            "p": self.prompt_len,
            "n": self.unit.n,
            "heads": len(self.unit.heads),
        }

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """The policy's per-token numbers, float64[n] each."""
        given = self.configured.policy.inputs
        return {
            name: np.ascontiguousarray(make(self.unit, self.scalars), np.float64)
            for name, make in given.items()
        }


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
