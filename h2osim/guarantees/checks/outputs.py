"""T5: what an attention step puts out when tokens are missing."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from h2osim.guarantees.results import CLOSE, Result, Verdict


def output_error(weights: ArrayLike, values: ArrayLike, kept: ArrayLike) -> Result:
    """T5 for one head and one step: ||o - o_S|| <= (1 - r) max_{j not in S} ||v_j - o_S||.

    weights [n] >= 0, divided by their sum first; values [n, d]; kept: mask [n] of S. The Euclidean
    norm. Numbers: error, bound, recall.
    """
    w = np.asarray(weights, dtype=np.float64)
    v = np.asarray(values, dtype=np.float64)
    inside = np.asarray(kept, dtype=bool)
    total, mass = w.sum(), w[inside].sum()
    if not mass > 0:
        return Result("T5", Verdict.FAILS, note="the set has no mass, its output does not exist")
    output = w @ v / total
    over_cache = w[inside] @ v[inside] / mass
    recall = float(mass / total)
    error = float(np.linalg.norm(output - over_cache))
    away = np.linalg.norm(v[~inside] - over_cache, axis=1).max(initial=0.0)
    bound = float((1 - recall) * away)
    identity = output - over_cache - w[~inside] @ (v[~inside] - over_cache) / total
    scale = CLOSE * max(float(np.linalg.norm(v, axis=1).max(initial=0.0)), 1e-300)
    numbers = {"error": error, "bound": bound, "recall": recall}
    if error > bound + scale or float(np.linalg.norm(identity)) > scale:
        return Result("T5", Verdict.VIOLATED, None, numbers)
    return Result("T5", Verdict.HOLDS, None, numbers)
