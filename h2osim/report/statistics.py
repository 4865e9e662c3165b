"""Statistics over texts. The sample is the text: layers and heads of one text are not independent.

What differs by factors from text to text (KL divergences, errors) is averaged as logarithms
(geometric mean), and policies are compared by the logarithm of their ratio on the same text; a
share such as recall is averaged as it is, and policies are compared by their difference.
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
    mean = _mean(values, geometric)
    if len(values) < 2 or (geometric and (values <= 0).any()):
        return Interval(mean, np.nan, np.nan)
    found = bootstrap(
        (np.log(values) if geometric else values,), np.mean, n_resamples=RESAMPLES,
        confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    low, high = np.exp(found) if geometric else found
    return Interval(mean, float(low), float(high))


def paired_p(a: Numbers, b: Numbers, *, geometric: bool = True, seed: int = 0) -> float:
    """Two-sided p of the sign-flip permutation test that a and b do not differ on the same texts.

    geometric: on logarithms. Exact up to 13 texts, sampled beyond. With m texts it is at least
    2 / 2**m.
    """
    from scipy.stats import permutation_test

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if np.array_equal(a, b) or len(a) < 2:
        return 1.0
    if geometric:
        if (a <= 0).any() or (b <= 0).any():
            return 1.0
        a, b = np.log(a), np.log(b)
    found = permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), vectorized=True,
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

    The least p is 2 / 2**texts, of sampled permutations 2 / 10000, and Holm multiplies the least of
    all by policies - 1.
    """
    least = max(2.0 ** (1 - texts), 2 / (RESAMPLES + 1))
    return policies > 1 and (policies - 1) * least < alpha


def ties_with_best(
    values: Mapping[str, Numbers],
    *,
    geometric: bool = True,
    largest: bool = False,
    alpha: float = 0.05,
) -> set[str]:
    """The policies that cannot be told from the best mean (the least; or largest), it included."""
    sign = -1 if largest else 1
    means = {name: _mean(np.asarray(x, np.float64), geometric) for name, x in values.items()}
    best = min(means, key=lambda name: sign * means[name])
    p = {
        name: paired_p(x, values[best], geometric=geometric)
        for name, x in values.items()
        if name != best
    }
    return {best, *(name for name, value in holm(p).items() if value >= alpha)}


def _mean(values: Numbers, geometric: bool) -> float:
    if not geometric:
        return float(values.mean())
    return float(np.exp(np.log(values).mean())) if (values > 0).all() else 0.0


def what_intervals_say(texts: int, policies: int, what: str = "text") -> str:
    """How a table's numbers follow from its texts: intervals and test, or why there is none.

    policies: how many are compared, 0 where none are. what: the word for one of the sample.
    """
    if policies == 0:
        one = f"one {what}, so no interval: the sample is the {what}"
        return one if texts == 1 else f"95 % intervals over {what}s"
    if texts == 1:
        return f"one {what}, so no interval and no test: the sample is the {what}"
    if can_tell(texts, policies):
        return f"95 % intervals over {what}s; * cannot be told from the best (paired test, Holm)"
    return f"95 % intervals over {what}s; no test, {what}s or policies are too few"
