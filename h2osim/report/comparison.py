"""Tables and records of a comparison: policies ranked, against the optimum, at a target recall."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.text import parse

if TYPE_CHECKING:
    import xarray as xr
    from rich.table import Table

    from h2osim.traces.trace import Trace

_UNIT_WORDS = {"head": "heads", "group": "KV groups", "layer": "layers"}
# A table with more budgets than this shows those nearest to the shares below it.
_MOST_COLUMNS = 8
_SHOWN_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def comparison_title(trace: Trace, results: xr.Dataset) -> str:
    """One line on what was compared: trace, length, prompt and units."""
    share = str(results.attrs.get("share", "group"))
    units = results.sizes["layer"] * results.sizes["unit"]
    word = _UNIT_WORDS.get(share, "units")
    word = word.removesuffix("s") if units == 1 else word
    prompt = int(results.attrs["prompt_len"])
    tokens = "token" if prompt == 1 else "tokens"
    return f"{trace.name}: {trace.n} tokens, prompt of {prompt} {tokens}, {units} {word}"


def comparison_records(results: xr.Dataset) -> list[dict[str, Any]]:
    """Flatten a replay into records {policy, params, layer, unit, budget, recall}.

    ``params`` maps every parameter of the policy to its value, defaults included; ``budget`` is in
    tokens. After :func:`with_optimum` optimum, regret and closed are there too.
    """
    columns = ("policy", "params", "layer", "unit", "budget", "recall", *_BESIDE_OPTIMUM)
    return [{name: row[name] for name in columns if name in row} for row in result_rows(results)]


def result_rows(results: xr.Dataset) -> Iterator[dict[str, Any]]:
    """One record a policy, layer, unit and budget, with everything that is known of it."""
    recall = results["recall"].transpose("policy", "layer", "unit", "budget")
    held = results["held"].transpose("policy", "layer", "unit", "budget").values
    layers, units = recall["layer"].values, recall["unit"].values
    names = [name for name in _BESIDE_OPTIMUM if name in results]
    order = ("policy", "layer", "unit", "budget")
    beside = {name: results[name].transpose(*order, missing_dims="ignore") for name in names}
    budgets, fractions = recall["budget"].values, recall["fraction"].values
    for i, text in enumerate(recall["policy"].values):
        params = dict(parse(str(text)).values)
        for (j, u, b), value in np.ndenumerate(recall.values[i]):
            yield {
                "policy": str(text),
                "params": params,
                "layer": int(layers[j]),
                "unit": int(units[u]),
                "budget": int(budgets[b]),
                "fraction": float(fractions[b]),
                # Nothing is decoded where the prompt is the whole trace.
                "recall": None if np.isnan(value) else float(value),
                "held": int(held[i, j, u, b]),
            } | {
                name: float(beside[name].values[(i, j, u, b)[4 - beside[name].ndim :]])
                for name in beside
            }


_BESIDE_OPTIMUM = ("optimum", "regret", "closed")


def with_optimum(results: xr.Dataset, optimum: xr.Dataset, streaming: xr.DataArray) -> xr.Dataset:
    """A replay with the offline optimum beside it.

    ``optimum[layer, unit, budget]``; ``regret[policy, …]`` = optimum - recall; and
    ``closed[policy, …]`` = (recall - streaming) / (optimum - streaming), the share of the gap
    between StreamingLLM and the optimum that a policy closes (NaN where there is no gap).
    """
    best = optimum["recall"]
    gap = best - streaming
    closed = ((results["recall"] - streaming) / gap).where(gap > 0)
    return results.assign(
        optimum=best.drop_vars("policy", errors="ignore"),
        regret=best - results["recall"],
        closed=closed.drop_vars("policy", errors="ignore").assign_coords(policy=results["policy"]),
    )


def regret_table(results: xr.Dataset) -> Table:
    """A row a policy, a column a budget: regret, and the share of StreamingLLM's gap closed."""
    from rich.table import Table

    shown = results.isel(budget=shown_budgets(results))
    best = shown["optimum"].mean(("layer", "unit")).values
    regret = shown["regret"].mean(("layer", "unit")).transpose("policy", "budget").values
    table = Table(
        caption="below the offline optimum by; in brackets the share of the gap between "
        "StreamingLLM and the optimum that is closed (means over the units)",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("policy", overflow="fold", min_width=9)
    for budget, recall in zip(shown["budget"].values, best, strict=True):
        table.add_column(f"{budget}: optimum {_short(recall)}", justify="right", no_wrap=True)
    closed = shown["closed"].mean(("layer", "unit")).transpose("policy", "budget").values
    for i in np.argsort(regret.mean(1), kind="stable"):
        cells = [
            f"{r:.3f} ({'–' if np.isnan(c) else f'{100 * c:.0f} %'})"
            for r, c in zip(regret[i], closed[i], strict=True)
        ]
        table.add_row(str(shown["policy"].values[i]), *cells)
    return table


def comparison_table(
    results: xr.Dataset,
    title: str | None = None,
    asked: Mapping[int, float] | None = None,
    spread: Literal["beside", "below", "none"] = "beside",
) -> Table:
    """Rank the policies by recall: a row a policy, a column a budget.

    A cell is the mean over all units, then the least and the greatest of them. The rank is by the
    mean over the budgets shown; oracles and bounds stand in their place without a number, because
    nothing that decodes online can be them. ``asked`` maps budgets in tokens to the fractions they
    were asked for as: 0.05 of 768 tokens comes to 38, which would otherwise be labelled 4.95 %.
    ``spread`` says where the least and the greatest stand: a narrow screen wants them below the
    mean, or not at all.
    """
    from rich.table import Table

    shown = shown_budgets(results)
    part = results.isel(budget=shown)
    recall = part["recall"].transpose("policy", "budget", "layer", "unit").values
    recall = recall.reshape(*recall.shape[:2], -1)
    texts = [str(text) for text in part["policy"].values]
    configured = [parse(text) for text in texts]
    notes = [_notes(part.isel(policy=i), c) for i, c in enumerate(configured)]

    caption = "recall of the attention mass: mean over the units"
    caption += " (a wider screen shows the spread)" if spread == "none" else ", then least–greatest"
    if len(shown) < results.sizes["budget"]:
        caption += f"; {len(shown)} of {results.sizes['budget']} budgets shown"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("policy", overflow="fold", min_width=9)
    n = int(results.attrs["n"])
    for budget in part["budget"].values.tolist():
        share = budget_label(budget, n, asked)
        label = f"{budget} ({share})" if spread == "beside" else f"{budget}\n{share}"
        table.add_column(label, justify="right", no_wrap=True)
    if any(notes) or "optimum" in part:
        table.add_column("notes")

    ordinary = [not beyond(c.policy) for c in configured]
    entries = list(zip(recall, texts, notes, ordinary, strict=True))
    if "optimum" in part:
        best = part["optimum"].transpose("budget", "layer", "unit").values
        entries.append((best.reshape(len(best), -1), "optimum", "offline", False))
    number = 0
    # Equal recall keeps the order in which the policies were asked for.
    for values, text, note, counts in sorted(entries, key=lambda entry: -entry[0].mean()):
        number += counts
        row = [str(number) if counts else "–", text, *(_cell(units, spread) for units in values)]
        table.add_row(*row, *([note] if len(table.columns) > len(row) else []))
    return table


def one_pass_line(results: xr.Dataset) -> str:
    """Which policies had all their budgets from one pass, and which ran budget by budget."""
    ways = {True: "all budgets in one pass", False: "budget by budget"}
    said = []
    for flag, words in ways.items():
        names = results["policy"].values[results["one_pass"].values == flag]
        if len(names):
            said.append(f"{words}: {', '.join(map(str, names))}")
    return "; ".join(said)


def target_records(reached: xr.Dataset) -> list[dict[str, Any]]:
    """Records {policy, params, layer, unit, target, budget}; layer and unit None for the mean.

    ``budget`` is in tokens, None where no budget replayed reaches the target.
    """
    found = []
    for text in map(str, reached["policy"].values):
        one = reached.sel(policy=text)
        common = {"policy": text, "params": dict(parse(text).values)}
        cells: list[tuple[int | None, int | None, int]] = [(None, None, one["overall"].item())]
        cells += [
            (int(layer), int(unit), one["budget"].sel(layer=layer, unit=unit).item())
            for layer in one["layer"].values
            for unit in one["unit"].values
        ]
        for layer, unit, budget in cells:
            place = {"layer": layer, "unit": unit, "target": reached.attrs["target_recall"]}
            found.append(common | place | {"budget": int(budget) or None})
    return found


def target_table(reached: xr.Dataset, title: str | None = None) -> Table:
    """A row a policy: the smallest budget that reaches the recall, overall and for each layer."""
    from rich.table import Table

    n, target = int(reached.attrs["n"]), reached.attrs["target_recall"]
    caption = f"smallest budget whose recall is at least {target:g}, in tokens"
    if reached.sizes["unit"] > 1:
        caption += "; of a layer: least–greatest over its units"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("policy", overflow="fold", min_width=9)
    table.add_column("overall", justify="right", no_wrap=True)
    for layer in reached["layer"].values:
        table.add_column(f"layer {layer}", justify="right", no_wrap=True)
    overall = reached["overall"].values
    for i in sorted(range(len(overall)), key=lambda i: (overall[i] == 0, overall[i])):
        share = f" ({100 * overall[i] / n:.3g} %)" if overall[i] else ""
        cells = []
        for budgets in reached["budget"].isel(policy=i).transpose("layer", "unit").values:
            ends = dict.fromkeys((budgets.min(), budgets.max()))
            cells.append("–".join("never" if not b else str(b) for b in ends))
        name = str(reached["policy"].values[i])
        table.add_row(name, f"{overall[i] or 'never'}{share}", *cells)
    return table


def _cell(values: np.ndarray, spread: str) -> str:
    mean, low, high = (_short(v) for v in (values.mean(), values.min(), values.max()))
    if values.size == 1 or spread == "none":
        return mean
    return f"{mean}\n{low}–{high}" if spread == "below" else f"{mean}  {low}–{high}"


def _short(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}".removeprefix("0")


def budget_label(budget: int, n: int, asked: Mapping[int, float] | None) -> str:
    """The share of the trace that a budget is: as asked for where known, else what it comes to."""
    share = (asked or {}).get(budget, budget / n)
    return f"{100 * share:.3g} %"


def beyond(policy: Policy) -> str:
    """What a policy is that cannot run online: a bound, an oracle, or nothing of the kind."""
    return "bound" if policy.readmits else "oracle" if policy.oracle else ""


def _notes(one: xr.Dataset, configured: Configured) -> str:
    words = [beyond(configured.policy)]
    held = one["held"].transpose("budget", "layer", "unit").values
    over = held.reshape(len(held), -1).max(axis=1) / one["budget"].values
    worst = int(over.argmax())
    if over[worst] > 1:
        words.append(f"holds up to {held[worst].max()} of {int(one['budget'].values[worst])}")
    return ", ".join(filter(None, words))


def shown_budgets(results: xr.Dataset) -> list[int]:
    """Which budgets a table has room for, by their places."""
    fractions = results["fraction"].values
    if len(fractions) <= _MOST_COLUMNS:
        return list(range(len(fractions)))
    return sorted({int(np.abs(fractions - share).argmin()) for share in _SHOWN_SHARES})
