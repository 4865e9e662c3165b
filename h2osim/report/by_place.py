"""`compare --by`: a row a layer, unit, trace or span of steps, a column a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Group

from h2osim.report.comparison import (
    Spread,
    caption_of,
    cell_text,
    cells,
    groups,
    headings,
    rank_keys,
)
from h2osim.report.frames import shown_budgets
from h2osim.report.layouts import Name, fits, in_parts, plain_table
from h2osim.report.ranking import competing, ranks

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Console
    from rich.table import Table


def by_tables(
    screen: Console,
    results: xr.Dataset,
    by: str,
    measure: str,
    title: str | None = None,
    asked: Mapping[int, float] | None = None,
) -> Group:
    """A row a place, a section a budget, a column a policy in the order of their ranks.

    With as much of the spread as there is room for; where the screen is too narrow for all
    policies, several tables with some of them each.
    """
    part = results.isel(budget=shown_budgets(results))
    racing, keys = competing(part), rank_keys(part, measure)
    names, places = part["policy"].values, ranks(keys.tolist(), racing)
    found = [(word, cells(values, racing, measure)) for word, values in groups(part, by, measure)]
    labels = list(headings(part, asked, beside=True))
    one_unit = by == "trace" or "trace" not in part.dims
    side: Literal["left", "right"] = "right" if by in ("layer", "step") else "left"
    digits = 0 if measure == "recall" else 3

    def table(some: Sequence[int], spread: Spread) -> Table:
        made = plain_table(title, caption_of(results, spread, measure, measure, by))
        made.add_column("budget", justify="right", no_wrap=True)
        made.add_column("decode steps" if by == "step" else by, justify=side, no_wrap=True)
        for i in some:
            heading = Group(f"# {places[i]}", Name(str(names[i]), folded=True))
            made.add_column(heading, justify="right", no_wrap=True)
        for b, label in enumerate(labels):
            for word, rows in found:
                place = word.removeprefix("layer ") if by == "layer" else word
                numbers = (cell_text(rows[i][b], spread, digits, not one_unit) for i in some)
                made.add_row(label, place, *numbers)
                label = ""
            made.add_section()
        return made

    order = np.argsort(keys, kind="stable").tolist()
    # Below the mean, ends would double the rows of 30 layers.
    spreads: list[Spread] = ["beside", "none"]
    if by in ("trace", "step"):
        spreads.insert(1, "below")
    for spread in spreads:
        if fits(screen, whole := table(order, spread)):
            return Group(whole)
    return Group(*in_parts(screen, order, lambda some: table(some, "none")))
