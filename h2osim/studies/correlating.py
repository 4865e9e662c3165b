"""Which measure of the uncompressed run orders policies as the closed loop's KL does.

All correlations are Spearman's over policies, within one text and budget, tied policies sharing
their mean rank; means over texts have bootstrap intervals, the sample being the text. What is
fitted or chosen uses one half of the texts (the first, third, … of the list), what is reported of
it the other half. On the half that chooses, a fit is to the other texts of that half, so that
fitted measures are chosen as fairly as others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import bootstrap, rankdata

from h2osim.closed_loop.measures import CARRIED, MEASURES
from h2osim.report.statistics import LEVEL, Interval, holm, mean_interval, paired_p
from h2osim.studies.fidelity import GOOD

if TYPE_CHECKING:
    import pandas

Cube = NDArray[np.float64]  # [texts, policies, budgets]
AXES = ("text", "policy", "budget")
CEILING = "masked_kl"
KEPT = ("recall", "value_recall")  # large is good
LAYERS, ONE_RUN, LOGS = "fitted by layer", "fitted to one run", "fitted to all"
RIDGE = 1.0
"""Weight of the squared coefficients in a fit to measures, in standardised units."""
TINY = 1e-30  # stands for 0 in logarithms


@dataclass(frozen=True)
class Found:
    """The study in numbers, policies in the table's order.

    kl [texts, policies, budgets]; losses: by measure, the same shape, large is bad (what is fitted
    included). good: which policies are online and neither recency nor random. chosen: the measure
    of the largest mean correlation on the choosing half. ceiling: KL of the model that runs with
    the uncompressed run's evictions, which is no measure of that run.
    """

    texts: list[str]
    policies: list[str]
    budgets: list[float]
    kl: Cube
    halves: tuple[Cube, Cube]
    losses: dict[str, Cube]
    good: NDArray[np.bool_]
    chosen: str = ""

    @property
    def choosing(self) -> slice:
        """The texts that measures are chosen and fitted on."""
        return slice(0, None, 2)

    @property
    def reported(self) -> slice:
        """The texts that nothing was chosen or fitted on."""
        return slice(1, None, 2)

    @property
    def measures(self) -> list[str]:
        """All but the ceiling."""
        return [name for name in self.losses if name != CEILING]

    def correlations(self, measure: str, good: bool = True) -> NDArray[np.float64]:
        """Spearman's correlation with KL over policies, [texts, budgets]."""
        some = self.good if good else np.ones_like(self.good)
        return spearman(self.losses[measure][:, some], self.kl[:, some])

    def interval(self, measure: str, budget: int, texts: slice, good: bool = True) -> Interval:
        """The mean correlation over texts at a budget."""
        return mean_interval(self.correlations(measure, good)[texts, budget])

    def of_means(self, measure: str, texts: slice) -> list[Interval]:
        """The correlation over policies of geometric means over texts, at each budget."""
        loss, kl = (x[texts][:, self.good] for x in (self.losses[measure], self.kl))
        return [mean_order(logs(loss[..., b]), logs(kl[..., b])) for b in range(kl.shape[2])]

    def price(self, measure: str, texts: slice) -> float:
        """How much more KL the policy has that a measure finds best; geometric mean less 1."""
        loss, kl = self.losses[measure][texts][:, self.good], self.kl[texts][:, self.good]
        picked = np.take_along_axis(kl, loss.argmin(axis=1)[:, None], axis=1)[:, 0]
        return float(np.exp(np.log(picked / kl.min(axis=1)).mean()) - 1)

    def spread(self, measure: str, texts: slice) -> NDArray[np.float64]:
        """How far KL strays from a power of the measure, one for a budget: sd of log KL."""
        x, y = (_centred(logs(c[texts][:, self.good])) for c in (self.losses[measure], self.kl))
        slope = (x * y).sum(axis=(0, 1)) / (x * x).sum(axis=(0, 1))
        found: NDArray[np.float64] = (y - slope * x).std(axis=(0, 1))
        return found

    def decided(self, texts: slice) -> list[list[tuple[int, int]]]:
        """Pairs of good policies (less KL, more KL) that differ beyond doubt, by budget.

        By the sign-flip test over texts, corrected for the number of pairs (Holm).
        """
        kl = self.kl[texts]
        pairs = list(itertools.combinations(map(int, np.flatnonzero(self.good)), 2))
        found = []
        for b in range(kl.shape[2]):
            p = {f"{i} {j}": paired_p(kl[:, i, b], kl[:, j, b]) for i, j in pairs}
            low = np.log(kl[:, :, b]).mean(axis=0)
            sure = [pair for pair, x in zip(pairs, holm(p).values(), strict=True) if x < 1 - LEVEL]
            found.append([(i, j) if low[i] < low[j] else (j, i) for i, j in sure])
        return found

    def reliability(self) -> NDArray[np.float64]:
        """Correlation over good policies of KL in one half of a text's steps with KL in the other.

        Mean over texts, [budgets].
        """
        even, odd = (half[:, self.good] for half in self.halves)
        return spearman(even, odd).mean(axis=0)


