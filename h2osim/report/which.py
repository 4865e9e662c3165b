"""Figures of a search: KL against memory, and where the memory goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.report.figures.drawing import canvas, line_style, open_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = NDArray[np.float64]


def memory_figure(lines: Mapping[str, Sequence[tuple[float, float, float, float]]]) -> Figure:
    """KL against the mean budget, a line a policy: (share, mean, low, high), a band between."""
    figure = canvas(8, 5)
    axes = figure.subplots()
    for i, (name, points) in enumerate(lines.items()):
        at, mean, low, high = np.array(sorted(points)).T
        axes.loglog(100 * at, mean, label=name, markersize=4, **line_style(i))
        axes.fill_between(100 * at, low, high, color=line_style(i)["color"], alpha=0.12, lw=0)
    ticks = sorted({100 * point[0] for points in lines.values() for point in points})
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("keys cached, mean over layers and KV groups, as a share of the text")
    axes.set_ylabel("KL, nats a token")
    open_axes(axes)
    axes.legend(frameon=False)
    return figure


def split_figure(splits: Mapping[float, Numbers]) -> Figure:
    """Budgets [layers, units], a panel a mean budget; a colour step is a factor."""
    figure = canvas(10, 1.6 + 0.75 * len(splits))
    panels = figure.subplots(len(splits), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (mean, split) in zip(panels, splits.items(), strict=True):
        factor = np.log2(split.T / mean)
        image = axes.imshow(factor, cmap="RdBu_r", vmin=-3, vmax=3, aspect="auto")
        axes.set_ylabel(f"{100 * mean:g} %\nKV group")
        axes.set_yticks(range(split.shape[1]))
    panels[-1].set_xlabel("layer")
    bar = figure.colorbar(image, ax=list(panels), ticks=range(-3, 4))
    bar.ax.set_yticklabels([f"x{2.0**e:g}" for e in range(-3, 4)])
    bar.set_label("over the mean")
    return figure
