"""Results on several traces: one trace after the other, joined along the dimension ``trace``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.replays import results
from h2osim.replays.budgets import chosen_layers, decode_start
from h2osim.replays.plan import names_of
from h2osim.replays.unit_budgets import Budgets, Columns, columns_of
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace

if TYPE_CHECKING:
    import xarray

#: What stands where a trace has no such budget, step or token, by variable; else NaN.
_NOTHING = {"kept": -1, "held": 0, "evicted_at": -1, "bound": -1, "price_fixed": 0}


def traces_of(trace: Any) -> list[Trace]:
    """One trace or several as a list; UserError for what is none."""
    several = isinstance(trace, Iterable) and not isinstance(trace, str | bytes)
    found = list(trace) if several else [trace]
    for one in found:
        if not isinstance(one, Trace):
            raise UserError(
                f"trace: found {repr(one)[:60]}, expected a Trace, as h2osim.open_trace gives"
            )
    return found


def over_traces(
    one: Callable[[Trace, Progress | None], xarray.Dataset],
    traces: Sequence[Trace],
    budgets: Budgets | None = None,
    *,
    prompt_len: int | None = None,
    share: str,
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> xarray.Dataset:
    """What ``one`` gives for each trace, joined along a first dimension ``trace``.

    The traces are alike: the same layers, and as many units in each. Their lengths may differ.
    Where a budget then comes to other tokens in each, the budgets are labelled by the shares asked
    for, with ``tokens[trace, budget]`` beside them; a budget, step or token that a trace is too
    short for is NaN (-1 of integer masses and ``evicted_at``, 0 of ``held`` and prices).
    """
    check_alike(traces, share, layers)
    starts = [decode_start(trace, prompt_len) for trace in traces]
    columns = None
    if budgets is not None:
        units = [
            [unit for unit in trace.units(share) if unit.layer in chosen_layers(trace, layers)]
            for trace in traces
        ]
        columns = columns_of(budgets, traces, starts, units, share)
    found = []
    for i, trace in enumerate(traces):

        def part(done: float, total: float, word: str, i: int = i) -> None:
            if progress and total:
                progress(i + done / total, len(traces), f"{word}, {i + 1} of {len(traces)} traces")

        found.append(one(trace, part if progress else None))
    return _joined(found, names_of(traces), columns)


def check_alike(traces: Sequence[Trace], share: str, layers: Sequence[int] | None) -> None:
    """UserError naming the first trace that has other layers or units than the first one."""
    if not traces:
        raise UserError("no trace given; expected at least one")

    def shape(trace: Trace) -> tuple[list[int], int]:
        return chosen_layers(trace, layers), len({unit.index for unit in trace.units(share)})

    first = shape(traces[0])
    for trace in traces[1:]:
        if (other := shape(trace)) != first:
            words = [
                f"{name}: layers {', '.join(map(str, at))}, {units} units each"
                for name, (at, units) in ((traces[0].name, first), (trace.name, other))
            ]
            raise UserError(
                f"several traces: {'; '.join(words)}: expected the same layers and units, as in "
                "recordings of one model (--layers names some; h2osim sweep takes any traces)"
            )


def _joined(
    found: Sequence[xarray.Dataset],
    names: Sequence[str],
    columns: Columns | None,
) -> xarray.Dataset:
    import xarray

    first = found[0]
    form = first.attrs["form"]
    parts = []
    for i, one in enumerate(found):
        if columns is not None:
            there, places = columns.places(i)
            one = one.isel(budget=places).assign_coords(budget=there)
        beside = ["fraction", "token_text", *(["split"] if columns is not None else [])]
        extra = [name for name in beside if name in one.coords]
        parts.append(one.drop_vars(extra))
    fill: dict[str, Any] = {name: _NOTHING.get(name, np.nan) for name in map(str, first.data_vars)}
    joined = xarray.concat(
        parts, "trace", data_vars="all", coords="minimal", compat="override", join="outer",
        combine_attrs="drop", fill_value=fill,
    )  # fmt: skip
    data = {
        name: joined[name]
        .transpose("trace", *results.FORMS[form][name])
        .values.astype(first[name].dtype)
        for name in fill
    }
    coords: dict[str, Any] = {str(name): c.values for name, c in joined.coords.items()}
    if "engine" in coords:
        ways = zip(*(one["engine"].values for one in found), strict=True)
        coords["engine"] = [" and ".join(dict.fromkeys(map(str, way))) for way in ways]
    if "one_pass" in coords:
        coords["one_pass"] = np.all([one["one_pass"].values for one in found], axis=0)
    for name in results.OF_A_TRACE:
        coords[name] = [one.attrs[name] for one in found]
    coords["trace"] = list(names)
    if columns is not None:
        coords |= columns.coordinates()
        coords["tokens"] = np.stack([columns.means(i) for i in range(len(names))])
        coords["fraction"] = coords["tokens"] / np.array(coords["n"])[:, None]
    common = {k: v for k, v in first.attrs.items() if k not in results.OF_A_TRACE}
    common |= {} if columns is None else columns.facts
    return results.assemble(form, data, coords, common, several=True)
