"""Figures of results, for a notebook or a script: ``h2osim.plot.recall(h2osim.replay(…))``.

Every function takes a result and returns a Matplotlib Figure, which a notebook shows by itself and
:func:`save` writes as .png, .svg or .pdf. All take

* ``title``: the line above, None for the usual one, ``""`` for none;
* ``size``: width and height in inches.

Those of curves also take ``x`` and ``y``: ``"log"``, ``"linear"``, or the two ends of the axis.

Matplotlib comes with the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from h2osim.report.figures.drawing import Axis, Look
from h2osim.report.files import save_figure as save
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import xarray
    from matplotlib.figure import Figure

    from h2osim.traces.trace import Trace

__all__ = ["allocation", "attention", "guarantees", "prices", "recall", "save", "sweep"]

Size = tuple[float, float] | None
Side = str | tuple[float, float] | None


def recall(
    results: xarray.Dataset,
    measure: str = "recall",
    *,
    title: str | None = None,
    size: Size = None,
    x: Side = None,
    y: Side = None,
) -> Figure:
    """Recall of a replay against the budget, or another ``measure`` in it (``output_error``, …).

    One line a policy with a band: the middle half of the units, or on several traces the 95 %
    interval of the mean. The offline optimum is there if ``results`` has it.
    """
    from h2osim.report.comparison import comparison_title
    from h2osim.report.figures.curves import recall_figure

    look = _look(title, size, x, y)
    return recall_figure(results, comparison_title(results), None, measure, look)


def prices(
    found: xarray.Dataset,
    *,
    title: str | None = None,
    size: Size = None,
    x: Side = None,
    y: Side = None,
) -> Figure:
    """What one more cache slot would have been worth over time, of an optimum on one trace."""
    from h2osim.report.comparison import comparison_title
    from h2osim.report.figures.prices import prices_figure

    return prices_figure(found, comparison_title(found), _look(title, size, x, y))


def allocation(found: xarray.Dataset, *, title: str | None = None, size: Size = None) -> Figure:
    """Slots of an allocation over layer and unit, as multiples of the equal share."""
    from h2osim.report.figures.allocation import allocation_figure

    return allocation_figure(found, None, _look(title, size))


def sweep(results: xarray.Dataset, *, title: str | None = None, size: Size = None) -> Figure:
    """Heat maps of a sweep over the two parameters with the most values."""
    from h2osim.report.best import summarise
    from h2osim.report.figures.sweep import sweep_figure

    return sweep_figure(summarise(results), "", _look(title, size))


def attention(
    trace: Trace, cells: int = 256, *, title: str | None = None, size: Size = None
) -> Figure:
    """The attention of the first KV group of every layer, in at most ``cells`` cells a side."""
    from h2osim.report.figures.attention import attention_figure

    return attention_figure(trace, cells, trace.name, _look(title, size))


def guarantees(
    series: Mapping[str, Mapping[str, np.ndarray]],
    *,
    title: str | None = None,
    size: Size = None,
    x: Side = None,
    y: Side = None,
) -> Figure:
    """What policies kept over time beside what is proved of them.

    ``series``: for each policy what :func:`h2osim.guarantees.verify.over_time` gives.
    """
    from h2osim.report.figures.guarantees import guarantees_figure

    return guarantees_figure(series, None, _look(title, size, x, y))


def _look(title: str | None, size: Size, x: Side = None, y: Side = None) -> Look:
    return Look(size, title, _axis("x", x), _axis("y", y))


def _axis(name: str, side: str | Sequence[float] | None) -> Axis:
    if side is None:
        return Axis()
    if side in ("log", "linear"):
        return Axis(scale=str(side))
    if isinstance(side, str) or len(side) != 2:
        raise UserError(f"{name}: found {side!r}, expected 'log', 'linear' or two ends")
    return Axis(ends=(float(side[0]), float(side[1])))
