"""Tables of results for a terminal: policies ranked, against the optimum, at a target recall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from h2osim.report.best import Summary, best_records
from h2osim.report.frames import MEASURED, Record
from h2osim.report.statistics import what_intervals_say

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table


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
    table = plain_table(title, caption)
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
    table = plain_table(title, caption)
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


def best_table(summary: Summary, most: int, title: str, by_trace: bool = False) -> Table:
    """The best settings of each budget of a sweep: a row each; or a row for each of its traces."""
    name = "recall" if summary.measure == "recall" else MEASURED[summary.measure]
    several, online = len(summary.traces) > 1, int(summary.ranked.any(axis=1).sum())
    caption = f"{MEASURED[summary.measure]}: mean over the units"
    if several and not by_trace:
        geometric = "" if summary.measure == "recall" else "geometric "
        caption += f" of each trace, then {geometric}mean over traces"
    elif not several:
        caption += ", then least–greatest"
    if not by_trace:
        caption += f"; {what_intervals_say(len(summary.traces), online, 'trace')}"
    left = int((~summary.ranked).all(axis=1).sum())
    if left:
        caption += f"; {left} settings never compete: oracles, bounds, or holding over the budget"
    table = plain_table(title, caption)
    last = "trace" if by_trace else "interval" if several else "least–greatest"
    for header in ("budget", "#", "setting", name, last):
        right = header in ("budget", "#", name)
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    style = ".4f" if name == "recall" else ".3g"
    records = best_records(summary, most, by_trace)
    ranks = Counter((one["budget"], one["rank"]) for one in best_records(summary, most))
    for column in summary.columns:
        label, setting = column.label, ""
        for one in (r for r in records if r["budget"] == column.budget):
            tie = "=" * (ranks[one["budget"], one["rank"]] > 1)
            words = [f"{one['rank']}{tie}", one["policy"]]
            if one["policy"] == setting:
                words = ["", ""]
            setting = one["policy"]
            if by_trace:
                beside = one["trace"]
            elif not several:
                beside = f"{one['least']:{style}}–{one['greatest']:{style}}"
            else:
                beside = (
                    "" if one["low"] is None else f"[{one['low']:{style}}, {one['high']:{style}}]"
                )
            mean = f"{one[summary.measure]:{style}}" + "*" * bool(one.get("best"))
            table.add_row(label, *words, mean, beside)
            label = ""
        table.add_section()
    return table


def plain_table(title: str | None, caption: str) -> Table:
    """An empty table with what it shows above it and how to read it below."""
    from rich.table import Table

    return Table(title=title, caption=caption, title_justify="left", caption_justify="left")
