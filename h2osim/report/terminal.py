"""Tables of results for a terminal: policies ranked, against the optimum, at a target recall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from h2osim.report.best import Summary, best_records
from h2osim.report.frames import MEASURED, Record, budget_label, remark, shown_budgets

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

    from h2osim.traces.trace import Trace

_UNIT_WORDS = {"head": "heads", "group": "KV groups", "layer": "layers"}


def comparison_title(trace: Trace, results: xr.Dataset) -> str:
    """One line on what was compared: trace, length, prompt and units."""
    share = str(results.attrs.get("share", "group"))
    units = results.sizes["layer"] * results.sizes["unit"]
    word = _UNIT_WORDS.get(share, "units")
    word = word.removesuffix("s") if units == 1 else word
    prompt = int(results.attrs["prompt_len"])
    tokens = "token" if prompt == 1 else "tokens"
    return f"{trace.name}: {trace.n} tokens, prompt of {prompt} {tokens}, {units} {word}"


def regret_table(results: xr.Dataset) -> Table:
    """A row a policy, a column a budget: regret, and the share of StreamingLLM's gap closed."""
    shown = results.isel(budget=shown_budgets(results))
    best = shown["optimum"].mean(("layer", "unit")).values
    regret = shown["regret"].mean(("layer", "unit")).transpose("policy", "budget").values
    table = _table(
        None,
        "below the offline optimum by; in brackets the share of the gap between StreamingLLM and "
        "the optimum that is closed (means over the units)",
    )
    table.add_column("policy", overflow="fold", min_width=9)
    for budget, recall in zip(shown["budget"].values, best, strict=True):
        table.add_column(f"{budget}: optimum {_short(recall)}", justify="right", no_wrap=True)
    closed = shown["closed"].mean(("layer", "unit")).transpose("policy", "budget").values
    for i in np.argsort(regret.mean(1), kind="stable"):
        cells = [
            f"{r:.3f} ({'–' if np.isnan(c) else f'{100 * c:.0f} %'})"
            for r, c in zip(regret[i], closed[i], strict=True)
        ]
        table.add_row(str(shown["policy"].values[i]), *cells)
    return table


def comparison_table(
    results: xr.Dataset,
    title: str | None = None,
    asked: Mapping[int, float] | None = None,
    spread: Literal["beside", "below", "none"] = "beside",
    measure: str = "recall",
    ranked_by: str = "recall",
) -> Table:
    """Rank the policies: a row a policy, a column a budget; ``measure`` is what the cells hold.

    A cell is the mean over all units, then the least and the greatest of them. The rank is by the
    mean of ``ranked_by`` over the budgets shown; oracles and bounds stand in their place without a
    number, because nothing that decodes online can be them. ``asked`` maps budgets in tokens to the
    fractions they were asked for as: 0.05 of 768 tokens comes to 38, which would otherwise be
    labelled 4.95 %. ``spread`` says where the least and the greatest stand: a narrow screen wants
    them below the mean, or not at all.
    """
    shown = shown_budgets(results)
    part = results.isel(budget=shown)
    values_of = part[measure].transpose("policy", "budget", "layer", "unit").values
    values_of = values_of.reshape(*values_of.shape[:2], -1)
    ranks = part[ranked_by].transpose("policy", "budget", "layer", "unit").values
    ranks = ranks.mean(axis=(1, 2, 3)) * (-1 if ranked_by == "recall" else 1)
    texts = [str(text) for text in part["policy"].values]
    notes = [_notes(part.isel(policy=i)) for i in range(len(texts))]

    caption = f"{MEASURED[measure]}: mean over the units"
    caption += " (a wider screen shows the spread)" if spread == "none" else ", then least–greatest"
    if len(shown) < results.sizes["budget"]:
        caption += f"; {len(shown)} of {results.sizes['budget']} budgets shown"
    if ranked_by != "recall":
        caption += f"; ranked by {MEASURED[ranked_by]}, the least first"
    table = _table(title, caption)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold", min_width=9)
    n = int(results.attrs["n"])
    for budget in part["budget"].values.tolist():
        share = budget_label(budget, n, asked)
        label = f"{budget} ({share})" if spread == "beside" else f"{budget}\n{share}"
        table.add_column(label, justify="right", no_wrap=True)
    optimum = "optimum" in part and measure == ranked_by == "recall"
    if any(notes) or optimum:
        table.add_column("notes")

    ordinary = [kind == "online" for kind in part["kind"].values]
    entries = list(zip(ranks, values_of, texts, notes, ordinary, strict=True))
    if optimum:
        best = part["optimum"].transpose("budget", "layer", "unit").values
        best = best.reshape(len(best), -1)
        entries.append((-best.mean(), best, "optimum", "offline", False))
    number = 0
    # Equals keep the order in which the policies were asked for.
    for _, values, text, note, counts in sorted(entries, key=lambda entry: entry[0]):
        number += counts
        cells = (_cell(units, spread, 3 * (measure != "recall")) for units in values)
        row = [str(number) if counts else "–", text, *cells]
        table.add_row(*row, *([note] if len(table.columns) > len(row) else []))
    return table


def one_pass_line(results: xr.Dataset) -> str:
    """Which policies had all their budgets from one pass, and which ran budget by budget."""
    ways = {True: "all budgets in one pass", False: "budget by budget"}
    parts = []
    for flag, words in ways.items():
        names = results["policy"].values[results["one_pass"].values == flag]
        if len(names):
            parts.append(f"{words}: {', '.join(map(str, names))}")
    return "; ".join(parts)


