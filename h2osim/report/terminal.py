"""Tables of results for a terminal: the optimum, splits of slots, the best settings of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from h2osim.report.best import Summary, best_records
from h2osim.report.frames import MEASURED, Record
from h2osim.report.layouts import Name, in_parts, plain_table
from h2osim.report.statistics import mean_interval, what_intervals_say

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console, Group
    from rich.table import Table


#: A table of bounds with more budgets shows some of them.
_MOST_BUDGETS = 8


def bounds_table(
    records: Sequence[Record], title: str, weights: str = "mass", by: str = "layer"
) -> Table:
    """Bounds on the optimum, a column a budget: a row for all units, then one for each layer.

    A cell is the mean recall of the schedules found; of several traces the mean over traces of
    their units' means, with its interval below. ``by`` gives a row to each unit or trace instead.
    Behind a stroke the output error, where it was measured.
    """
    what = "recall" if weights == "mass" else "share of the attention weighted by value"
    gap = max((record["upper"] - record["lower"] for record in records if record["gap"]), default=0)
    caption = f"{what} of the best schedules found, which may be up to {gap:.1e} below the optimum"
    if not gap:
        caption = f"{what} of the best schedule there is (gap 0)"
    traces = list(dict.fromkeys(record.get("trace") for record in records))
    caption += f": means; {what_intervals_say(len(traces), 0, 'trace')}"
    if any("output_error" in record for record in records):
        caption += "; | output error"
    budgets = sorted(set(map(_place, records)))
    if len(budgets) > _MOST_BUDGETS:
        budgets = budgets[:: -(-len(budgets) // _MOST_BUDGETS)]
        caption += f"; {len(budgets)} budgets shown"
    table = plain_table(title, caption)
    table.add_column(by, justify="right", no_wrap=True)
    for b, split in budgets:
        word = f"{100 * b:.3g} %" if b <= 1 and b % 1 else f"{b:g}"
        table.add_column("\n".join(filter(None, (word, split))), justify="right", no_wrap=True)

    def add(word: str, some: Sequence[Record]) -> None:
        columns = [[record for record in some if _place(record) == b] for b in budgets]
        table.add_row(word, *(_bound_cell(column) for column in columns))

    add("all", records)
    if len(traces) > 1:
        means = [
            [_mean([r for r in records if (r["trace"], _place(r)) == (t, b)]) for t in traces]
            for b in budgets
        ]
        ends = [mean_interval(np.array(one)) for one in means]
        table.add_row("95 % from", *(_share(one.low) for one in ends))
        table.add_row("to", *(_share(one.high) for one in ends))
    table.add_section()
    rows: dict[str, list[Record]] = {}
    for record in records:
        place = f"{record['layer']}, {record['unit']}"
        rows.setdefault(place if by == "unit" else str(record[by]), []).append(record)
    for word, some in rows.items():
        add(word, some)
    return table


def _place(record: Record) -> tuple[float, str]:
    """The column of a record: its budget, and the name of budgets by unit, if they are."""
    return record["budget"], record.get("split", "")


def _mean(some: Sequence[Record], name: str = "recall") -> float:
    known = [record[name] for record in some if record[name] is not None]
    return float(np.mean(known)) if known else float("nan")


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.4f}".removeprefix("0")


def _bound_cell(some: Sequence[Record]) -> str:
    text = _share(_mean(some))
    if some and "output_error" in some[0]:
        text += f" | {_mean(some, 'output_error'):.3g}"
    return text


def allocation_page(screen: Console, found: xr.Dataset, title: str) -> Group:
    """A row a policy and split, a column a total: what all units lose; then slots by layer.

    Of several traces means over them, with intervals below.
    """
    from rich.console import Group

    several = "trace" in found.dims
    caption = f"what all units lose by {found.attrs['by']}; slots of a unit at the largest total"
    if several:
        caption += f"; {what_intervals_say(found.sizes['trace'], 0, 'trace')}"
    best = found["overall"].sel(split="oracle" if several else "best")
    if (slack := float((best - found["least"]).max())) > 1e-9:
        caption += f"; best is proved within {slack:.1e}"
    sums = plain_table(title, caption)
    sums.add_column("policy", min_width=9)
    sums.add_column("split", no_wrap=True)
    for share in found["budget"].values:
        sums.add_column(f"{100 * share:.3g} %", justify="right", no_wrap=True)
    sums.add_column("slots", justify="right", no_wrap=True)
    rules = [str(rule) for rule in found["split"].values]
    policies = [str(policy) for policy in found["policy"].values]
    for policy in policies:
        sums.add_section()
        for j, rule in enumerate(rules):
            one = found.sel(policy=policy, split=rule)
            cells = []
            for b in range(one.sizes["budget"]):
                loss = mean_interval(np.atleast_1d(one["overall"].isel(budget=b).values))
                ends = f"\n[{loss.low:.3g}, {loss.high:.3g}]" * (several and not np.isnan(loss.low))
                cells.append(f"{loss.mean:.4g}{ends}")
            slots = one["slots"].isel(budget=int(found["budget"].values.argmax())).values
            first = Name(policy if j == 0 else "")
            sums.add_row(first, rule, *cells, f"{slots.min()}–{slots.max()}")
    return Group(sums, *_slots_by_layer(screen, found, policies, rules))


def _slots_by_layer(
    screen: Console, found: xr.Dataset, policies: Sequence[str], rules: Sequence[str]
) -> Iterator[Table]:
    """A row a layer, a column a split; several tables where the screen is too narrow for one."""
    largest = float(found["budget"].max())
    others = [rule for rule in rules if rule not in ("best", "oracle")]
    words = [*(f"best: {policy}" for policy in policies), *others]
    over = [dim for dim in ("trace",) if dim in found.dims]
    layers = found["slots"].sel(budget=largest).sum("unit").mean(over)
    # The other rules do not look at the policy.
    columns = [layers.sel(policy=policy, split="best") for policy in policies]
    columns += [layers.sel(policy=policies[0], split=rule) for rule in others]

    def table(some: Sequence[int]) -> Table:
        made = plain_table(
            None, f"slots of a layer, all its units together, at {100 * largest:.3g} %"
        )
        made.add_column("layer", justify="right", no_wrap=True)
        for i in some:
            made.add_column(Name(words[i], folded=True), justify="right", no_wrap=True)
        for at, layer in enumerate(found["layer"].values):
            made.add_row(str(layer), *(f"{columns[i].values[at]:.0f}" for i in some))
        return made

    return in_parts(screen, range(len(words)), table)


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
    ranks = Counter((*_place(one), one["rank"]) for one in best_records(summary, most))
    for column in summary.columns:
        label, setting = column.label, ""
        for one in (r for r in records if _place(r) == (column.budget, column.split)):
            tie = "=" * (ranks[*_place(one), one["rank"]] > 1)
            rank, name = f"{one['rank']}{tie}", one["policy"]
            if one["policy"] == setting:
                rank = name = ""
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
            table.add_row(label, rank, Name(name), mean, beside)
            label = ""
        table.add_section()
    return table
