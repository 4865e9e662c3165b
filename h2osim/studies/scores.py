"""Accumulated attention scores of tokens and of vocabulary items: how they are distributed, and how
often an item stands near others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import UNIT, fixed_from_bits
from h2osim.attention.triangle import row_slice
from h2osim.studies.correlating import spearman

if TYPE_CHECKING:
    from h2osim.traces.trace import Trace

Numbers = NDArray[np.float64]
WINDOW = 10
"""Tokens this far apart at most occur together."""
LEAST = 50
"""Values in a tail: from fewer an exponent is not worth having."""
TAIL = ("alpha", "xmin", "tail", "mu", "sigma", "ratio", "p", "nested")
SMALL = 1e-9


def accumulated(trace: Trace) -> Numbers:
    """The attention each token receives from all rows and heads of a layer, [layers, n]."""
    return np.stack([unit.column_sums() * UNIT for unit in trace.units("layer")])


def late_sparsity(trace: Trace) -> list[float]:
    """Share of entries below 1 % of their row's largest, in the second half of rows; by layer."""
    found = []
    for layer in trace.layers:
        bits, small, entries = trace.tensor(layer, "scores"), 0, 0
        for t in range(trace.n // 2, trace.n):
            row = fixed_from_bits(bits[:, row_slice(t)])
            small += int((100 * row < row.max(axis=1, keepdims=True)).sum())
            entries += row.size
        found.append(small / entries)
    return found


def by_item(ids: Sequence[int], scores: Numbers) -> Numbers:
    """Scores [..., n] added up over the places of each vocabulary item, in ascending order."""
    order = np.argsort(ids, kind="stable")
    starts = np.unique(np.asarray(ids)[order], return_index=True)[1]
    return np.add.reduceat(scores[..., order], starts, axis=-1)


def together(
    ids: Sequence[int] | NDArray[np.intp], window: int = WINDOW
) -> tuple[Numbers, Numbers]:
    """How often each vocabulary item occurs with others, and with how many; in ascending order.

    The first counts pairs of places at most ``window`` tokens apart, the item at one of them and
    another item at the other; the second counts the different items among those others.
    """
    items, places = np.unique(ids, return_inverse=True)
    pairs = [
        np.stack([places[:-d], places[d:]]) for d in range(1, min(window, len(places) - 1) + 1)
    ]
    found = np.concatenate([np.zeros((2, 0), np.intp), *pairs], axis=1)
    found = found[:, found[0] != found[1]]
    both = np.concatenate([found, found[::-1]], axis=1)
    different = np.unique(both, axis=1)
    count = [np.bincount(one[0], minlength=len(items)) for one in (both, different)]
    return count[0].astype(np.float64), count[1].astype(np.float64)


def tail(values: Numbers, whole: bool = False) -> dict[str, float]:
    """A power law and a log-normal fitted to the upper tail of positive numbers, and compared.

    After Clauset, Shalizi and Newman (arXiv 0706.1062): xmin, where the tail begins, brings the
    fitted power law nearest to the data in the distance of Kolmogorov and Smirnov (of tails of at
    least LEAST values), and both densities are fitted to the values from there on by maximum
    likelihood. In y = log(x / xmin) the power law is exp(-a y) and the log-normal, cut off at xmin,
    exp(-a y - b y^2) with b > 0, each divided by its integral over y >= 0. So the power law is the
    log-normal's limit b = 0, in which general software meets numbers that overflow. whole: all
    values, xmin the least of them.

    alpha: the power law's exponent. tail: the share of values in it. mu, sigma: the log-normal's.
    ratio, p: Vuong's log-likelihood ratio of the two, divided by its standard error, below 0 where
    the log-normal is nearer, and how likely one of this size is if both are equally near. nested:
    p of the likelihood-ratio test of b = 0 (on the border: half of a chi-squared distribution).
    """
    from scipy.optimize import minimize
    from scipy.special import erfc
    from scipy.stats import chi2

    y = np.sort(np.log(values[values > 0]))
    first = 0 if whole else _tail_start(y)[0]
    xmin, y = np.exp(y[first]), y[first:] - y[first]
    rate = 1 / y.mean()
    square = (y * y).mean() * rate**2

    def loss(x: Numbers) -> float:
        return float(x[0] + x[1] * square + _log_integral(x[0], x[1]))

    scaled = minimize(  # y in units of its mean
        loss, [1.0, 0.0], method="Nelder-Mead", bounds=[(None, None), (0, None)],
        options={"initial_simplex": [[1, 0], [0.5, 0.2], [1, 0.2]], "xatol": 1e-9, "fatol": 1e-13},
    )  # fmt: skip
    a, b = scaled.x * [rate, rate**2]
    nearer = (np.log(rate) - rate * y) - (-a * y - b * y * y - _log_integral(a, b))
    spread = nearer.std()
    ratio = float(nearer.sum() / (spread * np.sqrt(len(y)))) if spread > 0 else 0.0
    found = (
        1 + rate, xmin, len(y) / (values > 0).sum(),
        np.log(xmin) - a / (2 * b) if b > 0 else -np.inf,
        (2 * b) ** -0.5 if b > 0 else np.inf,
        ratio, erfc(abs(ratio) / np.sqrt(2)),
        chi2.sf(-2 * nearer.sum(), 1) / 2 if nearer.sum() < 0 else 1.0,
    )  # fmt: skip
    return dict(zip(TAIL, map(float, found), strict=True))


def plausible(values: Numbers, draws: int = 100, seed: int = 0) -> float:
    """Whether a power law with the tail's xmin and exponent could have given positive numbers.

    The share of ``draws`` made data sets, drawn from the fitted power law above xmin and from the
    values below it, that lie as far from their own fit as the values do from theirs (Clauset,
    Shalizi and Newman, section 4.1; they rule a power law out at .1 or less).
    """
    y = np.sort(np.log(values[values > 0]))
    first, distance = _tail_start(y)
    scale, source = (y[first:] - y[first]).mean(), np.random.default_rng(seed)

    def made() -> Numbers:
        above = source.binomial(len(y), 1 - first / len(y)) if first else len(y)
        body = source.choice(y[: max(1, first)], len(y) - above)
        return np.sort(np.concatenate([body, y[first] + source.exponential(scale, above)]))

    return float(np.mean([_tail_start(made())[1] >= distance for _ in range(draws)]))


def _tail_start(y: Numbers) -> tuple[int, float]:
    """Where in sorted logarithms the tail starts, and how far from the power law it is there."""
    starts = np.flatnonzero(np.diff(y, prepend=-np.inf))
    starts = starts[starts <= max(0, len(y) - LEAST)]
    distances = [_distance(y[i:] - y[i]) for i in starts]
    best = int(np.argmin(distances))
    return int(starts[best]), distances[best]


def _distance(y: Numbers) -> float:
    """Kolmogorov's and Smirnov's distance of sorted numbers from the exponential of their mean."""
    cdf, places = -np.expm1(-y / y.mean()), np.arange(len(y) + 1) / len(y)
    return float(max((cdf - places[:-1]).max(), (places[1:] - cdf).max()))


def _log_integral(a: float, b: float) -> float:
    """Log of the integral of exp(-a y - b y^2) over y >= 0; infinity where it diverges."""
    from scipy.special import erfcx, log_ndtr

    if b < SMALL * max(a, 0) ** 2:  # the next term, 10 (b / a^2)^2, is lost in rounding
        return float(-np.log(a) - 2 * b / a**2)
    if b <= 0:
        return np.inf
    z = a / (2 * np.sqrt(b))
    if z > 0:
        return float(np.log(erfcx(z)) + np.log(np.pi / (4 * b)) / 2)
    return float(z * z + log_ndtr(-np.sqrt(2) * z) + np.log(np.pi / b) / 2)


def correlation(a: NDArray, b: NDArray) -> float:
    """Spearman's rank correlation of two lists of numbers; 0 where one is constant."""
    return float(spearman(a[None], b[None])[0])
