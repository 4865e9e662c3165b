"""T10: what output errors in the layers of a decoder do to its logits and to its predictions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from h2osim.guarantees.results import CLOSE, Result, Verdict
from statements import decoder as small

ROUNDING = 1e-12
"""Rounding of a relative entropy computed from logits, relative to 1 + the largest change."""


def divergence(before: ArrayLike, after: ArrayLike) -> dict[str, float]:
    """KL(softmax(before) || softmax(after)) in nats, and what bounds it; logits [vocabulary].

    width: largest less smallest change w. variance: of the change under softmax(before). bound:
    min(w, w**2 / 8). low, high: variance times (exp(-w) - 1 + w) / w**2 and times
    (exp(w) - 1 - w) / w**2, between which KL lies.
    """
    z = np.asarray(before, np.float64)
    change = np.asarray(after, np.float64) - z
    p = np.exp(z - z.max())
    p /= p.sum()
    w = float(change.max() - change.min())
    centred = change - p @ change
    variance = float(p @ centred**2)
    largest = float(centred.max())
    # for small changes the sum would round away what is looked for
    kl = float(np.log1p(p @ np.expm1(centred))) if w < 1 else 0.0
    if w >= 1:
        kl = largest + float(np.log(p @ np.exp(centred - largest)))
    if w < 1e-3:  # the series: the quotients would lose half of their digits
        low, high = 1 / 2 - w / 6 + w * w / 24, 1 / 2 + w / 6 + w * w / 24 + w**3 / 60
    else:
        with np.errstate(over="ignore"):
            low, high = (np.expm1(-w) + w) / w**2, (np.expm1(w) - w) / w**2
    return {
        "kl": kl,
        "width": w,
        "variance": variance,
        "bound": min(w, w * w / 8),
        "low": float(low) * variance,
        "high": float(high) * variance if variance else 0.0,
    }


def logit_movement(
    decoder: small.Decoder,
    x: NDArray[np.float64],
    *,
    errors: Sequence[NDArray[np.float64]] | None = None,
    cached: Sequence[NDArray[np.bool_]] | None = None,
) -> Result:
    """T10 for a small decoder run on x [n, d].

    Give either errors [n, d] of each layer, added to what its attention puts out, or cached, bool
    [heads, n, n] of each layer: which keys each row may see; then the errors are those of eviction
    and the first part of the statement, that adding them gives the evicted run, is checked too.

    Numbers: movement, the largest change of a logit; first_order, the largest of its first-order
    estimate; apart, the largest sum over layers of the estimate's absolute parts; log10_bound of
    the product of factors; kl and kl_bound, the largest over rows; identity, the largest difference
    of the evicted run from the full one with the errors added.
    """
    if (errors is None) == (cached is None):
        raise ValueError("give errors or cached, one of them")
    gap, scale = 0.0, 1.0
    if cached is not None:
        errors, evicted = small.output_errors(decoder, x, cached)
    assert errors is not None
    full, moved = small.run(decoder, x), small.run(decoder, x, errors)
    scale = 1 + float(np.abs(full.logits).max())
    if cached is not None:
        gap = float(np.abs(moved.logits - evicted.logits).max())
    movement = float(np.abs(moved.logits - full.logits).max())
    bound = small.log10_bound(decoder, x, errors)
    whole = small.first_order(decoder, x, errors)
    zero = np.zeros_like(x)
    parts = [
        small.first_order(decoder, x, [e if i == j else zero for j in range(len(errors))])
        for i, e in enumerate(errors)
    ]
    apart = np.abs(parts).sum(axis=0)
    rows = [divergence(*pair) for pair in zip(full.logits, moved.logits, strict=True)]
    numbers = {
        "movement": movement,
        "first_order": float(np.abs(whole).max()),
        "apart": float(apart.max()),
        "log10_bound": bound,
        "kl": max(row["kl"] for row in rows),
        "kl_bound": max(row["bound"] for row in rows),
        "identity": gap,
    }
    wrong = (
        gap > CLOSE * scale,
        movement > ROUNDING * scale and np.log10(movement) > bound + CLOSE,
        bool((np.abs(sum(parts) - whole) > CLOSE * (scale + apart)).any()),
        any(_outside(row) for row in rows),
    )
    return Result("T10", Verdict.VIOLATED if any(wrong) else Verdict.HOLDS, None, numbers)


def _outside(row: dict[str, float]) -> bool:
    slack = ROUNDING * (1 + row["width"])
    kl = row["kl"]
    return (
        not -slack <= kl <= row["bound"] + slack
        or not row["low"] - slack <= kl <= row["high"] * (1 + CLOSE) + slack
    )
