"""Results as data: rows and records from Datasets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.replays.facts import params_of
from h2osim.replays.results import ERRORS, FORMS, describe, dims_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

Record = dict[str, Any]

_BESIDE_OPTIMUM = ("optimum", "streaming", "regret", "closed")
#: What policies may be ranked by, and how it is called; recall is best large, the errors small.
MEASURED = {
    "output_error": "output error",
    "attention_error": "attention error",
    "residual_error": "residual error",
    "recall": "recall of the attention mass",
}


def frame(result: xr.Dataset) -> pd.DataFrame:
    """A result as a table that stands on its own: a row for each place in its main variable.

    Columns are the dimensions, the variables, what is known beside them, and the attributes, the
    same in every row. Left out is what has an entry for each token or step. ``params`` is a
    mapping.
    """
    flat = result.drop_dims(["token", "step", "decode_step"], errors="ignore")
    form = result.attrs["form"]
    dims = dims_of(form, next(iter(FORMS[form])), "trace" in result.dims)
    table = flat.to_dataframe(dim_order=list(dims)).reset_index()
    beside = [str(name) for name in flat.coords if name not in dims and name != "params"]
    first = [name for name in ("policy", "params", *dims[1:]) if name in table]
    table = table[list(dict.fromkeys([*dims[:1], *first, *map(str, flat.data_vars), *beside]))]
    if "params" in table:
        known = {text: params_of(text) for text in map(str, result["params"].values)}
        table["params"] = [known[str(text)] for text in table["params"]]
    more = {name: value for name, value in result.attrs.items() if name not in table}
    return table.assign(**more)


def records(result: xr.Dataset, columns: Iterable[str] | None = None) -> list[Record]:
    """The rows of :func:`frame` as plain values, some ``columns`` only; NaN becomes None."""
    table = frame(result)
    if columns is not None:
        left_out = set() if "trace" in result.dims else {"trace"}
        table = table[[name for name in columns if name in table and name not in left_out]]
    rows = table.to_dict("records")
    return [{str(name): _plain(value) for name, value in row.items()} for row in rows]


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def flat(value: object) -> object:
    """A value as one cell: a mapping as ``recent=32,scores=full``, a list joined by commas."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={inner}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(inner) for inner in value)
    return value


def comparison_records(replayed: xr.Dataset) -> list[Record]:
    """A replay as records {policy, params, layer, unit, budget, recall}.

    ``params`` maps every parameter of the policy to its value, defaults included; ``budget`` is in
    tokens, or, of several traces of other lengths, as asked for with ``tokens`` beside it. After
    :func:`with_optimum` optimum, regret and closed are there too, and what was
    measured beside recall in any case.
    """
    columns = (
        "trace", "policy", "params", "layer", "unit", "budget", "split", "slots", "tokens",
        "recall", *_BESIDE_OPTIMUM, *ERRORS,
    )  # fmt: skip
    return records(replayed, columns)


def with_optimum(replayed: xr.Dataset, optimum: xr.Dataset, streaming: xr.DataArray) -> xr.Dataset:
    """A replay with the offline optimum beside it.

    ``optimum[layer, unit, budget]``; ``streaming``, the same of StreamingLLM; ``regret[policy, …]``
    = optimum - recall; and ``closed[policy, …]`` = (recall - streaming) / (optimum - streaming),
    the share of the gap between StreamingLLM and the optimum that a policy closes (NaN where there
    is no gap).
    """
    recall = replayed["recall"]
    best, base = (one.reset_coords(drop=True) for one in (optimum["recall"], streaming))
    gap = best - base
    found = replayed.assign(
        optimum=best,
        streaming=base,
        regret=(best - recall).transpose(*recall.dims),
        closed=((recall - base) / gap).where(gap > 0).transpose(*recall.dims),
    )
    return describe(found)


def target_records(reached: xr.Dataset) -> list[Record]:
    """Records {trace, policy, params, layer, unit, target, budget}; layer, unit None for the mean.

    ``budget`` is in tokens, None where no budget replayed reaches the target; ``trace`` is there
    where there are several.
    """
    found = []
    seen = None
    columns = ("trace", "policy", "params", "layer", "unit", "least_budget", "least_budget_overall")
    for row in records(reached, columns):
        place = {"layer": row.pop("layer"), "unit": row.pop("unit")}
        least, overall = (row.pop(name) for name in columns[-2:])
        target = {"target": reached.attrs["target_recall"]}
        if row != seen:  # the first row of a policy: the mean goes before it
            found.append(row | {"layer": None, "unit": None} | target | {"budget": overall or None})
            seen = row
        found.append(row | place | target | {"budget": least or None})
    return found


def optimum_records(found: xr.Dataset) -> list[Record]:
    """Records {layer, unit, budget, recall, lower, upper, gap}; budgets in tokens.

    The output error of the schedules is there too where it was measured.
    """
    columns = (
        "trace", "layer", "unit", "budget", "split", "slots", "tokens", "recall", "lower", "upper",
        "kept", "bound", *ERRORS,
    )  # fmt: skip
    rows = records(found, columns)
    for row in rows:
        kept, bound = row.pop("kept"), row.pop("bound")
        row["gap"] = (bound - kept) / bound if bound else 0.0
    return rows


def allocation_records(found: xr.Dataset) -> list[Record]:
    """Records {policy, split, budget, layer, unit, slots, loss, overall}."""
    columns = ("trace", "policy", "split", "budget", "layer", "unit", "slots", "loss", "overall")
    return records(found, columns)


# --- what tables and figures choose from ----------------------------------------------------

#: A table with more budgets than this shows those nearest to the shares below it.
MOST_COLUMNS = 8
SHOWN_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def shown_budgets(replayed: xr.Dataset) -> list[int]:
    """Which budgets a table has room for, by their places."""
    fractions = replayed["fraction"].values
    if fractions.ndim > 1:  # of several traces: the shortest has the fewest budgets
        fractions = fractions[replayed["n"].values.argmin()]
    if len(fractions) <= MOST_COLUMNS:
        return list(range(len(fractions)))
    return sorted({int(np.abs(fractions - share).argmin()) for share in SHOWN_SHARES})


def share_word(share: float, attributes: Mapping[Any, Any]) -> str:
    """A budget that is a share, in percent; a result's attributes say where it is the prompt's."""
    return f"{100 * share:.3g} %" + (" of the prompt" * (attributes.get("budget_of") == "prompt"))


def tokens_of(replayed: xr.Dataset) -> xr.DataArray:
    """The budgets in tokens, of each trace and unit where they differ."""
    known = (name for name in ("slots", "tokens") if name in replayed.variables)
    return replayed[next(known, "budget")]


def budget_label(budget: int, n: int, asked: Mapping[int, float] | None) -> str:
    """The share of the trace that a budget is: as asked for where known, else what it comes to."""
    share = (asked or {}).get(budget, budget / n)
    return f"{100 * share:.3g} %"


def remark(kind: str) -> str:
    """What tables and legends say of a policy's kind: nothing of one that can run online."""
    return "" if kind == "online" else kind
