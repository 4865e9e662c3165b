"""What the study of the H2O paper's findings says in numbers. The sample is the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from h2osim.report.statistics import Interval, holm, mean_interval, paired_p
from h2osim.studies.h2o import COUNTS, FACTS, KINDS
from h2osim.studies.scores import correlation, tail

if TYPE_CHECKING:
    import pandas

Numbers = NDArray[np.float64]
ALPHA = 0.05


@dataclass(frozen=True)
class Ratio:
    """How many times as much KL one run has as another on the same texts; p: that it is as much.

    p is of the sign-flip test, corrected for the comparisons of its table (Holm).
    """

    interval: Interval
    p: float

    @property
    def verdict(self) -> str:
        """``more``, ``less`` or ``tie``."""
        if self.p >= ALPHA:
            return "tie"
        return "more" if self.interval.mean > 1 else "less"


@dataclass(frozen=True)
class Findings:
    """The table by kind of row.

    facts: by name [texts, layers], the last layer being all of them together. plausible: of the
    power law, [texts]. measured: by column
    and policy [texts, budgets]. removed: KL by kind [texts, shares], geometric mean over draws.
    items: the rows of vocabulary items.
    """

    texts: list[str]
    layers: list[int]
    budgets: list[float]
    shares: list[float]
    facts: dict[str, Numbers]
    plausible: Numbers
    measured: dict[str, dict[str, Numbers]]
    removed: dict[str, Numbers]
    items: pandas.DataFrame

    @property
    def at_20(self) -> int:
        """The place of the budget nearest to 20 %."""
        return int(np.argmin(np.abs(np.array(self.budgets) - 0.2)))

    def layer_means(self, name: str) -> Numbers:
        """Mean over texts of a layer's number and its interval, [3, layers]."""
        columns = [mean_interval(x) for x in self.facts[name][:, :-1].T]
        return np.array([[x.mean, x.low, x.high] for x in columns]).T

    def overall(self, name: str) -> Interval:
        """A number of the scores added over all layers; of the sparsity, the mean over layers."""
        return mean_interval(self.facts[name][:, -1])

    def favoured(self, of: str, kind: str = "tail") -> tuple[Interval, Interval]:
        """Share of layers where the log-normal is nearer, and where the power law is; p < .05.

        kind: ``tail`` or ``whole`` (Vuong's test of either), or ``nested`` (the likelihood ratio).
        """
        ratio = self.facts[f"{of}_{'whole' if kind == 'whole' else 'ratio'}"][:, :-1]
        limit = 1.959964  # of the normal distribution
        sure = np.abs(ratio) > limit
        if kind == "nested":
            sure = self.facts[f"{of}_nested"][:, :-1] < ALPHA
        log_normal, power = sure & (ratio < 0), sure & (ratio > 0)
        return mean_interval(log_normal.mean(axis=1)), mean_interval(power.mean(axis=1))

    def pooled(self) -> pandas.DataFrame:
        """Scores and counts of vocabulary items added over the texts."""
        return self.items.groupby("item")[[*COUNTS, "score"]].sum()

    def pooled_tail(self) -> dict[str, float]:
        """The fits to the items' scores added over the texts."""
        return tail(self.pooled()["score"].to_numpy())

    def pooled_correlation(self) -> Interval:
        """Correlation of score and pairs, both added over the texts, with its jackknife interval.

        One text is left out at a time. (Texts drawn anew would repeat some, and what the sum of two
        equal texts says of items is not what the sum of two texts says.)
        """
        columns = ["pairs", "score"]
        cube = self.items.pivot(index="text", columns="item", values=columns).fillna(0.0)
        pairs, score = (cube[name].to_numpy(np.float64) for name in columns)

        def pooled(texts: NDArray[np.bool_]) -> float:
            x, y = pairs[texts].sum(axis=0), score[texts].sum(axis=0)
            return correlation(x[y > 0], y[y > 0])

        m = len(pairs)
        whole, without = pooled(np.ones(m, bool)), [pooled(np.arange(m) != i) for i in range(m)]
        half = t.ppf(1 - ALPHA / 2, m - 1) * np.std(without) * np.sqrt(m - 1) if m > 1 else np.nan
        return Interval(whole, whole - half, whole + half)

    def against(self, one: str, others: tuple[str, ...]) -> dict[str, list[Ratio]]:
        """KL of each other policy as a multiple of one's, a budget each."""
        kl = self.measured["kl"]
        return ratios({other: (kl[other], kl[one]) for other in others})

    def heavy_against_random(self) -> dict[str, list[Ratio]]:
        """KL without the heavy hitters as a multiple of that without random tokens, by share."""
        pairs = {"all": (KINDS[0], KINDS[1]), "but the first": (KINDS[2], KINDS[3])}
        return ratios({k: (self.removed[a], self.removed[b]) for k, (a, b) in pairs.items()})


def ratios(pairs: Mapping[str, tuple[Numbers, Numbers]]) -> dict[str, list[Ratio]]:
    """Paired comparisons over texts, arrays [texts, columns], corrected for their number."""
    at = [(name, i) for name, (a, _) in pairs.items() for i in range(a.shape[1])]
    p = holm({f"{k} {i}": paired_p(pairs[k][0][:, i], pairs[k][1][:, i]) for k, i in at})
    found: dict[str, list[Ratio]] = {name: [] for name in pairs}
    for name, i in at:
        a, b = pairs[name]
        mean = mean_interval(a[:, i] / b[:, i], geometric=True)
        found[name].append(Ratio(mean, p[f"{name} {i}"]))
    return found


def find(frame: pandas.DataFrame) -> Findings:
    """All of the study's numbers from its table."""
    texts = list(frame["text"].unique())
    kinds = {kind: rows for kind, rows in frame.groupby("finding")}
    layer, policy, removal = kinds["layer"], kinds["policy"], kinds["removal"]

    def grid(rows: pandas.DataFrame, columns: str, value: str) -> Numbers:
        found = rows.pivot(index="text", columns=columns, values=value).loc[texts]
        return found[list(rows[columns].unique())].to_numpy(np.float64)

    removal = removal.assign(kl=np.log(removal["kl"]))
    removal = removal.groupby(["text", "removed", "share"], as_index=False)["kl"].mean()
    by_policy = dict(list(policy.groupby("policy", sort=False)))
    return Findings(
        texts,
        [int(x) for x in layer["layer"].unique() if x >= 0],
        [float(x) for x in policy["budget"].unique()],
        [float(x) for x in removal["share"].unique()],
        {name: grid(layer, "layer", name) for name in FACTS},
        grid(layer, "layer", "plausible")[:, -1],
        {
            column: {name: grid(rows, "budget", column) for name, rows in by_policy.items()}
            for column in ("recall", "output_error", "kl")
        },
        {kind: np.exp(grid(rows, "share", "kl")) for kind, rows in removal.groupby("removed")},
        kinds["item"],
    )
