"""Summary of a sweep: the best settings at some budgets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.replays.budgets import budget_tokens
from h2osim.replays.results import params_of
from h2osim.report.frames import MEASURED, MOST_COLUMNS, SHOWN_SHARES

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Column:
    """A budget that is shown: its label, and its index in each unit (-1: the unit has none)."""

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
    if len(budgets) <= MOST_COLUMNS:
        chosen = [np.full(len(n), b) for b in range(len(budgets))]
    else:
        wanted = [np.array([budget_tokens(s, int(m)) for m in n]) for s in SHOWN_SHARES]
        chosen = [np.abs(tokens - w[:, None]).argmin(axis=1) for w in wanted]
    found: dict[bytes, Column] = {}
    for i, at in enumerate(chosen):
        here = tokens[np.arange(len(n)), at]
        whole = bool((here == here[0]).all())
        if whole:
            label = f"{here[0]}" + (f" ({100 * here[0] / one:.3g} %)" if one else "")
        else:
            share = budgets[i] if len(budgets) <= MOST_COLUMNS else SHOWN_SHARES[i]
            label = f"{100 * share:.3g} %"
        budget = int(here[0]) if whole else float(share)
        at = np.where(here <= n, at, -1)
        found.setdefault(at.tobytes(), Column(label, budget, at, here))
    return list(found.values())


@dataclass(frozen=True)
class Setting:
    """A configuration of a sweep: its text, its rule's name, its parameters; whether it is online
    (else an oracle or a bound).
    """

    text: str
    rule: str
    values: Mapping[str, Any]
    online: bool


@dataclass(frozen=True)
class Summary:
    """A measure over the units: float64 [configurations, columns] each.

    ``measure`` is its variable. ``over`` is bool: a unit holds more than the budget somewhere.
    """

    columns: list[Column]
    settings: list[Setting]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over: np.ndarray
    measure: str = "recall"

    @property
    def sign(self) -> int:
        """1 where the largest is best, -1 where the least is."""
        return 1 if self.measure == "recall" else -1

    @cached_property
    def ranked(self) -> np.ndarray:
        """Which settings are ranked: bool [configurations, columns].

        Those that run online and keep to the budget; where there is none, those that run online;
        else all.
        """
        online = np.array([one.online for one in self.settings])[:, None]
        known = ~np.isnan(self.mean)
        for competing in (known & online & ~self.over, known & online, known):
            if competing.any():
                return competing
        return known


def summarise(results: xarray.Dataset) -> Summary:
    """Means, least and greatest over the units, read chunk by chunk."""
    columns = columns_of(results)
    measure = next(name for name in MEASURED if name in results)
    shape = results[measure].shape
    step = results[measure].encoding.get("chunks", shape)
    total = np.zeros((shape[0], len(columns)))
    count = np.zeros_like(total)
    low, high = np.full_like(total, np.inf), np.full_like(total, -np.inf)
    over = np.zeros(total.shape, bool)
    starts = (range(0, size, by) for size, by in zip(shape[:2], step[:2], strict=True))
    for c, u in itertools.product(*starts):
        here, there = slice(c, c + step[0]), slice(u, u + step[1])
        found = results[measure][here, there].values
        held = results["held"][here, there].values
        rows = np.arange(found.shape[1])
        for s, column in enumerate(columns):
            mine = rows[column.at[there] >= 0]
            if not len(mine):
                continue
            at = column.at[there][mine]
            values = found[:, mine, at]
            known = ~np.isnan(values)
            total[here, s] += np.where(known, values, 0).sum(axis=1)
            count[here, s] += known.sum(axis=1)
            low[here, s] = np.fmin(low[here, s], np.where(known, values, np.inf).min(axis=1))
            high[here, s] = np.fmax(high[here, s], np.where(known, values, -np.inf).max(axis=1))
            over[here, s] |= (held[:, mine, at] > column.tokens[there][mine]).any(axis=1)
    with np.errstate(invalid="ignore"):
        mean = total / count
    facts = (results[name].values.tolist() for name in ("policy", "rule", "params", "kind"))
    settings = [
        Setting(text, rule, params_of(params), kind == "online")
        for text, rule, params, kind in zip(*facts, strict=True)
    ]
    return Summary(columns, settings, mean, low, high, over, measure)


def best_records(summary: Summary, most: int) -> list[dict[str, Any]]:
    """The best settings of each column, the first of equals first."""
    found = []
    for s, column in enumerate(summary.columns):
        good = np.where(summary.ranked[:, s], summary.sign * summary.mean[:, s], -np.inf)
        order = np.argsort(-good, kind="stable")[:most]
        for rank, i in enumerate(order[np.isfinite(good[order])], 1):
            found.append(
                {
                    "budget": column.budget,
                    "rank": rank,
                    "policy": summary.settings[i].text,
                    "params": dict(summary.settings[i].values),
                    summary.measure: float(summary.mean[i, s]),
                    "least": float(summary.low[i, s]),
                    "greatest": float(summary.high[i, s]),
                }
            )
    return found
