"""What policies reach, summed up over units and traces: rows, and the tables of `h2osim compare`.

The sample of a result on several traces is the trace, because units of one trace are not
independent: a number is first averaged over the units of each trace, and its interval is over
traces. On one trace no interval is possible, and the least and greatest unit stand in its place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from h2osim.report.best import mean_of_traces
from h2osim.report.frames import MEASURED, Record, budget_label, share_word, shown_budgets
from h2osim.report.layouts import Name, plain_table
from h2osim.report.ranking import competing, notes, ranks
from h2osim.report.statistics import can_tell, mean_interval, ties_with_best, what_intervals_say

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

_UNIT_WORDS = {"head": "heads", "group": "KV groups", "layer": "layers"}
#: What a row of a table may be, besides a policy.
BY = ("layer", "unit", "trace", "step")
#: Into how many spans the decode steps are cut.
_SPANS = 10
#: How wide the notes beside a table may be.
_NOTES = 24
Spread = Literal["beside", "below", "none"]
Noted = Literal["beside", "below"]


@dataclass(frozen=True)
class Cell:
    """A number of a policy at a budget: its mean, an interval over traces or the least and greatest
    unit, and whether it cannot be told from the best (None: not asked, or the traces are too few).
    """

    mean: float
    low: float
    high: float
    best: bool | None = None


def cells(values: xr.DataArray, racing: Sequence[bool], measure: str) -> list[list[Cell]]:
    """A cell for each policy and budget. Those ``racing`` are compared with the best of them.

    Recall has its arithmetic mean over traces, an error, which differs by factors from trace to
    trace, the geometric one.
    """
    over = [dim for dim in ("layer", "unit") if dim in values.dims]
    if "trace" not in values.dims:
        flat = values.transpose("policy", "budget", *over).values
        flat = flat.reshape(*flat.shape[:2], -1)
        return [[Cell(x.mean(), x.min(), x.max()) for x in row] for row in flat]
    geometric = measure != "recall"
    sample = values.mean(over).transpose("policy", "budget", "trace").values
    found: list[list[Cell]] = [[] for _ in sample]
    for b in range(sample.shape[1]):
        here = sample[:, b, ~np.isnan(sample[:, b]).any(axis=0)]
        rivals = {str(i): x for i, x in enumerate(here) if racing[i]}
        tell = can_tell(here.shape[1], len(rivals))
        best = (
            ties_with_best(rivals, geometric=geometric, largest=measure == "recall") if tell else ()
        )
        for i, x in enumerate(here):
            if not len(x):
                found[i].append(Cell(np.nan, np.nan, np.nan))
                continue
            one = mean_interval(x, geometric=geometric)
            mark = str(i) in best if tell and racing[i] else None
            found[i].append(Cell(one.mean, one.low, one.high, mark))
    return found


def _means(values: xr.DataArray, measure: str) -> np.ndarray:
    """The means of :func:`cells` alone, [policy, budget]."""
    over_units = values.mean([dim for dim in ("layer", "unit") if dim in values.dims])
    if "trace" not in values.dims:
        return over_units.transpose("policy", "budget").values
    return mean_of_traces(over_units.transpose("policy", "budget", "trace").values, measure)


def groups(results: xr.Dataset, by: str, measure: str) -> Iterator[tuple[str, xr.DataArray]]:
    """A measure of each layer, unit, trace or span of decode steps, with a word for it."""
    if by == "layer":
        for i, layer in enumerate(results["layer"].values):
            yield f"layer {layer}", results[measure].isel(layer=[i])
    elif by == "unit":
        for i, layer in enumerate(results["layer"].values):
            for u in range(results.sizes["unit"]):
                yield f"layer {layer}, unit {u}", results[measure].isel(layer=[i], unit=[u])
    elif by == "trace":
        for i, name in enumerate(results["trace"].values):
            yield str(name), results[measure].isel(trace=i)
    else:
        name = "step_recall" if measure == "recall" else f"{measure}_step"
        steps = results["step"].values
        for part in np.array_split(np.arange(len(steps)), min(_SPANS, len(steps))):
            word = f"{steps[part[0]]}–{steps[part[-1]]}"
            yield word, results[name].isel(step=part).mean("step")


def by_records(results: xr.Dataset, by: str, measure: str) -> list[Record]:
    """Records {by, policy, budget, the measure, low, high}: of each layer, unit, trace or span.

    low and high are the interval over traces, or, on one trace, the least and greatest unit.
    """
    racing = competing(results)
    names, budgets = results["policy"].values.tolist(), results["budget"].values.tolist()
    found = []
    for word, values in groups(results, by, measure):
        for name, row in zip(names, cells(values, racing, measure), strict=True):
            for budget, one in zip(budgets, row, strict=True):
                ends = {"low": one.low, "high": one.high}
                found.append({by: word, "policy": name, "budget": budget, measure: one.mean} | ends)
    return found


# --- tables ---------------------------------------------------------------------------------


def comparison_title(results: xr.Dataset) -> str:
    """One line on what was compared: traces, length, prompt and units."""
    units = results.sizes["layer"] * results.sizes["unit"]
    word = _UNIT_WORDS.get(str(results.attrs.get("share", "group")), "units")
    word = word.removesuffix("s") if units == 1 else word
    if "trace" not in results.dims:
        prompt = int(results.attrs["prompt_len"])
        tokens = "token" if prompt == 1 else "tokens"
        head = f"{results.attrs['trace']}: {results.attrs['n']} tokens, prompt of {prompt} {tokens}"
        return f"{head}, {units} {word}"
    n, p = (_range(results[name].values) for name in ("n", "prompt_len"))
    traces = traces_named(results["trace"].values.tolist())
    return f"{traces}: {n} tokens, prompts of {p}, {units} {word} each"


def traces_named(names: Sequence[str]) -> str:
    """Several traces in a few words: how many, and their names where there is room."""
    if len(names) == 1:
        return str(names[0])
    listed = ", ".join(map(str, names))
    count = f"{len(names)} traces"
    return f"{count} ({listed})" if len(names) < 5 and len(listed) < 60 else count


def _range(values: np.ndarray) -> str:
    return "–".join(map(str, dict.fromkeys((values.min(), values.max()))))


def comparison_table(
    results: xr.Dataset,
    title: str | None = None,
    asked: Mapping[int, float] | None = None,
    spread: Spread = "beside",
    measure: str = "recall",
    ranked_by: str = "recall",
    noted: Noted = "beside",
) -> Table:
    """Rank the policies: a row a policy, a column a budget; ``measure`` is what the cells hold.

    A cell is the mean over all units, then the least and the greatest of them; on several traces
    the mean over the traces with its interval. The rank is by the mean of ``ranked_by`` over the
    budgets shown, equals share one; policies that do not compete (:mod:`h2osim.report.ranking`)
    stand in their place without a number. ``asked`` maps budgets in tokens to the fractions they
    were asked for as: 0.05 of 768 tokens comes to 38, which would otherwise be labelled 4.95 %.
    ``spread`` says where the least and the greatest stand: a narrow screen wants them below the
    mean, or not at all. ``noted``: notes on a policy stand in its row or below the table.
    """
    part = results.isel(budget=shown_budgets(results))
    racing, keys = competing(part), rank_keys(part, ranked_by)
    texts = [str(text) for text in part["policy"].values]
    beside = notes(part)
    rows = cells(part[measure], racing, measure)
    if "optimum" in part and measure == ranked_by == "recall":
        offline = part["optimum"].expand_dims("policy")
        rows += cells(offline, [False], "recall")
        keys = np.append(keys, -_means(offline, "recall").mean())
        texts, beside, racing = [*texts, "optimum"], [*beside, "offline"], [*racing, False]

    caption = caption_of(results, spread, measure, ranked_by)
    if noted == "below":
        caption = "\n".join((*_footnotes(texts, beside), caption))
    table = plain_table(title, caption)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("policy", min_width=9)
    for label in headings(part, asked, spread == "beside"):
        table.add_column(label, justify="right", no_wrap=True)
    with_notes = any(beside) and noted == "beside"
    if with_notes:
        table.add_column("notes", max_width=_NOTES)

    places, digits = ranks(keys.tolist(), racing), 0 if measure == "recall" else 3
    for i in np.argsort(keys, kind="stable"):  # equals in the order they were asked for in
        numbers = (cell_text(one, spread, digits, "trace" in part.dims) for one in rows[i])
        note = [beside[i]] if with_notes else []
        table.add_row(places[i], Name(texts[i]), *numbers, *note)
    return table


def rank_keys(part: xr.Dataset, ranked_by: str) -> np.ndarray:
    """What policies are ranked by, the least first: the mean over budgets, recall negated."""
    return _means(part[ranked_by], ranked_by).mean(axis=1) * (-1 if ranked_by == "recall" else 1)


def _footnotes(texts: Sequence[str], beside: Sequence[str]) -> list[str]:
    """A line for each note, with all the policies that it is about."""
    about: dict[str, list[str]] = {}
    for text, note in zip(texts, beside, strict=True):
        if note:
            about.setdefault(note, []).append(text)
    return [f"{', '.join(some)}: {note}" for note, some in about.items()]


def caption_of(
    results: xr.Dataset, spread: Spread, measure: str, ranked_by: str, by: str | None = None
) -> str:
    """What the numbers of a table are, and what its order means."""
    name, sizes = MEASURED[measure], results.sizes
    if "trace" in results.dims and by != "trace":
        racing = sum(competing(results.isel(budget=shown_budgets(results))))
        mean = "mean" if measure == "recall" else "geometric mean"
        says = what_intervals_say(sizes["trace"], racing, "trace")
        caption = f"{name}: {mean} over the traces of their units' means; {says}"
    elif sizes["layer"] * sizes["unit"] == 1 or by == "unit":
        caption = name
    else:
        caption = f"{name}: mean over the units" + (", then least–greatest" * (spread != "none"))
    if "trace" not in results.dims:
        caption += f"; {what_intervals_say(1, 1, 'trace')}"
    if spread == "none":
        caption += " (a wider screen shows the spread)"
    shown = len(shown_budgets(results))
    if shown < sizes["budget"]:
        caption += f"; {shown} of {sizes['budget']} budgets shown"
    order = "the largest first" if ranked_by == "recall" else "the least first"
    caption += f"; ranked by {'this' if ranked_by == measure else MEASURED[ranked_by]}, "
    caption += f"mean over the budgets, {order}"
    return caption


def headings(part: xr.Dataset, asked: Mapping[int, float] | None, beside: bool) -> Iterator[str]:
    """The word for each budget: tokens and their share of the trace, or what of it is common."""
    several = "trace" in part.dims
    splits = part["split"].values if "split" in part.coords else ["equal"] * part.sizes["budget"]
    for budget, split in zip(part["budget"].values.tolist(), splits, strict=True):
        if split != "equal":
            share = f"{100 * budget:.3g} %" if budget <= 1 and isinstance(budget, float) else ""
            yield f"{share or budget}{' ' if beside else chr(10)}{split}"
        elif isinstance(budget, float) and budget <= 1:
            yield share_word(budget, part.attrs)
        elif several and len(set(part["n"].values.tolist())) > 1:
            yield f"{budget:g}"
        else:
            n = int(part["n"].values[0]) if several else int(part.attrs["n"])
            share = budget_label(int(budget), n, asked)
            yield f"{budget:g} ({share})" if beside else f"{budget:g}\n{share}"


def cell_text(one: Cell, spread: Spread, digits: int, several: bool) -> str:
    """Mean and spread: three decimals, or so many significant ``digits``, one less of the ends."""
    places = (digits, max(0, digits - 1), max(0, digits - 1))
    mean, low, high = (
        f"{v:.{d}g}" if d and not np.isnan(v) else short(v)
        for v, d in zip((one.mean, one.low, one.high), places, strict=True)
    )
    mean += "*" if one.best else ""
    if spread == "none" or np.isnan(one.low) or (one.low == one.high and not several):
        return mean
    ends = f"[{low}, {high}]" if several else f"{low}–{high}"
    return f"{mean}\n{ends}" if spread == "below" else f"{mean}  {ends}"


def short(value: float) -> str:
    """A share in three decimals, without the leading 0."""
    return "–" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def one_pass_line(results: xr.Dataset) -> str:
    """Which policies had all their budgets from one pass, and which ran budget by budget."""
    ways = {True: "all budgets in one pass", False: "budget by budget"}
    parts = []
    for flag, words in ways.items():
        names = results["policy"].values[results["one_pass"].values == flag]
        if len(names):
            parts.append(f"{words}: {', '.join(map(str, names))}")
    return "; ".join(parts)