def spearman(a: Cube, b: Cube) -> NDArray[np.float64]:
    """Spearman's rank correlation along axis 1; 0 where one side is constant."""
    x, y = (_centred(rankdata(cube, axis=1)) for cube in (a, b))
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return np.where(scale > 0, (x * y).sum(axis=1) / scale, 0.0)


def mean_order(a: NDArray[np.float64], b: NDArray[np.float64]) -> Interval:
    """Spearman's correlation over policies of means over texts, a and b [texts, policies].

    With a bootstrap percentile interval of level .95, the sample being the text.
    """

    def statistic(texts: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        x, y = (c[texts].mean(axis=-2) for c in (a, b))
        found = spearman(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
        return found.reshape(x.shape[:-1])

    at = np.arange(len(a))
    low = high = np.nan
    if len(a) > 1:
        low, high = bootstrap(
            (at,), statistic, n_resamples=999, confidence_level=LEVEL, method="percentile",
            vectorized=True, rng=np.random.default_rng(0),
        ).confidence_interval  # fmt: skip
    return Interval(float(statistic(at, -1)), float(low), float(high))


def cube(frame: pandas.DataFrame, column: str) -> Cube:
    """A column of the study's table, [texts, policies, budgets] in the table's order."""
    keys = [list(frame[key].unique()) for key in AXES]
    found = frame.set_index(list(AXES))[column]
    values: Cube = found.reindex(itertools.product(*keys)).to_numpy(np.float64)
    return values.reshape([len(key) for key in keys])


def measured(
    frame: pandas.DataFrame, names: Sequence[str] = ("recall", *MEASURES)
) -> dict[str, Cube]:
    """By measure, large is bad."""
    cubes = {name: cube(frame, name) for name in names}
    return {name: 1 - x if name in KEPT else x for name, x in cubes.items()}


def correlate(frame: pandas.DataFrame, carried: bool = False) -> Found:
    """All of the study's numbers from its table, without the prompts.

    carried: with the measures that need a pass for each policy and budget, and the ceiling.
    """
    names = ["recall", *MEASURES, *([*CARRIED, CEILING] if carried else [])]
    texts, policies, budgets = (list(frame[key].unique()) for key in AXES)
    halves = cube(frame, "kl_even"), cube(frame, "kl_odd")
    found = Found(
        texts, policies, budgets, cube(frame, "kl"), halves, measured(frame, names),
        np.isin(policies, GOOD),
    )  # fmt: skip
    by_layer = [name for name in frame.columns if name.startswith("layer_residual_")]
    layers = np.stack([cube(frame, name) for name in by_layer], axis=-1)
    fits = {LAYERS: _fitted(found, layers, layer_weights)}
    fitted_to = [(ONE_RUN, tuple(CARRIED)), (LOGS, ())][: 1 + carried]
    for fit, left_out in fitted_to:
        used = [name for name in found.measures if name not in left_out]
        x = np.stack([logs(found.losses[name]) for name in used], axis=-1)
        x = x - x[:, found.good].mean(axis=1, keepdims=True)
        fits[fit] = np.exp(_fitted(found, x, _ridge))
    found = replace(found, losses=found.losses | fits)
    return replace(found, chosen=ordered(found, found.choosing)[0])


Fit = Callable[[NDArray[np.float64], Cube], NDArray[np.float64]]


def _fitted(found: Found, x: NDArray[np.float64], fit: Fit) -> Cube:
    """A linear form in x [..., features], its weights by the choosing half's good policies.

    A text of that half gets the weights that the others of it give.
    """
    choosing = list(range(len(found.kl)))[found.choosing]
    weights = {
        left_out: fit(
            *(c[[t for t in choosing if t != left_out]][:, found.good] for c in (x, found.kl))
        )
        for left_out in (None, *choosing)
    }
    ways = [weights[t if t in choosing and len(choosing) > 1 else None] for t in range(len(x))]
    return np.stack([one @ way for one, way in zip(x, ways, strict=True)])


def layer_weights(errors: NDArray[np.float64], kl: Cube) -> NDArray[np.float64]:
    """Weights w >= 0 of the layers that bring sum_l w_l e_l nearest to KL, by relative error.

    errors: [..., layers], kl: [...].
    """
    rows = (errors / kl[..., None]).reshape(-1, errors.shape[-1])
    found: NDArray[np.float64] = nnls(rows, np.ones(len(rows)))[0]
    return found


def _ridge(x: NDArray[np.float64], kl: Cube) -> NDArray[np.float64]:
    """Weights of a linear form for log KL, both taken from their means over policies (axis 1)."""
    y = _centred(np.log(kl)).ravel()
    rows = x.reshape(-1, x.shape[-1])
    scale = rows.std(axis=0)
    z = rows / scale
    found: NDArray[np.float64] = np.linalg.solve(z.T @ z + RIDGE * np.eye(len(scale)), z.T @ y)
    return found / scale


def logs(x: Cube) -> Cube:
    """Logarithms, that of a very small number where there is 0."""
    return np.log(np.maximum(x, TINY))


def _centred(x: Cube) -> Cube:
    return x - x.mean(axis=1, keepdims=True)


def ordered(found: Found, texts: slice) -> Sequence[str]:
    """All measures, that of the largest mean correlation first."""
    means = {name: float(found.correlations(name)[texts].mean()) for name in found.measures}
    return sorted(means, key=lambda name: -means[name])
