"""Figures of the study of the H2O paper's findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.report.figures.drawing import COLOURS, DASHES, canvas, line_style, open_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Curve = NDArray[np.float64]  # [3, points]: mean, low, high


@dataclass(frozen=True)
class Panel:
    """Lines with bands: x and, by name, their means and the bounds of their intervals."""

    label: str
    across: str
    x: Sequence[float]
    curves: Mapping[str, Curve]
    log: bool = False
    level: float | None = None


def bands_figure(panels: Sequence[Panel]) -> Figure:
    """Means against x with intervals, a panel each; one legend, names alike in all."""
    figure = canvas(1 + 4.2 * len(panels), 4.6)
    names = list(dict.fromkeys(name for panel in panels for name in panel.curves))
    found: dict[str, Line2D] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for name, (mean, low, high) in panel.curves.items():
            style = line_style(names.index(name))
            (found[name],) = axes.plot(panel.x, mean, markersize=4, **style)
            axes.fill_between(panel.x, low, high, color=style["color"], alpha=0.12, linewidth=0)
        if panel.level is not None:
            axes.axhline(panel.level, color="0.4", linewidth=0.8)
        if panel.log:
            axes.set_yscale("log")
        axes.set_xlabel(panel.across)
        axes.set_ylabel(panel.label)
        open_axes(axes)
    figure.legend(
        [found[name] for name in names], names, frameon=False, loc="outside lower center",
        ncols=2 if len(panels) < 3 else 4, handlelength=4,
    )  # fmt: skip
    return figure


def scores_figure(
    scores: NDArray[np.float64], fit: Mapping[str, float], pairs: NDArray[np.float64], across: str
) -> Figure:
    """How many vocabulary items have at least a score, with the fits; and score against pairs."""
    from scipy.stats import norm

    figure = canvas(9.4, 4.2)
    left, right = figure.subplots(1, 2)
    ranked = np.sort(scores)[::-1]
    shares = np.arange(1, len(ranked) + 1) / len(ranked)
    left.loglog(ranked, shares, color=COLOURS[0], label="items")
    x = ranked[ranked >= fit["xmin"]]
    share, start = len(x) / len(ranked), np.log(fit["xmin"])
    left.loglog(
        x, share * (x / fit["xmin"]) ** (1 - fit["alpha"]), color=COLOURS[2], ls=DASHES[1],
        label=f"power law, exponent {fit['alpha']:.2f}",
    )  # fmt: skip
    if np.isfinite(fit["mu"]):
        above = norm.logsf(np.log(x), fit["mu"], fit["sigma"])
        above -= norm.logsf(start, fit["mu"], fit["sigma"])
        left.loglog(x, share * np.exp(above), color=COLOURS[1], ls=DASHES[3], label="log-normal")
    left.set_xlabel("accumulated score")
    left.set_ylabel("share of vocabulary items with at least this")
    left.legend(frameon=False)
    right.loglog(pairs, scores, ls="", marker=".", markersize=3, alpha=0.4, color=COLOURS[1])
    right.set_xlabel(across)
    right.set_ylabel("accumulated score")
    for axes in (left, right):
        open_axes(axes)
    return figure
