"""Recall, or what outputs lose, against the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.report.comparison import cells, headings
from h2osim.report.figures.drawing import (
    PLAIN,
    Look,
    canvas,
    finish,
    legend_beside,
    line_style,
    open_axes,
    sparse_markers,
)
from h2osim.report.frames import MEASURED, remark, tokens_of
from h2osim.report.ranking import competing

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Budgets of which each gets its tick and marker; more are a whole curve.
_FEW = 20
#: Budgets further apart than by this factor are drawn on a logarithmic axis.
_WIDE = 8


@dataclass(frozen=True)
class Line:
    """What is drawn of one policy: its name, its mean at each budget, and the ends of its band."""

    label: str
    kind: str
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def lines_of(results: xr.Dataset, measure: str) -> list[Line]:
    """A line for each policy: of one trace the mean over the units, in a band that holds their
    middle half; of several the mean over the traces, in a band that is its 95 % interval.
    """
    shown = cells(results[measure], competing(results), measure)
    mean = np.array([[one.mean for one in row] for row in shown])
    if "trace" in results.dims:
        low, high = (np.array([[getattr(x, end) for x in row] for row in shown])
                     for end in ("low", "high"))  # fmt: skip
    else:
        units = results[measure].transpose("policy", "budget", "layer", "unit").values
        low, high = np.nanquantile(units.reshape(*units.shape[:2], -1), [0.25, 0.75], axis=-1)
    names, kinds = (list(map(str, results[name].values)) for name in ("policy", "kind"))
    return [
        Line(_label(results.isel(policy=i), names[i], kinds[i]), kinds[i], mean[i], low[i], high[i])
        for i in range(len(names))
    ]


def _label(one: xr.Dataset, name: str, kind: str) -> str:
    remarks = [remark(kind)]
    if bool((one["held"] > tokens_of(one)).any()):
        remarks.append("holds more than the budget")
    beside = ", ".join(filter(None, remarks))
    return f"{name} ({beside})" if beside else name


def recall_figure(
    results: xr.Dataset,
    title: str | None = None,
    asked: Mapping[int, float] | None = None,
    measure: str = "recall",
    look: Look = PLAIN,
) -> Figure:
    """Draw recall, or another measure, against budget, one line a policy with a band of spread.

    See :func:`lines_of` for the lines. A whole curve is drawn twice, on a linear and a logarithmic
    axis of budgets, unless ``look`` asks for one. ``asked`` is as in :func:`comparison_table`.
    """
    budgets = results["budget"].values
    few = len(budgets) <= _FEW
    twice = not few and look.x.scale is None
    figure = canvas(11 if twice else 8.5, 4.6, look)
    panels = figure.subplots(1, 2 if twice else 1, sharey=True, squeeze=False)[0]
    lines = lines_of(results, measure)
    # The legend stands in the order of the lines at the smallest budget, where they differ most.
    best = -1 if measure == "recall" else 1
    for i in sorted(range(len(lines)), key=lambda i: best * lines[i].mean[0]):
        for axes in panels:
            _draw(axes, budgets, lines[i], i, len(lines))
    if "optimum" in results and measure == "recall":
        bound = results["optimum"].mean([d for d in results["optimum"].dims if d != "budget"])
        for axes in panels:
            axes.plot(budgets, bound, color="0.35", linewidth=2.4, alpha=0.6, zorder=1,
                      label="offline optimum")  # fmt: skip
    _name_axes(panels, results, asked, measure)
    if twice or (few and budgets[-1] > _WIDE * budgets[0]):
        panels[-1].set_xscale("log")
    finish(figure, title, look)
    if len(budgets) <= 10:
        panels[0].set_xticks(budgets, list(headings(results, asked, False)))
        panels[0].set_xticks([], minor=True)
    legend_beside(figure, panels[-1])
    return figure


def _draw(axes: Any, budgets: np.ndarray, line: Line, i: int, count: int) -> None:
    style = line_style(i)
    band = 0.14 if count <= 5 else 0.07  # many bands lie on each other
    axes.fill_between(budgets, line.low, line.high, color=style["color"], alpha=band, linewidth=0)
    axes.plot(
        budgets,
        line.mean,
        **style,
        **sparse_markers(i, len(budgets)),
        markersize=5,
        linewidth=1.5 if line.kind == "online" else 1.0,
        label=line.label,
    )


def _name_axes(
    panels: Any, results: xr.Dataset, asked: Mapping[int, float] | None, measure: str
) -> None:
    few = results.sizes["budget"] <= _FEW
    shares = results["budget"].dtype.kind == "f"
    words = "share of the trace" if shares else "tokens, share of the trace" * few or "tokens"
    for axes in panels:
        axes.set_xlabel(f"budget ({words})", fontsize="small")
        axes.tick_params(labelsize="small")
        open_axes(axes)
    name = "attention-mass recall" if measure == "recall" else MEASURED[measure]
    several = "trace" in results.dims
    of = "traces;\nband: 95 % interval" if several else "units;\nband: their middle half"
    one = not several and results.sizes["layer"] * results.sizes["unit"] == 1
    panels[0].set_ylabel(name if one else f"{name}\n(mean over {of})", fontsize="small")
    if measure != "recall":
        panels[0].set_yscale("log")  # a budget of n has an error of 0, which is left out
