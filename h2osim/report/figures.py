"""Figures: recall against budget, prices, allocations, guarantees over time, attention itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.report.comparison import cells, headings
from h2osim.report.files import require_matplotlib
from h2osim.report.frames import MEASURED, remark, tokens_of
from h2osim.report.ranking import competing

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from h2osim.traces.trace import Trace

# Lightness, dashes and markers all differ, so that a line is told from its neighbours in grey; the
# three lengths have no common factor, so that combinations repeat late.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = (
    "-", "--", "-.", ":", (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (9, 3, 2, 3))
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")


def canvas(width: float, height: float) -> Figure:
    """An empty figure, in inches; UserError, naming the extra, where figures cannot be drawn."""
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def line_style(i: int) -> dict[str, Any]:
    """How line i is drawn: its colour, dashes and marker."""
    kinds = {"color": COLOURS, "linestyle": DASHES, "marker": MARKERS}
    return {kind: some[i % len(some)] for kind, some in kinds.items()}


def open_axes(axes: Any) -> None:
    """Draw a light grid, and no line above and on the right."""
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def recall_figure(
    results: xr.Dataset,
    title: str | None = None,
    asked: Mapping[int, float] | None = None,
    log: bool = False,
    measure: str = "recall",
) -> Figure:
    """Draw recall, or another measure, against budget, one line a policy: the mean over the units.

    Of several traces the mean over the traces, in a band that is its interval.
    ``log`` gives the budgets a logarithmic axis; ``asked`` is as in :func:`comparison_table`.
    """
    budgets, several = results["budget"].values.tolist(), "trace" in results.dims
    shown = cells(results[measure], competing(results), measure)
    mean = np.array([[one.mean for one in row] for row in shown])
    few = len(budgets) <= 20
    figure = canvas(8 if few else 11, 5)
    # Whole curves are drawn twice: small budgets need the logarithmic axis, large ones the other.
    panels = figure.subplots(1, 1 if few else 2, sharey=True, squeeze=False)[0]
    axes = panels[-1]
    # The legend stands in the order of the lines at the smallest budget, where they differ most.
    best = -1 if measure == "recall" else 1
    for i in sorted(range(len(mean)), key=lambda i: best * mean[i][0]):
        text = str(results["policy"].values[i])
        kind = results["kind"].values[i]
        remarks = [remark(kind)]
        tokens = tokens_of(results)
        if bool((results["held"].isel(policy=i) > tokens).any()):
            remarks.append("holds more than the budget")
        beside = ", ".join(filter(None, remarks))
        style = line_style(i) if few else line_style(i) | {"marker": None}
        for panel in panels:
            if several:
                ends = ([getattr(one, end) for one in shown[i]] for end in ("low", "high"))
                panel.fill_between(budgets, *ends, color=style["color"], alpha=0.12, linewidth=0)
            panel.plot(
                budgets,
                mean[i],
                **style,
                markersize=5,
                linewidth=1.6 if kind == "online" else 1.0,
                label=f"{text} ({beside})" if beside else text,
            )
    if "optimum" in results and measure == "recall":
        bound = results["optimum"].mean([d for d in results["optimum"].dims if d != "budget"])
        for panel in panels:
            panel.plot(budgets, bound, color="0.35", linewidth=0.8, label="offline optimum")
    if log or not few:
        axes.set_xscale("log")
    if len(budgets) <= 10:
        axes.set_xticks(budgets, list(headings(results, asked, False)))
        axes.set_xticks([], minor=True)
    for panel in panels:
        shares = results["budget"].dtype.kind == "f"
        words = "share of the trace" if shares else "tokens, share of the trace" * few or "tokens"
        panel.set_xlabel(f"budget ({words})")
        open_axes(panel)
    name = "attention-mass recall" if measure == "recall" else MEASURED[measure]
    panels[0].set_ylabel(f"{name} (mean over {'traces, 95 %' if several else 'units'})")
    if measure != "recall":
        panels[0].set_yscale("log")  # a budget of n has an error of 0, which is left out
    place = "lower right" if measure == "recall" else "lower left"
    axes.legend(frameon=False, loc=place, handlelength=4)
    if title:
        panels[0].set_title(title, loc="left", fontsize="medium")
    return figure


def prices_figure(found: xr.Dataset, title: str | None = None) -> Figure:
    """Draw λ_t of an optimum, a panel a layer (its first unit), one line a budget."""
    layers = found["layer"].values
    figure = canvas(9, 1.2 + 1.6 * len(layers))
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    for layer, axes in zip(layers, panels, strict=True):
        for b, budget in enumerate(found["budget"].values):
            price = found["price"].sel(layer=layer).isel(unit=0, budget=b).values
            colour = COLOURS[b % len(COLOURS)]
            axes.plot(price, color=colour, ls=DASHES[b % len(DASHES)], lw=0.9, label=str(budget))
        axes.set_ylabel(f"layer {layer}")
        open_axes(axes)
    panels[0].legend(frameon=False, title="budget", ncols=4, loc="upper right", fontsize="small")
    panels[-1].set_xlabel("step (price of one cache slot, in attention mass)")
    if title:
        panels[0].set_title(title, loc="left", fontsize="medium")
    return figure


def allocation_figure(found: xr.Dataset, title: str | None = None) -> Figure:
    """Heat maps of an allocation's largest total: slots over layer and unit, a panel a policy and
    split.
    """
    found = found.isel(budget=int(found["budget"].values.argmax()))
    policies, rules = found["policy"].values, found["split"].values
    layers, units = found["layer"].values, found["unit"].values
    figure = canvas(1.8 + 2.4 * len(rules), 1.0 + (0.8 + 0.28 * len(layers)) * len(policies))
    panels = figure.subplots(len(policies), len(rules), squeeze=False, sharex=True, sharey=True)
    slots = found["slots"].transpose("policy", "split", "layer", "unit").values
    lost = found["overall"].transpose("policy", "split").values
    for (i, r), axes in np.ndenumerate(panels):
        image = axes.imshow(slots[i, r], vmin=0, vmax=slots.max(), cmap="Greys", aspect="auto")
        for (y, x), count in np.ndenumerate(slots[i, r]):
            if slots[i, r].size <= 120:
                dark = count > 0.6 * slots.max()
                colour = "white" if dark else "black"
                axes.text(x, y, count, ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(f"{policies[i]}, {rules[r]}: {lost[i, r]:.3g}", fontsize="small")
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xticks(range(len(units)), [str(unit) for unit in units])
    for axes in panels[:, 0]:
        axes.set_ylabel("layer")
    for axes in panels[-1]:
        axes.set_xlabel("unit")
    figure.colorbar(image, ax=panels, label="slots")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def guarantees_figure(
    series: Mapping[str, Mapping[str, np.ndarray]],
    title: str | None = None,
) -> Figure:
    """Draw what `guarantees.verify.over_time` gives, a panel a policy.

    The ratio to the best set over time, beside those of the bounds of T2 or T3, of the certificate
    of T4 and its clipped form that are given; below it the share of the best value that came after
    an eviction, and the α that the paper's theorem needs for the text's first n tokens, against n
    (a row does not know what follows, so a prefix of a run is the run of the prefix).
    """
    lines = {
        "ratio": ("kept by the policy", "-", "#000000", 1.8),
        "t2": ("proved limit: best less what came after eviction (T2)", "--", "#0072b2", 1.4),
        "sharp": ("proved limit for cached scores (T3)", "-.", "#d55e00", 1.4),
        "certificate": ("proved limit: growth step by step (T4)", ":", "#009e73", 1.6),
        "clipped": ("T4 with the paper's one-sided factors", (0, (7, 2)), "#cc79a7", 1.2),
    }
    figure = canvas(4.6 * len(series), 7.5)
    rows = figure.subplots(3, len(series), sharex="col", squeeze=False, height_ratios=(3, 1, 1))
    for (text, run), (upper, lower, needed) in zip(series.items(), rows.T, strict=True):
        for name, (label, dashes, colour, width) in lines.items():
            if name not in run:
                upper.plot([], [], ls=dashes, color=colour, lw=width, label=label)  # for the legend
                continue
            upper.plot(run["step"], run[name], ls=dashes, color=colour, lw=width, label=label)
        upper.set_ylim(-0.05, 1.1)
        upper.set_title(text, loc="left", fontsize="medium")
        lower.plot(run["step"], run["late"], color="#000000", lw=1.2)
        length = run["step"] + 1
        alpha = np.maximum.accumulate(run["alpha"]) * length / length[-1]  # 10 n max(theta, gamma)
        needed.semilogy(run["step"][1:], alpha[1:], color="#000000", lw=1.2)
        needed.axhline(1, color="0.5", lw=0.8)
        needed.set_xlabel("step (n - 1)")
        for axes in (upper, lower, needed):
            open_axes(axes)
    rows[0, 0].set_ylabel("share of the best k tokens' score")
    rows[1, 0].set_ylabel("received after\neviction")
    rows[2, 0].set_ylabel("α that the\npaper needs, < 1")
    rows[0, 0].legend(frameon=False, loc="lower left", fontsize="x-small")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    return figure


def attention_figure(trace: Trace, cells: int = 256) -> Figure:
    """Draw the attention of the first KV group of every layer, queries down, keys to the right.

    Grey is logarithmic, from 1e-4 (white) to 1 (black); a cell shows the largest mean over the
    group's heads among its entries (see :func:`h2osim.traces.description.heatmap`).
    """
    require_matplotlib()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    from h2osim.traces.description import heatmap

    units = [unit for unit in trace.units("group") if unit.index == 0]
    columns = min(5, len(units))
    rows = -(-len(units) // columns)
    figure = canvas(2.6 * columns + 0.8, 2.8 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    norm = LogNorm(1e-4, 1, clip=True)
    for axes, unit in zip(grid.flat, units, strict=False):
        picture = heatmap(unit, cells)
        picture = np.where(np.isnan(picture), np.nan, np.maximum(picture, 1e-4))
        extent = (0, unit.n, unit.n, 0)
        axes.imshow(picture, cmap="Greys", norm=norm, extent=extent)
        axes.set_title(f"layer {unit.layer}", fontsize="medium")
        axes.tick_params(labelsize="x-small")
    for axes in list(grid.flat)[len(units) :]:
        axes.set_visible(False)
    grid[0, 0].set_ylabel("query")
    grid[-1, 0].set_xlabel("key")
    figure.colorbar(ScalarMappable(norm, "Greys"), ax=grid, shrink=0.8, label="attention")
    return figure
