"""What one more cache slot would have been worth, over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from h2osim.report.figures.drawing import (
    COLOURS,
    DASHES,
    PLAIN,
    Look,
    canvas,
    finish,
    open_axes,
    spread,
    tick_places,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

#: Panels of single layers, and of budgets, that a page has room for.
_LAYERS, _BUDGETS = 12, 4
#: Spans of steps: a line is a running mean over n / _SMOOTH steps, a heat map has so many columns.
_SMOOTH, _COLUMNS = 32, 96


def smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The running mean over ``width`` steps along the last axis; at the ends over those there are.

    values: [..., steps].
    """
    width = max(1, min(width, values.shape[-1]))
    left, right = (width - 1) // 2, width // 2
    before = np.zeros((*values.shape[:-1], 1))
    sums = np.concatenate([before, values.cumsum(-1, dtype=np.float64)], axis=-1)
    at = np.arange(values.shape[-1])
    low, high = np.maximum(at - left, 0), np.minimum(at + right + 1, values.shape[-1])
    return (sums[..., high] - sums[..., low]) / (high - low)


def spans(values: np.ndarray, most: int) -> np.ndarray:
    """Means over at most so many spans of steps of nearly equal length, [..., spans]."""
    steps = values.shape[-1]
    edges = np.linspace(0, steps, min(most, steps) + 1).round().astype(int)
    return np.add.reduceat(values, edges[:-1], axis=-1) / np.diff(edges)


def prices_figure(found: xr.Dataset, title: str | None = None, look: Look = PLAIN) -> Figure:
    """Draw the price of a cache slot, λ_t of an optimum, in attention mass a step.

    Above, a heat map of layer over time for each budget, the mean over the layer's units. Below, a
    panel for each of up to 12 layers, evenly spread: a line a budget, smoothed over n / 32 steps.
    """
    n, p = int(found.attrs["n"]), int(found.attrs["prompt_len"])
    price = found["price"].mean("unit").transpose("layer", "budget", "step").values[..., p:]
    layers, budgets = found["layer"].values, found["budget"].values
    chosen, shown = spread(len(layers), _LAYERS), spread(len(budgets), _BUDGETS)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    map_height = 0.9 + 0.07 * len(layers)
    height = 1.7 * rows + (0.8 if rows == 1 else 0)
    figure = canvas(10, map_height + height + 0.6, look)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=(map_height, height))[:, 0]

    maps = upper.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    cells = spans(price[:, shown], _COLUMNS)
    for b, axes in enumerate(maps):
        image = axes.imshow(
            cells[:, b], vmin=0, vmax=cells.max() or 1, cmap="viridis", aspect="auto",
            extent=(p, n, len(layers) - 0.5, -0.5), interpolation="nearest",
        )  # fmt: skip
        axes.set_title(f"budget {budgets[shown[b]]:g}", loc="left", fontsize="small")
        axes.set_xlabel("decode step", fontsize="small")
    tick_places(maps[0].yaxis, layers, 10)
    maps[0].set_ylabel("layer")
    upper.colorbar(image, ax=maps, label="price", aspect=12)

    grid = lower.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    lines = smoothed(price, (n - p) // _SMOOTH)
    for axes, layer in zip(grid.flat, chosen, strict=False):
        for b in range(len(budgets)):
            axes.plot(
                np.arange(p, n), lines[layer, b], color=COLOURS[b % len(COLOURS)],
                ls=DASHES[b % len(DASHES)], lw=1.2, label=f"budget {budgets[b]:g}",
            )  # fmt: skip
        axes.set_title(f"layer {layers[layer]}", loc="left", fontsize="small")
        open_axes(axes)
    for axes in list(grid.flat)[len(chosen) :]:
        axes.set_visible(False)
    lower.supxlabel("decode step", fontsize="small")
    lower.supylabel("price (attention mass a step)", fontsize="small")
    finish(figure, title, look)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    lower.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False, handlelength=4)
    return figure
