"""The heat map of a sweep: recall, or an error, over two parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.report.best import Summary
from h2osim.report.figures import canvas
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


def sweep_figure(summary: Summary, title: str = "") -> Figure:
    """Draw the mean measure over two parameters, a row of panels a policy, a panel a budget.

    Where more than two parameters vary, the two with the most values are the axes and a cell shows
    the best over the others; where one varies, the budgets are the other axis. A ring marks the
    best cell.
    """
    sign = summary.sign
    chosen = axes_of([(one.rule, one.values) for one in summary.settings])
    some = len(summary.columns)
    shown = _spread(some, _MOST_PANELS)
    wide = len(shown) if any(len(names) == 2 for names in chosen.values()) else 1
    figure = canvas(1.5 + 3.6 * wide, 0.6 + 3.3 * len(chosen))
    grid = figure.subplots(len(chosen), wide, squeeze=False)
    for row, (rule, names) in zip(grid, chosen.items(), strict=True):
        mine = [i for i, one in enumerate(summary.settings) if one.rule == rule]
        ticks = [_sorted({summary.settings[i].values[name] for i in mine}) for name in names]
        place = {
            i: [known.index(summary.settings[i].values[n]) for n, known in axes]
            for axes in [list(zip(names, ticks, strict=True))]
            for i in mine
        }
        for axes in row[1 if len(names) == 1 else len(shown) :]:
            axes.set_visible(False)
        if len(names) == 1:
            picture = np.full((len(ticks[0]), some), np.nan)
            for i in mine:
                picture[place[i][0]] = summary.mean[i]
            labels = [column.label for column in summary.columns]
            _panel(figure, row[0], picture, (labels, ticks[0]), ("budget", names[0]), rule, sign)
            continue
        for axes, s in zip(row, shown, strict=False):
            picture = np.full((len(ticks[1]), len(ticks[0])), np.nan)
            for i in mine:
                x, y = place[i]
                better = np.fmax if sign > 0 else np.fmin
                picture[y, x] = better(picture[y, x], summary.mean[i, s])
            label = f"{rule}, budget {summary.columns[s].label}"
            _panel(figure, axes, picture, (ticks[0], ticks[1]), (names[0], names[1]), label, sign)
    name = "recall" if summary.measure == "recall" else MEASURED[summary.measure]
    if title:
        figure.suptitle(f"{title}\nmean {name} over the units", fontsize="medium")
    return figure


def _panel(
    figure: Any,
    axes: Any,
    picture: np.ndarray,
    ticks: tuple[list[Any], list[Any]],
    names: tuple[str, str],
    title: str,
    sign: int,
) -> None:
    image = axes.imshow(picture, cmap="viridis", origin="lower", aspect="auto")
    for side, values in zip((axes.xaxis, axes.yaxis), ticks, strict=True):
        at = _spread(len(values), _MOST_TICKS)
        side.set_ticks(at, [str(values[i]) for i in at], fontsize="x-small")
    if max(len(str(value)) for value in ticks[0]) > 4:
        axes.tick_params(axis="x", rotation=60)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.set_title(title, fontsize="small")
    if not np.isnan(picture).all():
        y, x = np.unravel_index(np.nanargmax(sign * picture), picture.shape)
        axes.plot(x, y, "o", fillstyle="none", color="white", markersize=9, markeredgewidth=3)
        axes.plot(x, y, "o", fillstyle="none", color="black", markersize=9)
    figure.colorbar(image, ax=axes, shrink=0.9).ax.tick_params(labelsize="x-small")


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the first ``count`` numbers, evenly spread, both ends included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def _sorted(values: set[Value]) -> list[Value]:
    """A parameter's values are all numbers or all words."""
    return sorted(values, key=lambda value: (0 if isinstance(value, str) else value, str(value)))