def target_table(reached: xr.Dataset, title: str | None = None) -> Table:
    """A row a policy: the smallest budget that reaches the recall, overall and for each layer."""
    n, target = int(reached.attrs["n"]), reached.attrs["target_recall"]
    caption = f"smallest budget whose recall is at least {target:g}, in tokens"
    if reached.sizes["unit"] > 1:
        caption += "; of a layer: least–greatest over its units"
    table = _table(title, caption)
    table.add_column("policy", overflow="fold", min_width=9)
    table.add_column("overall", justify="right", no_wrap=True)
    for layer in reached["layer"].values:
        table.add_column(f"layer {layer}", justify="right", no_wrap=True)
    overall = reached["least_budget_overall"].values
    for i in sorted(range(len(overall)), key=lambda i: (overall[i] == 0, overall[i])):
        share = f" ({100 * overall[i] / n:.3g} %)" if overall[i] else ""
        cells = []
        for budgets in reached["least_budget"].isel(policy=i).transpose("layer", "unit").values:
            ends = dict.fromkeys((budgets.min(), budgets.max()))
            cells.append("–".join("never" if not b else str(b) for b in ends))
        name = str(reached["policy"].values[i])
        table.add_row(name, f"{overall[i] or 'never'}{share}", *cells)
    return table


def _cell(values: np.ndarray, spread: str, digits: int = 0) -> str:
    """Mean, least and greatest: three decimals, or so many significant ``digits``."""
    ends = values.mean(), values.min(), values.max()
    mean, low, high = (f"{v:.{digits}g}" if digits else _short(v) for v in ends)
    if values.size == 1 or spread == "none":
        return mean
    return f"{mean}\n{low}–{high}" if spread == "below" else f"{mean}  {low}–{high}"


def _short(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def _notes(one: xr.Dataset) -> str:
    words = [remark(one["kind"].item())]
    held = one["held"].transpose("budget", "layer", "unit").values
    over = held.reshape(len(held), -1).max(axis=1) / one["budget"].values
    worst = int(over.argmax())
    if over[worst] > 1:
        words.append(f"holds up to {held[worst].max()} of {int(one['budget'].values[worst])}")
    return ", ".join(filter(None, words))


def bounds_table(records: Sequence[Record], title: str, weights: str = "mass") -> Table:
    """Bounds on the optimum: a row a unit, a column a budget; the recall, and the gap if any.

    Behind a stroke the output error, where it was measured.
    """
    what = "recall" if weights == "mass" else "share of the attention weighted by value"
    caption = f"{what} of the best schedule found; +: how much higher the proved bound lies"
    if all(record["gap"] == 0 for record in records):
        caption = f"{what} of the best schedule there is (gap 0)"
    if any("output_error" in record for record in records):
        caption += "; | its output error"
    budgets = sorted({record["budget"] for record in records})
    if len(budgets) > 10:
        budgets = budgets[:: -(-len(budgets) // 10)]
        caption += f"; {len(budgets)} budgets shown"
    table = _table(title, caption)
    for column in ("layer", "unit", *map(str, budgets)):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[tuple[int, int], dict[int, str]] = {}
    for record in records:
        text = "–" if record["recall"] is None else f"{record['recall']:.4f}"
        if record["gap"]:
            text += f" +{record['upper'] - record['lower']:.1e}"
        if "output_error" in record:
            text += f" | {record['output_error']:.3g}"
        rows.setdefault((record["layer"], record["unit"]), {})[record["budget"]] = text
    for (layer, unit), cells in rows.items():
        table.add_row(str(layer), str(unit), *(cells[budget] for budget in budgets))
    return table


def allocation_table(found: xr.Dataset, title: str) -> Table:
    """A row a policy and rule: recall over all units, and each layer's slots."""
    caption = "recall: over all units together; then each layer's slots"
    slack = found["upper"].values - found["overall"].sel(split="best").values
    if (slack > 0).any():
        caption += f"; best is proved within {slack.max():.1e}"
    table = _table(title, caption)
    table.add_column("policy", overflow="fold", min_width=9)
    for column in ("rule", "recall", *(f"layer {layer}" for layer in found["layer"].values)):
        table.add_column(column, justify="left" if column == "rule" else "right", no_wrap=True)
    slots = found["slots"].sum("unit").transpose("policy", "split", "layer").values
    overall = found["overall"].transpose("policy", "split").values
    for i, policy in enumerate(found["policy"].values):
        table.add_section()
        for j, split in enumerate(found["split"].values):
            name = str(policy) if j == 0 else ""
            table.add_row(name, str(split), f"{overall[i, j]:.4f}", *map(str, slots[i, j]))
    return table


def best_table(summary: Summary, most: int, title: str) -> Table:
    """The best settings of each budget of a sweep: a row each."""
    name = "recall" if summary.measure == "recall" else MEASURED[summary.measure]
    caption = f"{MEASURED[summary.measure]}: mean over the units, then least–greatest"
    left = int((~summary.ranked).all(axis=1).sum())
    if left:
        caption += f"; {left} settings never compete: oracles, bounds, or holding over the budget"
    table = _table(title, caption)
    for header in ("budget", "#", "setting", name, "least–greatest"):
        right = header in ("budget", "#", name)
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    records = best_records(summary, most)
    for column in summary.columns:
        label = column.label
        for one in (r for r in records if r["budget"] == column.budget):
            numbers = one[summary.measure], one["least"], one["greatest"]
            style = ".4f" if name == "recall" else ".3g"
            mean, low, high = (f"{number:{style}}" for number in numbers)
            table.add_row(label, str(one["rank"]), one["policy"], mean, f"{low}–{high}")
            label = ""
        table.add_section()
    return table


def _table(title: str | None, caption: str) -> Table:
    from rich.table import Table

    return Table(title=title, caption=caption, title_justify="left", caption_justify="left")
