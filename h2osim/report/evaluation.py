"""What a model lost with policies in force: the table and the figure of `h2osim evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.report.frames import share_word
from h2osim.report.layouts import Name, plain_table
from h2osim.report.statistics import can_tell, mean_interval, ties_with_best, what_intervals_say

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from rich.console import Group
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
            record = {
                "policy": name,
                "budget": budget,
                "split": str(here["split"].item()),
                "kl": kl.mean,
                "low": None if np.isnan(kl.low) else kl.low,
                "high": None if np.isnan(kl.high) else kl.high,
                "best": name in best if enough else None,
                "perplexity": float(np.exp(one["nll"].mean())),
                "top1": float(one["top1"].mean()),
                "recall": float(one["recall"].mean()),
            }
            if "exact" in one:
                record |= {key: float(one[key].mean()) for key in ("exact", "answer_logp")}
            if "agreement" in one:
                record["agreement"] = float(one["agreement"].mean())
                if one.sizes["text"] == 1:
                    record["generated"] = str(one["generated"].item())
            found.append(record)
    return found


def evaluation_page(results: xr.Dataset) -> Group:
    """KL by policy and budget, the least first at the largest budget; * marks the best and ties.

    Below, in tables of the same rows, the perplexity; of prompts with an answer how many were
    answered and the answer's log-probability; of what the model wrote, how long it agreed with the
    full cache.
    """
    from rich.console import Group

    records = evaluation_records(results)
    texts, policies = results.sizes["text"], results.sizes["policy"]
    rows = sorted((records[i::policies] for i in range(policies)), key=lambda row: row[-1]["kl"])
    headings = [_heading(results, b) for b in range(results.sizes["budget"])]

    def table(title: str, caption: str, cell: Callable[[dict[str, Any]], str]) -> Table:
        made = plain_table(title, caption)
        made.add_column("policy", min_width=9)
        for heading in headings:
            made.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            made.add_row(Name(row[0]["policy"]), *map(cell, row))
        return made

    title = f"KL from the full cache, nats a token, {texts} text{'s' if texts > 1 else ''}"
    caption = f"geometric means; {what_intervals_say(texts, policies)}"
    caption += f"; the least at {headings[-1].replace(chr(10), ' ')} first"
    full = {
        "perplexity": float(np.exp(results["full_nll"].mean())),
        **{x: float(results[f"full_{x}"].mean()) for x in ("exact", "answer_logp") if x in results},
    }
    tables = [table(title, caption, lambda one: _cell(one, texts))]
    for name, (word, form) in _COLUMNS.items():
        if name in records[0]:
            known = f"with the full cache {full[name]:{form}}" if name in full else ""
            tables.append(table(word, known, partial(_written, name=name, form=form)))
    return Group(*tables)


_COLUMNS = {
    "perplexity": ("perplexity", ".2f"),
    "exact": ("prompts answered exactly", ".0%"),
    "answer_logp": ("log-probability of the answer, nats", ".2f"),
    "agreement": ("tokens written before the first that differs from the full cache's", ".1f"),
}
"""What is known besides KL: its title and how it is written."""


def _written(one: dict[str, Any], name: str, form: str) -> str:
    return format(one[name], form)


def _heading(results: xr.Dataset, b: int) -> str:
    """A budget as it was asked, and the file's name where units have their own."""
    word = budget_word(float(results["budget"][b]), results.attrs)
    split = str(results["split"][b].item())
    return word if split == "equal" else f"{split}\nmean {word}"


def _cell(one: dict[str, Any], texts: int) -> str:
    if texts == 1:
        return f"{one['kl']:.4f}"
    spread = "" if one["low"] is None else f"\n[{one['low']:.3f}, {one['high']:.3f}]"
    return f"{one['kl']:.4f}{'*' if one['best'] else ''}{spread}"


def budget_word(budget: float, attributes: Mapping[Any, Any]) -> str:
    """A budget as it was asked: a share in percent, or tokens."""
    return share_word(budget, attributes) if budget <= 1 else f"{budget:g} tokens"


def evaluation_figure(results: xr.Dataset) -> Figure:
    """KL against budget, one line a policy, with the intervals over texts."""
    from h2osim.report.figures.drawing import canvas, line_style, open_axes

    figure = canvas(8, 5)
    axes = figure.subplots()
    records = evaluation_records(results)
    names = results["policy"].values.tolist()
    equal = [one for one in records if one["split"] == "equal"]
    budgets = sorted({one["budget"] for one in records})
    last = {one["policy"]: one["kl"] for one in records}
    for i in sorted(range(len(names)), key=lambda i: -last[names[i]]):
        line = line_style(i)
        style = {"color": line["color"]}
        rows = [one for one in equal if one["policy"] == names[i]]
        axes.plot(
            [one["budget"] for one in rows], [one["kl"] for one in rows], label=names[i], **line
        )
        if rows and all(one["low"] is not None for one in rows):
            low, high = ([one[word] for one in rows] for word in ("low", "high"))
            x = [one["budget"] for one in rows]
            axes.fill_between(x, low, high, alpha=0.12, linewidth=0, **style)
        for one in records:  # budgets by unit, at their mean
            if one["policy"] == names[i] and one["split"] != "equal":
                axes.plot(
                    one["budget"], one["kl"], linestyle="", marker="*", markersize=11, **style
                )
                axes.annotate(one["split"], (one["budget"], one["kl"]), fontsize=7)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(budgets, [budget_word(x, results.attrs) for x in budgets])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("budget")
    axes.set_ylabel("KL from the full cache (nats a token)")
    open_axes(axes)
    figure.legend(frameon=False, loc="outside right upper", handlelength=4)
    return figure
