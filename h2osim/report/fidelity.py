"""Figures of the fidelity study: measures against KL, and their correlation by budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.report.figures.drawing import canvas, line_style, open_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TICKS = (0.5, 1, 2, 4)
ACROSS = 4
"""Panels beside each other."""


def scatter_figure(
    kl: NDArray[np.float64],
    losses: Mapping[str, NDArray[np.float64]],
    policies: Sequence[str],
    budget: str,
) -> Figure:
    """KL against each measure at one budget, a point a text and policy, arrays [texts, policies].

    Both are divided by the geometric mean over the text's policies: a text's own level is no
    question of order.
    """

    def level(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x = np.log(np.maximum(x, 1e-12))
        return np.exp(x - x.mean(axis=1, keepdims=True))

    rows = -(-len(losses) // ACROSS)
    figure = canvas(3.2 * ACROSS, 1 + 3 * rows)
    panels = figure.subplots(rows, ACROSS, sharey=True, squeeze=False).ravel()
    for axes in panels[len(losses) :]:
        axes.set_axis_off()
    for axes, (name, loss) in zip(panels, losses.items(), strict=False):
        for i, policy in enumerate(policies):
            style = line_style(i) | {"linestyle": "", "markersize": 4, "alpha": 0.8}
            axes.loglog(level(loss)[:, i], level(kl)[:, i], label=policy, **style)
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.set_xticks([], minor=True)
        axes.set_xlabel(f"1 - {name}" if "recall" in name else name)
        open_axes(axes)
    panels[0].set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
    panels[0].set_yticks([], minor=True)
    for axes in panels[::ACROSS]:
        axes.set_ylabel(f"KL at {budget}, over the text's mean")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    return figure


def correlation_figure(
    budgets: Sequence[float], curves: Mapping[str, Sequence[tuple[float, float, float]]]
) -> Figure:
    """Mean correlation with KL against budget, a line a measure: (mean, low, high) a budget."""
    figure = canvas(8, 5)
    axes = figure.subplots()
    shares = [100 * budget for budget in budgets]
    for i, (name, points) in enumerate(curves.items()):
        mean, low, high = np.array(points).T
        style = line_style(i)
        axes.plot(shares, mean, label=name, **style)
        axes.fill_between(shares, low, high, color=style["color"], alpha=0.1, linewidth=0)
    axes.axhline(0.95, color="0.4", linewidth=0.8)
    axes.set_xticks(shares, [f"{share:g} %" for share in shares])
    axes.set_xlabel("budget")
    axes.set_ylabel("Spearman correlation with KL, mean over texts")
    open_axes(axes)
    figure.legend(frameon=False, loc="outside right upper", handlelength=4)
    return figure
