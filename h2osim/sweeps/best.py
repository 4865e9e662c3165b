"""What a sweep found, in a few numbers: the best settings at some budgets."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.policies.declaration import Configured
from h2osim.policies.text import parse
from h2osim.replays.budgets import budget_tokens

if TYPE_CHECKING:
    import xarray
    from rich.table import Table

#: With more budgets than this, those nearest to some shares of the trace stand for all.
_MOST_COLUMNS = 8
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Column:
    """A budget that is shown: what it is called, and where each unit has it (-1: nowhere)."""

    label: str
    budget: int | float
    at: np.ndarray
    tokens: np.ndarray


def columns_of(results: xarray.Dataset) -> list[Column]:
    """The budgets to show: all of a few, else those nearest to 1, 2, 5, 10, 20 and 50 % of n."""
    n = results["n"].values
    budgets = results["budget"].values
    one = int(n[0]) if (n == n[0]).all() else None
    if "tokens" in results.coords:
        tokens = results["tokens"].values
    else:
        tokens = np.broadcast_to(budgets, (len(n), len(budgets)))
    if len(budgets) <= _MOST_COLUMNS:
        chosen = [np.full(len(n), b) for b in range(len(budgets))]
    else:
        wanted = [np.array([budget_tokens(s, int(m)) for m in n]) for s in _SHARES]
        chosen = [np.abs(tokens - w[:, None]).argmin(axis=1) for w in wanted]
    found: dict[bytes, Column] = {}
    for i, at in enumerate(chosen):
        here = tokens[np.arange(len(n)), at]
        whole = bool((here == here[0]).all())
        if whole:
            label = f"{here[0]}" + (f" ({100 * here[0] / one:.3g} %)" if one else "")
        else:
            share = budgets[i] if len(budgets) <= _MOST_COLUMNS else _SHARES[i]
            label = f"{100 * share:.3g} %"
        budget = int(here[0]) if whole else float(share)
        at = np.where(here <= n, at, -1)
        found.setdefault(at.tobytes(), Column(label, budget, at, here))
    return list(found.values())


@dataclass(frozen=True)
class Summary:
    """Recall over the units: float64 [configurations, columns] each.

    ``over`` is bool: a unit holds more than the budget somewhere.
    """

    columns: list[Column]
    configured: list[Configured]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over: np.ndarray

    @cached_property
    def ranked(self) -> np.ndarray:
        """Who competes: bool [configurations, columns].

        Those that run online and keep to the budget; where there is none, those that run online;
        else all.
        """
        policies = [one.policy for one in self.configured]
        online = np.array([not (p.oracle or p.readmits) for p in policies])[:, None]
        told = ~np.isnan(self.mean)
        for competing in (told & online & ~self.over, told & online, told):
            if competing.any():
                return competing
        return told


def summarise(results: xarray.Dataset) -> Summary:
    """Means, least and greatest over the units, read chunk by chunk."""
    columns = columns_of(results)
    shape = results["recall"].shape
    step = results["recall"].encoding.get("chunks", shape)
    total = np.zeros((shape[0], len(columns)))
    count = np.zeros_like(total)
    low, high = np.full_like(total, np.inf), np.full_like(total, -np.inf)
    over = np.zeros(total.shape, bool)
    starts = (range(0, size, by) for size, by in zip(shape[:2], step[:2], strict=True))
    for c, u in itertools.product(*starts):
        here, there = slice(c, c + step[0]), slice(u, u + step[1])
        recall = results["recall"][here, there].values
        held = results["held"][here, there].values
        rows = np.arange(recall.shape[1])
        for s, column in enumerate(columns):
            mine = rows[column.at[there] >= 0]
            if not len(mine):
                continue
            at = column.at[there][mine]
            values = recall[:, mine, at]
            told = ~np.isnan(values)
            total[here, s] += np.where(told, values, 0).sum(axis=1)
            count[here, s] += told.sum(axis=1)
            low[here, s] = np.fmin(low[here, s], np.where(told, values, np.inf).min(axis=1))
            high[here, s] = np.fmax(high[here, s], np.where(told, values, -np.inf).max(axis=1))
            over[here, s] |= (held[:, mine, at] > column.tokens[there][mine]).any(axis=1)
    with np.errstate(invalid="ignore"):
        mean = total / count
    configured = [parse(str(text)) for text in results["policy"].values]
    return Summary(columns, configured, mean, low, high, over)


def best_records(summary: Summary, most: int) -> list[dict[str, Any]]:
    """The best settings of each column, the first of equals first."""
    found = []
    for s, column in enumerate(summary.columns):
        recall = np.where(summary.ranked[:, s], summary.mean[:, s], -np.inf)
        order = np.argsort(-recall, kind="stable")[:most]
        for rank, i in enumerate(order[np.isfinite(recall[order])], 1):
            found.append(
                {
                    "budget": column.budget,
                    "rank": rank,
                    "policy": summary.configured[i].text,
                    "params": dict(summary.configured[i].values),
                    "recall": float(summary.mean[i, s]),
                    "least": float(summary.low[i, s]),
                    "greatest": float(summary.high[i, s]),
                }
            )
    return found


def best_table(summary: Summary, most: int, title: str) -> Table:
    """The best settings of each budget: a row each."""
    from rich.table import Table

    caption = "recall of the attention mass: mean over the units, then least–greatest"
    left = int((~summary.ranked).all(axis=1).sum())
    if left:
        caption += f"; {left} settings never compete: oracles, bounds, or holding over the budget"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for header in ("budget", "#", "setting", "recall", "least–greatest"):
        right = header in ("budget", "#", "recall")
        table.add_column(header, justify="right" if right else "left", overflow="fold")
    records = best_records(summary, most)
    for column in summary.columns:
        label = column.label
        for one in (r for r in records if r["budget"] == column.budget):
            spread = f"{one['least']:.4f}–{one['greatest']:.4f}"
            table.add_row(label, str(one["rank"]), one["policy"], f"{one['recall']:.4f}", spread)
            label = ""
        table.add_section()
    return table
