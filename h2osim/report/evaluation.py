"""What a model lost with policies in force: the table and the figure of `h2osim evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.closed_loop.statistics import can_tell, mean_interval, ties_with_best

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from rich.table import Table


def evaluation_records(results: xr.Dataset) -> list[dict[str, Any]]:
    """One record a policy and budget: means over texts, with the interval of KL.

    ``kl`` is the geometric mean over texts in nats a token, ``low`` and ``high`` its 95 % bootstrap
    interval over texts (None with one text); ``best`` marks the policies that cannot be told from
    the least KL at this budget (paired test, Holm), None where the texts are too few to tell any.
    """
    enough = can_tell(results.sizes["text"], results.sizes["policy"])
    found = []
    for b, budget in enumerate(results["budget"].values.tolist()):
        here = results.isel(budget=b)
        names = here["policy"].values.tolist()
        losses = {name: here["kl"].isel(policy=i).values for i, name in enumerate(names)}
        best = ties_with_best(losses)
        for i, name in enumerate(names):
            one = here.isel(policy=i)
            kl = mean_interval(losses[name], geometric=True)
            found.append(
                {
                    "policy": name,
                    "budget": budget,
                    "kl": kl.mean,
                    "low": None if np.isnan(kl.low) else kl.low,
                    "high": None if np.isnan(kl.high) else kl.high,
                    "best": name in best if enough else None,
                    "perplexity": float(np.exp(one["nll"].mean())),
                    "top1": float(one["top1"].mean()),
                    "recall": float(one["recall"].mean()),
                }
            )
    return found


def evaluation_table(results: xr.Dataset) -> Table:
    """KL by policy and budget, the least first at the largest budget; * marks the best and ties."""
    from rich.table import Table

    records = evaluation_records(results)
    budgets = results["budget"].values.tolist()
    texts = results.sizes["text"]
    full = float(np.exp(results["full_nll"].mean()))
    if texts == 1:
        interval = "one text, so no interval and no test: the sample is the text"
    elif can_tell(texts, results.sizes["policy"]):
        interval = "95 % intervals over texts; * cannot be told from the best (paired test, Holm)"
    else:
        interval = "95 % intervals over texts; no test, texts or policies are too few"
    table = Table(
        title=f"KL from the full cache, nats a token, {texts} text{'s' if texts > 1 else ''}",
        caption=f"geometric means; {interval}; perplexity of the full cache {full:.2f}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("policy")
    for budget in budgets:
        table.add_column(budget_word(budget), justify="right")
    table.add_column("perplexity", justify="right")
    cells = {(one["policy"], one["budget"]): one for one in records}
    order = sorted(
        results["policy"].values.tolist(), key=lambda name: cells[name, budgets[-1]]["kl"]
    )
    for name in order:
        row = [cells[name, budget] for budget in budgets]
        words = [_cell(one, texts) for one in row]
        table.add_row(name, *words, " ".join(f"{one['perplexity']:.2f}" for one in row))
    return table


def _cell(one: dict[str, Any], texts: int) -> str:
    if texts == 1:
        return f"{one['kl']:.4f}"
    spread = "" if one["low"] is None else f" [{one['low']:.3f}, {one['high']:.3f}]"
    return f"{one['kl']:.4f}{spread}{'*' if one['best'] else ' '}"


def budget_word(budget: float) -> str:
    """A budget as it was asked: a share in percent, or tokens."""
    return f"{100 * budget:g} %" if budget <= 1 else f"{budget:g} tokens"


def evaluation_figure(results: xr.Dataset) -> Figure:
    """KL against budget, one line a policy, with the intervals over texts."""
    from matplotlib.figure import Figure

    from h2osim.report.figures import COLOURS, DASHES, MARKERS

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    records = evaluation_records(results)
    budgets = results["budget"].values.tolist()
    names = results["policy"].values.tolist()
    last = {one["policy"]: one["kl"] for one in records if one["budget"] == budgets[-1]}
    for i in sorted(range(len(names)), key=lambda i: -last[names[i]]):
        rows = [one for one in records if one["policy"] == names[i]]
        style: dict[str, Any] = {
            "color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
        }  # fmt: skip
        axes.plot(budgets, [one["kl"] for one in rows], label=names[i], **style)
        if all(one["low"] is not None for one in rows):
            low, high = ([one[word] for one in rows] for word in ("low", "high"))
            axes.fill_between(budgets, low, high, color=style["color"], alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(budgets, [budget_word(budget) for budget in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("budget")
    axes.set_ylabel("KL from the full cache (nats a token)")
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper", handlelength=4)
    return figure
