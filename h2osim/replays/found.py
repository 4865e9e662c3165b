"""What runs found, in exact integers, and the recall that follows from them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np

from h2osim.engines.results import Curve, Outcome
from h2osim.replays.plan import PlannedRun


@dataclass(frozen=True)
class Found:
    """What a chunk gives, filled in run by run; all masses in fixed point.

    kept: int64 [configurations, units, budgets], the mass attended over all decode steps, -1 where
    a trace is shorter than the budget. held: int32, as kept, the most keys that a step attended
    besides its own. mass: int64 [units], the mass of all decode rows. On request evicted_at: int32
    [..., tokens], and of every decode step kept_steps: int64 [..., steps] and mass_steps: int64
    [units, steps]; the errors wanted, by variable: float64, as kept, and of every step.
    """

    kept: np.ndarray
    held: np.ndarray
    mass: np.ndarray
    evicted_at: np.ndarray | None = None
    kept_steps: np.ndarray | None = None
    mass_steps: np.ndarray | None = None
    errors: dict[str, np.ndarray] = field(default_factory=dict)
    error_steps: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int],
        tokens: int | None = None,
        steps: int | None = None,
        errors: Collection[str] = (),
    ) -> Found:
        """Nothing found yet; with evictions of ``tokens``, with what there is of each of ``steps``,
        and with errors.
        """
        return cls(
            np.full(shape, -1, np.int64),
            np.zeros(shape, np.int32),
            np.zeros(shape[1], np.int64),
            None if tokens is None else np.zeros((*shape, tokens), np.int32),
            None if steps is None else np.zeros((*shape, steps), np.int64),
            None if steps is None else np.zeros((shape[1], steps), np.int64),
            {name: np.full(shape, np.nan) for name in errors},
            {name: np.zeros((*shape, steps)) for name in errors if steps is not None},
        )

    def part(self, at: tuple[slice, slice]) -> Found:
        """The part of some configurations and units, sharing the memory."""
        assert self.evicted_at is None and self.kept_steps is None
        errors = {name: values[at] for name, values in self.errors.items()}
        return Found(self.kept[at], self.held[at], self.mass[at[1]], errors=errors)

    def recorded(self, run: PlannedRun) -> list[int]:
        """The budgets of a pass whose evictions are wanted, ascending."""
        if self.evicted_at is None or not run.one_pass:
            return []
        every = np.arange(1, run.job.unit.n + 1)
        return sorted(every[run.entries].tolist())

    def put(self, run: PlannedRun, result: Curve | Outcome, masses: np.ndarray | int) -> None:
        """Enter what a run found, and the masses of its unit's decode rows (or their sum)."""
        u = run.at[1]
        self.mass[u] = np.sum(masses)
        for name, values in self.errors.items():
            one = result.errors.of[name]
            values[run.at][run.places] = one[run.entries] if isinstance(result, Curve) else one
        for name, values in self.error_steps.items():
            values[run.at][run.places] = result.errors.steps[name]
        if isinstance(result, Curve):
            self.kept[run.at][run.places] = result.kept[run.entries]
            self.held[run.at][run.places] = result.held[run.entries]
            if self.evicted_at is not None:
                every = np.arange(run.job.unit.n)[run.entries]
                order = np.argsort(np.argsort(every))
                self.evicted_at[run.at][run.places] = result.evicted_at[order]
            return
        self.kept[run.at][run.places] = result.kept.sum()
        self.held[run.at][run.places] = result.held
        if self.evicted_at is not None:
            self.evicted_at[run.at][run.places] = result.evicted_at
        if self.kept_steps is not None and self.mass_steps is not None:
            self.kept_steps[run.at][run.places] = result.kept
            self.mass_steps[u] = masses

    @property
    def recall(self) -> np.ndarray:
        """float64, as kept: kept / mass in one correctly rounded division.

        NaN where there is nothing to tell: a trace shorter than the budget, nothing decoded.
        """
        return quotient(self.kept, self.mass[:, None])


def quotient(kept: np.ndarray, mass: np.ndarray) -> np.ndarray:
    """Kept / mass, correctly rounded; NaN where mass is 0 or kept is missing (negative)."""
    # Below 2**53, which takes half a billion rows of a head to reach, both are exact in float64.
    assert not mass.size or mass.max() < 2**53
    decodes = np.broadcast_to(mass, kept.shape) > 0
    return np.divide(kept, mass, out=np.full(kept.shape, np.nan), where=decodes & (kept >= 0))
