"""Sharing a budget among layers and units by what each of them loses at each budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from h2osim.optima.allocation_curves import Curves
from h2osim.optima.splitting import best_split
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.studies.search.losses import SHARES

Numbers = NDArray[np.float64]

GRID = 1000
"""Slots of a text that are split: a split is in thousandths of a text."""


@dataclass(frozen=True)
class Sharing:
    """How losses make a split; as it stands, by the sum of the losses.

    The sum is right for errors that are small and know nothing of each other. power: of the losses
    before they are added up; errors that add up coherently go with the square root. late: the last
    layer's losses count e^late times as much as the first one's, those between in proportion.
    equal: this share of the budget goes to all units alike.
    """

    power: float = 1.0
    late: float = 0.0
    equal: float = 0.0

    def split(self, losses: Numbers, total: float) -> Numbers:
        """Shares [layers, units] of mean ``total``, from losses [budgets, layers, units]."""
        layers = losses.shape[1]
        depth = np.linspace(-0.5, 0.5, layers)[:, None]
        weighed = losses**self.power * np.exp(self.late * depth)
        found = split_budget(on_the_grid(weighed[None])[0], total).reshape(losses.shape[1:])
        return (1 - self.equal) * found + self.equal * total


def weighed(losses: Numbers, weights: Numbers, total: float) -> Numbers:
    """Losses [texts, budgets, layers, units] averaged over texts, [budgets, layers, units].

    A text counts by its weight over what equal budgets of ``total`` lose on it.
    """
    equal = np.full(losses[0, 0].size, total)
    return np.tensordot(weights / lost(losses, equal), losses, 1)


def on_the_grid(losses: Numbers) -> Numbers:
    """Losses [texts, budgets, layers, units] at 0 … GRID slots, [texts, units, GRID + 1].

    Straight lines between the budgets of :data:`SHARES` and 1, where nothing is lost.
    """
    flat = losses.reshape(*losses.shape[:2], -1)
    at, slots = np.array([*SHARES, 1.0]) * GRID, np.arange(GRID + 1)
    return np.array([[np.interp(slots, at, [*curve, 0.0]) for curve in text.T] for text in flat])


def split_budget(curves: Numbers, total: float) -> Numbers:
    """The shares [units] of mean ``total`` whose losses add up to least, on the curves' hulls.

    curves: [units, GRID + 1]. No unit gets less than the least of :data:`SHARES`.
    """
    units, low = len(curves), round(SHARES[0] * GRID)
    slots = round(total * GRID * units)
    split, _ = best_split(Curves(curves[None]).gains([0]), slots, "hull", low)
    return UnitBudgets("", split[None] / GRID).scaled(total).budgets[0]


def lost(losses: Numbers, split: Numbers) -> Numbers:
    """What the units of each text lose together at these shares, [texts].

    losses: [texts, budgets, layers, units], between whose budgets are straight lines.
    """
    at = np.array([*SHARES, 1.0])
    flat = losses.reshape(*losses.shape[:2], -1)
    return np.array(
        [
            sum(np.interp(k, at, [*one, 0.0]) for k, one in zip(split.ravel(), text.T, strict=True))
            for text in flat
        ]
    )
