"""The heat map of a sweep: recall, or an error, over two parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.report.best import Summary
from h2osim.report.figures.drawing import PLAIN, Look, canvas, finish, spread, tick_places
from h2osim.report.frames import MEASURED
from h2osim.support.errors import UserError
from h2osim.support.parameters import Value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_PANELS = 4
_MOST_TICKS = 12


def axes_of(settings: Sequence[tuple[str, Mapping[str, Value]]]) -> dict[str, list[str]]:
    """For each rule of which a parameter varies, the one or two with the most values.

    ``settings``: the name of each one's rule, and its parameters. UserError where none varies.
    """
    found = {}
    for rule, names in varied(settings).items():
        mine = [values for name, values in settings if name == rule]
        names.sort(key=lambda name: -len({values[name] for values in mine}))
        if names:
            found[rule] = names[:2]
    if not found:
        raise UserError("--plot: a heat map needs a parameter with several values, as in 0..64:16")
    return found


def varied(settings: Sequence[tuple[str, Mapping[str, Value]]]) -> dict[str, list[str]]:
    """For each rule, the parameters that take more than one value, in the rule's order."""
    seen: dict[str, list[Mapping[str, Value]]] = {}
    for rule, values in settings:
        seen.setdefault(rule, []).append(values)
    return {
        rule: [name for name in those[0] if len({values[name] for values in those}) > 1]
        for rule, those in seen.items()
    }


@dataclass(frozen=True)
class Panel:
    """A heat map: its cells, the values along x and y, the names of the two sides, its title."""

    picture: np.ndarray
    ticks: tuple[Sequence[Value], Sequence[Value]]
    names: tuple[str, str]
    title: str


def sweep_figure(summary: Summary, title: str = "", look: Look = PLAIN) -> Figure:
    """Draw the mean measure over two parameters, a row of panels a policy, a panel a budget.

    Where more than two parameters vary, the two with the most values are the axes and a cell shows
    the best over the others; where one varies, the budgets are the other axis. All panels have one
    colour scale. A ring marks a panel's best cell, unless all its cells are equal.
    """
    chosen = axes_of([(one.rule, one.values) for one in summary.settings])
    rows = [_panels(summary, rule, names) for rule, names in chosen.items()]
    wide = max(map(len, rows))
    figure = canvas(1.5 + 3.0 * wide, 0.8 + 2.9 * len(rows), look)
    grid = figure.subplots(len(rows), wide, squeeze=False)
    values = np.concatenate([panel.picture.ravel() for row in rows for panel in row])
    known = values[~np.isnan(values)]
    limits = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    for places, row in zip(grid, rows, strict=True):
        for axes in places[len(row) :]:
            axes.set_visible(False)
        for axes, panel in zip(places, row, strict=False):
            image = _draw(axes, panel, limits, summary.sign)
    name = "recall" if summary.measure == "recall" else MEASURED[summary.measure]
    bar = figure.colorbar(image, ax=grid, shrink=0.9, aspect=30, label=f"{name}, mean over units")
    bar.ax.tick_params(labelsize="x-small")
    return finish(figure, title, look)


def _panels(summary: Summary, rule: str, names: Sequence[str]) -> list[Panel]:
    """The heat maps of one rule, over the one or two parameters of these names."""
    mine = [i for i, one in enumerate(summary.settings) if one.rule == rule]
    ticks = [_sorted({summary.settings[i].values[name] for i in mine}) for name in names]
    at = {
        i: [
            known.index(summary.settings[i].values[name])
            for name, known in zip(names, ticks, strict=True)
        ]
        for i in mine
    }
    labels = [column.label for column in summary.columns]
    if len(names) == 1:
        picture = np.full((len(ticks[0]), len(labels)), np.nan)
        for i in mine:
            picture[at[i][0]] = summary.mean[i]
        return [Panel(picture, (labels, ticks[0]), ("budget", names[0]), rule)]
    found = []
    better = np.fmax if summary.sign > 0 else np.fmin
    for s in spread(len(labels), _MOST_PANELS):
        picture = np.full((len(ticks[1]), len(ticks[0])), np.nan)
        for i in mine:
            x, y = at[i]
            picture[y, x] = better(picture[y, x], summary.mean[i, s])
        sides = names[0], names[1]
        found.append(Panel(picture, (ticks[0], ticks[1]), sides, f"{rule}, budget {labels[s]}"))
    return found


def _draw(axes: Any, panel: Panel, limits: tuple[float, float], sign: int) -> Any:
    picture = panel.picture
    image = axes.imshow(
        picture, cmap="viridis", origin="lower", aspect="auto", vmin=limits[0], vmax=limits[1]
    )
    for side, values in zip((axes.xaxis, axes.yaxis), panel.ticks, strict=True):
        tick_places(side, values, _MOST_TICKS)
    if max(len(str(value)) for value in panel.ticks[0]) > 4:
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlabel(panel.names[0])
    axes.set_ylabel(panel.names[1])
    axes.set_title(panel.title, fontsize="small", loc="left")
    if not np.isnan(picture).all() and np.nanmin(picture) < np.nanmax(picture):
        y, x = np.unravel_index(np.nanargmax(sign * picture), picture.shape)
        axes.plot(x, y, "o", fillstyle="none", color="white", markersize=9, markeredgewidth=3)
        axes.plot(x, y, "o", fillstyle="none", color="black", markersize=9)
    return image


def _sorted(values: set[Value]) -> list[Value]:
    """A parameter's values are all numbers or all words."""
    return sorted(values, key=lambda value: (0 if isinstance(value, str) else value, str(value)))
