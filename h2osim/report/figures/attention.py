"""The recorded attention itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from h2osim.report.figures.drawing import PLAIN, Look, canvas, finish

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from h2osim.traces.trace import Trace


def attention_figure(
    trace: Trace, cells: int = 256, title: str | None = None, look: Look = PLAIN
) -> Figure:
    """Draw the attention of the first KV group of every layer, queries down, keys to the right.

    Grey is logarithmic, from 1e-4 (white) to 1 (black); a cell shows the largest mean over the
    group's heads among its entries (see :func:`h2osim.traces.description.heatmap`).
    """
    units = [unit for unit in trace.units("group") if unit.index == 0]
    columns = min(6 if len(units) > 10 else 5, len(units))
    rows = -(-len(units) // columns)
    width = 2.4 if len(units) <= 10 else 1.6
    figure = canvas(width * columns + 0.8, (width + 0.2) * rows, look)
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    from h2osim.traces.description import heatmap

    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    norm = LogNorm(1e-4, 1, clip=True)
    for axes, unit in zip(grid.flat, units, strict=False):
        picture = heatmap(unit, cells)
        picture = np.where(np.isnan(picture), np.nan, np.maximum(picture, 1e-4))
        extent = (0, unit.n, unit.n, 0)
        axes.imshow(picture, cmap="Greys", norm=norm, extent=extent)
        axes.set_title(f"layer {unit.layer}", fontsize="small")
        axes.tick_params(labelsize="x-small")
    for axes in list(grid.flat)[len(units) :]:
        axes.set_visible(False)
    grid[0, 0].set_ylabel("query")
    grid[-1, 0].set_xlabel("key")
    figure.colorbar(ScalarMappable(norm, "Greys"), ax=grid, shrink=0.8, label="attention")
    return finish(figure, title, look)
