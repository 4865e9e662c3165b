"""What the page's scripts read: the contents as plain values, arrays packed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import h2osim
from h2osim.replays.results import RECALL, VARIABLES
from h2osim.report.comparison import cells, headings
from h2osim.report.figures.curves import lines_of
from h2osim.report.frames import comparison_records, optimum_records
from h2osim.report.page.gather import OPTIMUM, SPANS, Contents, over_time, prices
from h2osim.report.page.packing import packed, packed_text
from h2osim.report.ranking import competing

if TYPE_CHECKING:
    import xarray as xr

#: What each measure is called on the page.
WORDS = {"recall": "recall", "output_error": "output error"}


def page_data(found: Contents, command: str = "") -> dict[str, Any]:
    """All that the scripts read, ready for JSON."""
    results = found.results
    return {
        "h2osim": h2osim.__version__,
        "command": command,
        "optimum": OPTIMUM,
        "policies": results["policy"].values.tolist(),
        "schedules": found.schedules,
        "measures": {name: WORDS[name] for name in found.measures},
        "budgets": labels(results),
        "rasterBudgets": found.budgets,
        "layers": results["layer"].values.tolist(),
        "units": [
            {"layer": layer, "unit": unit, "heads": list(heads)}
            for (layer, unit), heads in zip(found.units, _heads(found), strict=True)
        ],
        "share": results.attrs["share"],
        "curves": [line for name in found.measures for line in _curves(found, name)],
        "traces": [_trace(found, i) for i in range(len(found.traces))],
        "files": {
            "policies.csv": packed_text(_csv(comparison_records(results))),
            "optimum.csv": packed_text(_csv(optimum_records(found.best))),
        },
    }


def labels(results: xr.Dataset) -> list[str]:
    """The budgets in words, each in one line."""
    return [" ".join(word.split("\n")) for word in headings(results, None, True)]


def _heads(found: Contents) -> list[Sequence[int]]:
    """The query heads of each unit in the rasters, as the model numbers them."""
    trace = found.traces[0]
    units = {(unit.layer, unit.index): unit for unit in trace.units(found.results.attrs["share"])}
    return [[int(trace.heads[h]) for h in units[place].heads] for place in found.units]


def _curves(found: Contents, measure: str) -> list[dict[str, Any]]:
    """Rows of the chart of a measure against the budget, the optimum's too."""
    results = found.results
    budgets = results["fraction"].values
    share = budgets.mean(axis=0) if budgets.ndim > 1 else budgets
    rows = []
    for line in lines_of(results, measure):
        for b, word in enumerate(labels(results)):
            numbers = line.mean[b], line.low[b], line.high[b]
            rows.append(_point(measure, line.label, word, share[b], *numbers))
    if measure == "recall":
        best = cells(found.best["recall"].expand_dims(policy=[OPTIMUM]), [False], "recall")[0]
        for b, word in enumerate(labels(results)):
            rows.append(_point(measure, OPTIMUM, word, share[b], best[b].mean, np.nan, np.nan))
    return rows


def _point(measure: str, policy: str, budget: str, *numbers: float) -> dict[str, Any]:
    words = {"measure": measure, "policy": policy, "budget": budget}
    return words | dict(zip(("share", "mean", "low", "high"), map(_short, numbers), strict=True))


def _trace(found: Contents, i: int) -> dict[str, Any]:
    """One trace: its text, where and when policies lost, prices, and its raster."""
    trace, (one, best) = found.traces[i], found.of_trace(i)
    where = {
        name: packed(one[name].transpose("policy", "budget", "layer", "unit").values)
        for name in found.measures
    }
    bound = best["recall"].transpose("budget", "layer", "unit").values
    raster = found.rasters[i]
    steps = one["step"].values[found.steps(i)]
    return {
        "name": str(trace.name),
        "n": trace.n,
        "promptLen": int(steps[0]) if len(steps) else 1,
        "tokens": (trace.manifest["tokens"] or {}).get("text"),
        "where": where,
        "best": packed(bound),
        "when": {name: packed(over_time(found, i, name)) for name in found.measures},
        "prices": packed(prices(found, i)),
        "spans": min(SPANS, len(steps)),
        "gone": packed(raster.gone),
        "lost": packed(raster.lost),
        "received": packed(raster.received),
    }


def _short(value: float) -> float | None:
    """Five digits, which is more than a chart shows; None for no number."""
    return None if np.isnan(value) else float(f"{value:.5g}")


def _csv(records: list[dict[str, Any]]) -> str:
    import pandas as pd

    from h2osim.report.frames import flat

    rows = [{name: flat(value) for name, value in record.items()} for record in records]
    text: str = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    return text


def answer(found: Contents) -> str:
    """What the page says first: which policy keeps most, and how near that is to the best."""
    results, middle = found.results, found.results.sizes["budget"] // 2
    racing = competing(results)
    means = np.array([line.mean for line in lines_of(results, "recall")])[:, middle]
    over = [dim for dim in found.best["recall"].dims if dim != "budget"]
    bound = float(found.best["recall"].mean(over)[middle])
    word = labels(results)[middle]
    if not any(racing):
        return f"At a budget of {word} the best schedule keeps {bound:.1%} of the attention."
    first = max((i for i in range(len(means)) if racing[i]), key=lambda i: means[i])
    return (
        f"At a budget of {word}, {results['policy'].values[first]} keeps {means[first]:.1%} of the "
        f"attention, the most of the {sum(racing)} policies compared; the best possible schedule "
        f"keeps {bound:.1%}."
    )


MEANINGS = {
    "recall": f"{VARIABLES['recall'].meaning} ({RECALL})",
    "output_error": VARIABLES["output_error"].meaning,
}
"""What the measures are, as everywhere else."""
