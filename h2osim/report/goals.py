"""Policies against a goal: the best that any schedule could keep, or a recall to be reached."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from h2osim.report.comparison import groups, headings, short
from h2osim.report.frames import MEASURED, remark, shown_budgets
from h2osim.report.layouts import Name, plain_table
from h2osim.report.ranking import exceeding
from h2osim.report.statistics import mean_interval, what_intervals_say

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table


def regret_table(results: xr.Dataset, ranked_by: str = "recall", narrow: bool = False) -> Table:
    """A row a policy, a column a budget: regret, and the share of StreamingLLM's gap closed.

    The share is a ratio of means, (recall - streaming) / (optimum - streaming), so that of two
    policies the better never shows the smaller one. ``narrow`` puts it below the regret.
    """
    shown = results.isel(budget=shown_budgets(results))
    best, base = (
        shown[name].mean([d for d in shown[name].dims if d != "budget"]).values
        for name in ("optimum", "streaming")
    )
    others = [d for d in shown["recall"].dims if d not in ("policy", "budget")]
    reached = shown["recall"].mean(others).transpose("policy", "budget").values
    caption = (
        "below the offline optimum by; in brackets the share of the gap between StreamingLLM and "
        "the optimum that is closed (both from means over all units); beyond 100 % only with more "
        "than the budget, or as a bound"
    )
    title = "recall of the attention mass, against the offline optimum"
    if ranked_by != "recall":
        title += (
            f"; what {MEASURED[ranked_by]} could be at best is not known (`h2osim optimum "
            "--weights value` has the best sum of attention times distance from the output)"
        )
    table = plain_table(title, caption)
    table.add_column("policy", min_width=9)
    apart = "\n" if narrow else " "
    for heading, recall in zip(headings(shown, None, False), best, strict=True):
        optimum = f"optimum{apart}{short(recall)}"
        label = f"{heading.splitlines()[0]}\n{optimum}"
        table.add_column(label, justify="right", no_wrap=True)
    gap = best - base
    closed = np.divide(reached - base, gap, out=np.full(reached.shape, np.nan), where=gap > 0)
    for i in np.argsort((best - reached).mean(axis=1), kind="stable"):
        numbers = [
            f"{r:.3f}{apart}({'–' if np.isnan(c) else f'{100 * c:.0f} %'})"
            for r, c in zip(best - reached[i], closed[i], strict=True)
        ]
        table.add_row(Name(str(shown["policy"].values[i])), *numbers)
    return table


def target_table(
    reached: xr.Dataset,
    title: str | None = None,
    by: str | None = None,
    replayed: xr.Dataset | None = None,
) -> Table:
    """A row a policy: the least budget whose mean recall is enough, and those of single units.

    On several traces the first is the mean over them, as a share of each, with its interval. ``by``
    gives a section to each layer, unit or trace. A policy that held more than the budget in
    ``replayed``, or is none that runs online, says so below.
    """
    target, several = reached.attrs["target_recall"], "trace" in reached.dims
    caption = f"smallest budget whose recall is at least {target:g}"
    caption += ": overall, for the mean over the units; then of single units, in tokens"
    if several:
        caption += "; overall as a share of each trace: "
        caption += what_intervals_say(reached.sizes["trace"], 0, "trace")
    for i, name in enumerate(reached["policy"].values):
        one = None if replayed is None else replayed.isel(policy=i)
        words = [] if one is None else [remark(one["kind"].item()), exceeding(one)]
        if any(words):
            caption = f"{name}: {', '.join(filter(None, words))}\n{caption}"
    table = plain_table(title, caption)
    if by is not None:
        table.add_column(by)
    table.add_column("policy", min_width=9)
    columns = ("least", "median", "greatest")
    for column in (*(() if by else ("overall",)), *columns):
        table.add_column(column, justify="right", no_wrap=True)
    policies = reached.sizes["policy"]
    overall = reached["least_budget_overall"].transpose("policy", ...).values.reshape(policies, -1)
    worst = np.where(overall == 0, np.inf, overall).mean(axis=1)
    lengths = reached["n"].values if several else np.array([reached.attrs["n"]])
    names = reached["policy"].values
    single = [(None, reached["least_budget"])]
    for word, values in single if by is None else groups(reached, by, "least_budget"):
        first = [] if word is None else [word]
        for i in np.argsort(worst, kind="stable"):
            units = values.isel(policy=i).values.ravel()
            ordered = np.sort(np.where(units == 0, np.inf, units))
            ends = (ordered[0], ordered[(len(ordered) - 1) // 2], ordered[-1])
            shown = ["never" if np.isinf(k) else f"{k:.0f}" for k in ends]
            least = [] if by else [_least(overall[i], lengths)]
            table.add_row(*first, Name(str(names[i])), *least, *shown)
            first = [""] if first else []
        table.add_section()
    return table


def _least(budgets: np.ndarray, lengths: np.ndarray) -> str:
    """The least budgets of some traces in words, 0 where none is enough."""
    never = int((budgets == 0).sum())
    if never:
        return "never" if never == len(budgets) else f"never in {never} of {len(budgets)}"
    if len(budgets) == 1:
        return f"{budgets[0]} ({100 * budgets[0] / lengths[0]:.3g} %)"
    one = mean_interval(100 * budgets / lengths)
    return f"{one.mean:.3g} % [{one.low:.3g}, {one.high:.3g}]"
