"""M3: what recall is a distance of."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from h2osim.guarantees.results import CLOSE, Result, Verdict


def what_recall_is(weights: ArrayLike, kept: ArrayLike) -> Result:
    """M3: three distances of a row from its renormalised part are 1 - r, -ln r and 2(1 - r).

    weights [n] >= 0, divided by their sum first; kept: mask [n] of S. The third is the error of the
    output for the worst values in the unit ball (the values of the proof, in one dimension).
    Numbers: recall, variation, entropy (nats), error.
    """
    w = np.asarray(weights, dtype=np.float64)
    inside = np.asarray(kept, dtype=bool)
    total, mass = w.sum(), w[inside].sum()
    if not mass > 0:
        return Result("M3", Verdict.FAILS, note="the set has no mass")
    full, part = w / total, np.where(inside, w / mass, 0.0)
    recall = float(mass / total)
    variation = float(np.abs(full - part).sum() / 2)
    held = part > 0
    entropy = float((part[held] * np.log(part[held] / full[held])).sum())
    values = np.where(inside, -1.0, 1.0)
    error = float(abs(full @ values - part @ values))
    numbers = {"recall": recall, "variation": variation, "entropy": entropy, "error": error}
    wanted = {"variation": 1 - recall, "entropy": -math.log(recall), "error": 2 * (1 - recall)}
    same = all(abs(numbers[name] - value) <= CLOSE for name, value in wanted.items())
    return Result("M3", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)
