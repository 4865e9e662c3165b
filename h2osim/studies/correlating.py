"""Which measure of the uncompressed run orders policies as the closed loop's KL does.

All correlations are Spearman's over policies, within one text and budget; their means over texts
have bootstrap intervals, the sample being the text. What is fitted or chosen uses one half of the
texts (the first, third, … of the list), what is reported of it the other half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import rankdata

from h2osim.report.statistics import Interval, mean_interval
from h2osim.studies.fidelity import GOOD

if TYPE_CHECKING:
    import pandas

Cube = NDArray[np.float64]  # [texts, policies, budgets]
MEASURES = (
    "recall", "value_recall", "attention_error", "output_error", "output_error_abs",
    "residual_sum", "residual_error", "residual_error_entropy", "gradient_alone", "gradient_token",
    "gradient_window", "gradient_joint", "gradient_damped",
)  # fmt: skip
KEPT = ("recall", "value_recall")  # large is good
LAYERS, LOGS = "fitted by layer", "fitted to all"
RIDGE = 1.0
"""Weight of the squared coefficients in the fit to all measures, in standardised units."""


@dataclass(frozen=True)
class Found:
    """The study in numbers, policies in the table's order.

    kl [texts, policies, budgets]; losses: by measure, the same shape, large is bad (what is fitted
    included). good: which policies are online and neither recency nor random. chosen: the measure
    of the largest mean correlation on the choosing half.
    """

    texts: list[str]
    policies: list[str]
    budgets: list[float]
    kl: Cube
    halves: tuple[Cube, Cube]
    losses: dict[str, Cube]
    good: NDArray[np.bool_]
    chosen: str

    @property
    def reported(self) -> slice:
        """The texts that nothing was chosen or fitted on."""
        return slice(1, None, 2)

    def correlations(self, measure: str, good: bool = True) -> NDArray[np.float64]:
        """Spearman's correlation with KL over policies, [texts, budgets]."""
        some = self.good if good else np.ones_like(self.good)
        return spearman(self.losses[measure][:, some], self.kl[:, some])

    def interval(self, measure: str, budget: int, texts: slice, good: bool = True) -> Interval:
        """The mean correlation over texts at a budget."""
        return mean_interval(self.correlations(measure, good)[texts, budget])

    def of_means(self, measure: str, texts: slice) -> NDArray[np.float64]:
        """The correlation over policies of means over texts (geometric), [budgets]."""
        means = [
            np.log(np.maximum(cube[texts][:, self.good], 1e-30)).mean(axis=0, keepdims=True)
            for cube in (self.losses[measure], self.kl)
        ]
        return spearman(*means)[0]

    def price(self, measure: str, texts: slice) -> float:
        """How much more KL the policy has that a measure finds best; geometric mean less 1."""
        loss, kl = self.losses[measure][texts][:, self.good], self.kl[texts][:, self.good]
        picked = np.take_along_axis(kl, loss.argmin(axis=1)[:, None], axis=1)[:, 0]
        return float(np.exp(np.log(picked / kl.min(axis=1)).mean()) - 1)

    def reliability(self) -> NDArray[np.float64]:
        """Correlation over good policies of KL in one half of a text's steps with KL in the other.

        Mean over texts, [budgets].
        """
        even, odd = (half[:, self.good] for half in self.halves)
        return spearman(even, odd).mean(axis=0)


def spearman(a: Cube, b: Cube) -> NDArray[np.float64]:
    """Spearman's rank correlation along axis 1; 0 where one side is constant."""
    x, y = (rankdata(cube, axis=1) for cube in (a, b))
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return np.where(scale > 0, (x * y).sum(axis=1) / scale, 0.0)


def correlate(frame: pandas.DataFrame) -> Found:
    """All of the study's numbers from its table."""
    texts, policies = list(frame["text"].unique()), list(frame["policy"].unique())
    budgets = [float(b) for b in frame["budget"].unique()]

    def cube(column: str) -> Cube:
        found = frame.pivot(index=["text", "policy"], columns="budget", values=column)
        found = found.reindex(index=[(t, p) for t in texts for p in policies], columns=budgets)
        return found.to_numpy(np.float64).reshape(len(texts), len(policies), len(budgets))

    kl = cube("kl")
    losses = {name: 1 - cube(name) if name in KEPT else cube(name) for name in MEASURES}
    good = np.isin(policies, GOOD)
    choosing = slice(0, None, 2)
    names = [c for c in frame.columns if c.startswith("layer_residual_")]
    layers = np.stack([cube(name) for name in names], axis=-1)
    weights = layer_weights(layers[choosing][:, good], kl[choosing][:, good])
    fitted = {LAYERS: layers @ weights, LOGS: _fit_logs(losses, kl, good, choosing)}
    losses |= fitted
    found = Found(texts, policies, budgets, kl, (cube("kl_even"), cube("kl_odd")), losses, good, "")
    means = {name: found.correlations(name)[choosing].mean() for name in MEASURES}
    best = max(means, key=lambda name: float(means[name]))
    return Found(**{**found.__dict__, "chosen": best})


def layer_weights(errors: NDArray[np.float64], kl: Cube) -> NDArray[np.float64]:
    """Weights w >= 0 of the layers that bring sum_l w_l e_l nearest to KL, by relative error.

    errors: [..., layers], kl: [...].
    """
    rows = (errors / kl[..., None]).reshape(-1, errors.shape[-1])
    found: NDArray[np.float64] = nnls(rows, np.ones(len(rows)))[0]
    return found


def _fit_logs(losses: dict[str, Cube], kl: Cube, good: NDArray[np.bool_], choosing: slice) -> Cube:
    """The exponential of a linear form in the logarithms of all measures, by ridge regression.

    Fitted to log KL, each taken from its mean over the good policies of a text and budget.
    """
    logs = np.stack([np.log(np.maximum(x, 1e-30)) for x in losses.values()], axis=-1)
    logs -= logs[:, good].mean(axis=1, keepdims=True)
    target = np.log(kl) - np.log(kl[:, good]).mean(axis=1, keepdims=True)
    x = logs[choosing][:, good].reshape(-1, logs.shape[-1])
    y = target[choosing][:, good].ravel()
    scale = x.std(axis=0)
    z = x / scale
    w = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ y) / scale
    found: Cube = np.exp(logs @ w)
    return found


def within(interval: Interval) -> str:
    """A correlation with its interval, as a table shows it."""
    if np.isnan(interval.low):
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def ordered(found: Found, texts: slice) -> Sequence[str]:
    """All measures, that of the largest mean correlation first."""
    means = {name: float(found.correlations(name)[texts].mean()) for name in found.losses}
    return sorted(means, key=lambda name: -means[name])
