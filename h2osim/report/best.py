"""Summary of a sweep: the best settings at some budgets."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.replays.budgets import budget_tokens
from h2osim.replays.facts import params_of
from h2osim.report.frames import MEASURED, MOST_COLUMNS, SHOWN_SHARES, share_word
from h2osim.report.ranking import filled
from h2osim.report.statistics import can_tell, mean_interval, ties_with_best

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True)
class Column:
    """A budget that is shown: its label, and its index in each unit (-1: the unit has none).

    ``split`` is empty where all units have the same, else the name of the budgets by unit.
    """

    label: str
    budget: int | float
    at: np.ndarray
    tokens: np.ndarray
    split: str = ""


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
        wanted = [np.array([budget_tokens(s, int(m), 0) for m in n]) for s in SHOWN_SHARES]
        chosen = [np.abs(tokens - w[:, None]).argmin(axis=1) for w in wanted]
    found: dict[bytes, Column] = {}
    splits = results["split"].values if "split" in results.coords else None
    for i, at in enumerate(chosen):
        here = tokens[np.arange(len(n)), at]
        if splits is not None and splits[at[0]] != "equal":
            name, budget = str(splits[at[0]]), budgets[at[0]].item()
            label = f"{100 * budget:.3g} %" if isinstance(budget, float) else f"{budget}"
            found[at.tobytes()] = Column(f"{label} {name}", budget, at, here, name)
            continue
        whole = bool((here == here[0]).all())
        if whole:
            label = f"{here[0]}" + (f" ({100 * here[0] / one:.3g} %)" if one else "")
        else:
            every = len(budgets) <= MOST_COLUMNS
            share = budgets[i] if every else SHOWN_SHARES[i]
            label = share_word(share, results.attrs if every else {})
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

    ``measure`` is its variable; ``of_traces`` [configurations, columns, traces] its mean over each
    trace's units, NaN where the trace has no such budget, and ``mean`` the mean of those (of an
    error the geometric one). ``over`` is bool: a unit holds more than the budget somewhere,
    or a window fills it.
    """

    columns: list[Column]
    settings: list[Setting]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    over: np.ndarray
    of_traces: np.ndarray
    traces: list[str]
    measure: str = "recall"

    @property
    def sign(self) -> int:
        """1 where the largest is best, -1 where the least is."""
        return 1 if self.measure == "recall" else -1

    @cached_property
    def ranked(self) -> np.ndarray:
        """Which settings are ranked: bool [configurations, columns].

        Those that run online, keep to the budget and choose what they keep; where there is none,
        those that run online; else all.
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
    names = list(dict.fromkeys(map(str, results["trace"].values)))
    owner = np.array([names.index(str(name)) for name in results["trace"].values])
    total = np.zeros((shape[0], len(columns), len(names)))
    count = np.zeros_like(total)
    low, high = (np.full(total.shape[:2], end) for end in (np.inf, -np.inf))
    over = np.zeros(low.shape, bool)
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
            for o in np.unique(owner[there][mine]):
                of = owner[there][mine] == o
                total[here, s, o] += np.where(known, values, 0)[:, of].sum(axis=1)
                count[here, s, o] += known[:, of].sum(axis=1)
            low[here, s] = np.fmin(low[here, s], np.where(known, values, np.inf).min(axis=1))
            high[here, s] = np.fmax(high[here, s], np.where(known, values, -np.inf).max(axis=1))
            over[here, s] |= (held[:, mine, at] > column.tokens[there][mine]).any(axis=1)
    with np.errstate(invalid="ignore"):
        of_traces = total / count
    mean = mean_of_traces(of_traces, measure)
    given = zip(results["windows"].values, results["params"].values, strict=True)
    for i, (windows, params) in enumerate(given):
        for s, column in enumerate(columns):
            room = np.where(column.at >= 0, column.tokens, 0)
            over[i, s] |= any(at.any() for at in filled(windows, params, room).values())
    facts = (results[name].values.tolist() for name in ("policy", "rule", "params", "kind"))
    settings = [
        Setting(text, rule, params_of(params), kind == "online")
        for text, rule, params, kind in zip(*facts, strict=True)
    ]
    return Summary(columns, settings, mean, low, high, over, of_traces, names, measure)


def mean_of_traces(values: np.ndarray, measure: str) -> np.ndarray:
    """The mean over traces, the last axis, of those that are not NaN.

    Of recall the arithmetic mean; of an error, which differs by factors, the geometric one.
    """
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        if measure == "recall" or values.shape[-1] == 1:
            return np.where(known, values, 0).sum(axis=-1) / known.sum(axis=-1)
        return np.exp(np.where(known, np.log(values), 0).sum(axis=-1) / known.sum(axis=-1))


def best_records(summary: Summary, most: int, by_trace: bool = False) -> list[dict[str, Any]]:
    """The best settings of each column, the first of equals first.

    ``least`` and ``greatest`` are those of the units. On several traces ``low`` and ``high`` are
    the interval of the mean (None with one), and ``best`` says whether a setting cannot be told
    from the best (None where the traces are too few to tell any). ``by_trace``: instead a record
    for each trace, with its mean over the units.
    """
    found = []
    several = len(summary.traces) > 1
    geometric = summary.measure != "recall"
    for s, column in enumerate(summary.columns):
        good = np.where(summary.ranked[:, s], summary.sign * summary.mean[:, s], -np.inf)
        order = np.argsort(-good, kind="stable")[:most]
        sample = summary.of_traces[:, s][:, ~np.isnan(summary.of_traces[:, s]).any(axis=0)]
        racing = {str(i): sample[i] for i in np.flatnonzero(np.isfinite(good))}
        ties = None
        if several and can_tell(sample.shape[1], len(racing)):
            ties = ties_with_best(racing, geometric=geometric, largest=summary.sign > 0)
        for i in order[np.isfinite(good[order])]:
            record = {
                "budget": column.budget,
                **({"split": column.split} if column.split else {}),
                "rank": 1 + int((good > good[i]).sum()),
                "policy": summary.settings[i].text,
                "params": dict(summary.settings[i].values),
            }
            if by_trace:
                for name, value in zip(summary.traces, summary.of_traces[i, s], strict=True):
                    found.append(record | {"trace": name, summary.measure: float(value)})
                continue
            record |= {
                summary.measure: float(summary.mean[i, s]),
                "least": float(summary.low[i, s]),
                "greatest": float(summary.high[i, s]),
            }
            if several:
                one = mean_interval(sample[i], geometric=geometric)
                ends = (None if np.isnan(end) else end for end in (one.low, one.high))
                record |= dict(zip(("low", "high"), ends, strict=True))
                record["best"] = None if ties is None else str(i) in ties
            found.append(record)
    return found
