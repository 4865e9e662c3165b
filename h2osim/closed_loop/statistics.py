"""Statistics over texts. The sample is the text: layers and heads of one text are not independent.

KL divergences differ by factors from text to text, so they are averaged as logarithms (geometric
mean) and policies are compared by the logarithm of their ratio on the same text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 9999
LEVEL = 0.95
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean over texts; low and high are NaN where one text gives no interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Numbers, *, geometric: bool = False, seed: int = 0) -> Interval:
    """The mean of one number a text, with a bootstrap percentile interval of level .95.

    geometric: of positive numbers, exp(mean(log x)); 0 where one of them is 0. With one text there
    is no interval. Efron's percentile bootstrap, 9999 resamples of texts.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, np.float64)
    if geometric and (values <= 0).any():
        return Interval(0.0, np.nan, np.nan)
    x = np.log(values) if geometric else values
    back = np.exp if geometric else np.asarray
    low = high = np.nan
    if len(x) > 1:
        found = bootstrap(
            (x,), np.mean, n_resamples=RESAMPLES, confidence_level=LEVEL, method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval  # fmt: skip
        low, high = float(back(found.low)), float(back(found.high))
    return Interval(float(back(x.mean())), low, high)


def paired_p(a: Numbers, b: Numbers, *, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test that a and b do not differ on the same texts.

    On logarithms; exact up to 13 texts, sampled beyond. With m texts it is at least 2 / 2**m.
    """
    from scipy.stats import permutation_test

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if np.array_equal(a, b) or (a <= 0).any() or (b <= 0).any() or len(a) < 2:
        return 1.0
    found = permutation_test(
        (np.log(a), np.log(b)), lambda x, y, axis: (x - y).mean(axis=axis), vectorized=True,
        permutation_type="samples", n_resamples=RESAMPLES, rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(min(1.0, found.pvalue))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number by Holm's step-down method."""
    found: dict[str, float] = {}
    worst = 0.0
    for i, name in enumerate(sorted(p, key=lambda name: p[name])):
        worst = max(worst, min(1.0, (len(p) - i) * p[name]))
        found[name] = worst
    return found


def can_tell(texts: int, policies: int, *, alpha: float = 0.05) -> bool:
    """Whether so many texts could tell any of so many policies from the best.

    The least p is 2 / 2**texts, and Holm multiplies the least of all by policies - 1.
    """
    return policies > 1 and (policies - 1) * 2.0 ** (1 - texts) < alpha


def ties_with_best(losses: Mapping[str, Numbers], *, alpha: float = 0.05) -> set[str]:
    """The policies whose loss cannot be told from the least geometric mean, that one included."""
    means = {name: mean_interval(x, geometric=True).mean for name, x in losses.items()}
    best = min(means, key=lambda name: means[name])
    p = {name: paired_p(x, losses[best]) for name, x in losses.items() if name != best}
    return {best, *(name for name, value in holm(p).items() if value >= alpha)}
