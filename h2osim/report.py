"""Tables, plots and files made from a replay's Dataset.

Nothing heavy is imported before it is used: rich for tables, matplotlib for plots, pandas and
pyarrow for files. Files are written under a temporary name and then renamed, so that an
interrupted run leaves nothing half written.
"""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from h2osim.errors import UserError
from h2osim.policy import Configured, Policy, parse

if TYPE_CHECKING:
    import xarray as xr
    from rich.console import Group
    from rich.table import Table

    from h2osim.describe import TraceFacts
    from h2osim.synth import Generator
    from h2osim.trace import Trace

PLOT_SUFFIXES = (".png", ".pdf", ".svg")
SAVE_SUFFIXES = (".nc", ".parquet", ".csv", ".json")

_UNIT_WORDS = {"head": "heads", "group": "KV groups", "layer": "layers"}
# A table with more budgets than this shows those nearest to the shares below it.
_MOST_COLUMNS = 8
_SHOWN_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


# --- comparisons ----------------------------------------------------------------------------


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
    return [{name: row[name] for name in columns if name in row} for row in _rows(results)]


def _rows(results: xr.Dataset) -> Iterator[dict[str, Any]]:
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

    shown = results.isel(budget=_shown_budgets(results))
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

    shown = _shown_budgets(results)
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

    ordinary = [not _beyond(c.policy) for c in configured]
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


def _beyond(policy: Policy) -> str:
    """What a policy is that cannot run online: a bound, an oracle, or nothing of the kind."""
    return "bound" if policy.readmits else "oracle" if policy.oracle else ""


def _notes(one: xr.Dataset, configured: Configured) -> str:
    words = [_beyond(configured.policy)]
    held = one["held"].transpose("budget", "layer", "unit").values
    over = held.reshape(len(held), -1).max(axis=1) / one["budget"].values
    worst = int(over.argmax())
    if over[worst] > 1:
        words.append(f"holds up to {held[worst].max()} of {int(one['budget'].values[worst])}")
    return ", ".join(filter(None, words))


def _shown_budgets(results: xr.Dataset) -> list[int]:
    fractions = results["fraction"].values
    if len(fractions) <= _MOST_COLUMNS:
        return list(range(len(fractions)))
    return sorted({int(np.abs(fractions - share).argmin()) for share in _SHOWN_SHARES})


# --- plots ----------------------------------------------------------------------------------


def require_matplotlib() -> None:
    """UserError, naming the extra, where plots cannot be drawn."""
    _require("matplotlib", "plot", "drawing plots")


# Lightness, dashes and markers all differ, so that a line is told from its neighbours in grey; the
# three lengths have no common factor, so that combinations repeat late.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_DASHES = (
    "-", "--", "-.", ":", (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (9, 3, 2, 3))
)  # fmt: skip
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")


def plot_recall(
    results: xr.Dataset,
    path: str | os.PathLike,
    title: str | None = None,
    asked: Mapping[int, float] | None = None,
    log: bool = False,
) -> Path:
    """Draw recall against budget, one line a policy: the mean over the units.

    ``log`` gives the budgets a logarithmic axis; ``asked`` is as in :func:`comparison_table`. The
    file's ending chooses the format.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    target = Path(path)
    budgets, n = results["budget"].values.tolist(), int(results.attrs["n"])
    mean = results["recall"].mean(("layer", "unit")).transpose("policy", "budget").values
    few = len(budgets) <= 20
    figure = Figure(figsize=(8, 5) if few else (11, 5), layout="constrained")
    # Whole curves are drawn twice: small budgets need the logarithmic axis, large ones the other.
    panels = figure.subplots(1, 1 if few else 2, sharey=True, squeeze=False)[0]
    axes = panels[-1]
    # The legend stands in the order of the lines at the smallest budget, where they differ most.
    for i in sorted(range(len(mean)), key=lambda i: -mean[i][0]):
        text = str(results["policy"].values[i])
        policy = parse(text).policy
        remarks = [_beyond(policy)]
        if bool((results["held"].isel(policy=i) > results["budget"]).any()):
            remarks.append("holds more than the budget")
        remark = ", ".join(filter(None, remarks))
        for panel in panels:
            panel.plot(
                budgets,
                mean[i],
                color=_COLOURS[i % len(_COLOURS)],
                linestyle=_DASHES[i % len(_DASHES)],
                marker=_MARKERS[i % len(_MARKERS)] if few else None,
                markersize=5,
                linewidth=1.0 if _beyond(policy) else 1.6,
                label=f"{text} ({remark})" if remark else text,
            )
    if "optimum" in results:
        best = results["optimum"].mean(("layer", "unit")).values
        for panel in panels:
            panel.plot(budgets, best, color="0.35", linewidth=0.8, label="offline optimum")
    if log or not few:
        axes.set_xscale("log")
    if len(budgets) <= 10:
        axes.set_xticks(budgets, [f"{k}\n{budget_label(k, n, asked)}" for k in budgets])
        axes.set_xticks([], minor=True)
    for panel in panels:
        panel.set_xlabel("budget (tokens, share of the trace)" if few else "budget (tokens)")
        panel.grid(True, color="0.9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("attention-mass recall (mean over units)")
    axes.legend(frameon=False, loc="lower right", handlelength=4)
    if title:
        panels[0].set_title(title, loc="left", fontsize="medium")
    with _replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)
    return target


def plot_prices(found: xr.Dataset, path: str | os.PathLike, title: str | None = None) -> Path:
    """Draw λ_t of an optimum, a panel a layer (its first unit), one line a budget."""
    require_matplotlib()
    from matplotlib.figure import Figure

    layers = found["layer"].values
    figure = Figure(figsize=(9, 1.2 + 1.6 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), 1, sharex=True, squeeze=False)[:, 0]
    for layer, axes in zip(layers, panels, strict=True):
        for b, budget in enumerate(found["budget"].values):
            price = found["price"].sel(layer=layer).isel(unit=0, budget=b).values
            colour = _COLOURS[b % len(_COLOURS)]
            axes.plot(price, color=colour, ls=_DASHES[b % len(_DASHES)], lw=0.9, label=str(budget))
        axes.set_ylabel(f"layer {layer}")
        axes.grid(True, color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, title="budget", ncols=4, loc="upper right", fontsize="small")
    panels[-1].set_xlabel("step (price of one cache slot, in attention mass)")
    if title:
        panels[0].set_title(title, loc="left", fontsize="medium")
    target = Path(path)
    with _replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)
    return target


def plot_allocation(found: xr.Dataset, path: str | os.PathLike, title: str | None = None) -> Path:
    """Heat maps of an allocation: slots over layer and unit, a panel a policy and rule."""
    require_matplotlib()
    from matplotlib.figure import Figure

    policies, rules = found["policy"].values, found["rule"].values
    layers, units = found["layer"].values, found["unit"].values
    size = (1.8 + 2.4 * len(rules), 1.0 + (0.8 + 0.28 * len(layers)) * len(policies))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(policies), len(rules), squeeze=False, sharex=True, sharey=True)
    slots = found["slots"].transpose("policy", "rule", "layer", "unit").values
    recall = found["overall"].transpose("policy", "rule").values
    for (i, r), axes in np.ndenumerate(panels):
        image = axes.imshow(slots[i, r], vmin=0, vmax=slots.max(), cmap="Greys", aspect="auto")
        for (y, x), count in np.ndenumerate(slots[i, r]):
            if slots[i, r].size <= 120:
                dark = count > 0.6 * slots.max()
                colour = "white" if dark else "black"
                axes.text(x, y, count, ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(f"{policies[i]}, {rules[r]}: {recall[i, r]:.3f}", fontsize="small")
        axes.set_yticks(range(len(layers)), [str(layer) for layer in layers])
        axes.set_xticks(range(len(units)), [str(unit) for unit in units])
    for axes in panels[:, 0]:
        axes.set_ylabel("layer")
    for axes in panels[-1]:
        axes.set_xlabel("unit")
    figure.colorbar(image, ax=panels, label="slots")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    target = Path(path)
    with _replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)
    return target


def plot_guarantees(
    series: Mapping[str, Mapping[str, np.ndarray]],
    path: str | os.PathLike,
    title: str | None = None,
) -> Path:
    """Draw what `guarantees.verify.over_time` gives, a panel a policy.

    The ratio to the best set over time, beside the bounds of T2 or T3, the certificate of T4 and
    its clipped form, and below it the share of the best value that came after an eviction.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    lines = {
        "ratio": ("ratio kept / best", "-", "#000000", 1.8),
        "t2": ("T2: less mass after eviction", "--", "#0072b2", 1.4),
        "t3": ("T3: less missed mass too", "-.", "#d55e00", 1.4),
        "certificate": ("T4: drift certificate", ":", "#009e73", 1.6),
        "clipped": ("T4 clipped to 1 a step", (0, (7, 2)), "#cc79a7", 1.2),
    }
    figure = Figure(figsize=(4.6 * len(series), 6), layout="constrained")
    rows = figure.subplots(2, len(series), sharex="col", squeeze=False, height_ratios=(3, 1))
    for (text, run), (upper, lower) in zip(series.items(), rows.T, strict=True):
        for name, (label, dashes, colour, width) in lines.items():
            upper.plot(run["step"], run[name], ls=dashes, color=colour, lw=width, label=label)
        upper.set_ylim(-0.05, 1.1)
        upper.set_title(text, loc="left", fontsize="medium")
        lower.plot(run["step"], run["late"], color="#000000", lw=1.2)
        lower.set_xlabel("step")
        for axes in (upper, lower):
            axes.grid(True, color="0.9", linewidth=0.6)
            axes.spines[["top", "right"]].set_visible(False)
    rows[0, 0].set_ylabel("of the best set's value")
    rows[1, 0].set_ylabel("after eviction")
    rows[0, 0].legend(frameon=False, loc="lower left", fontsize="small")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize="medium")
    target = Path(path)
    with _replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)
    return target


# --- files ----------------------------------------------------------------------------------


def require_writer(path: Path) -> None:
    """UserError, naming the extra, where a file of this ending cannot be written."""
    if path.suffix.lower() == ".parquet":
        _require("pyarrow", "parquet", "writing .parquet")


def save_results(results: xr.Dataset, path: str | os.PathLike) -> Path:
    """Write a replay to a file; its ending chooses the format.

    ``.nc`` keeps the whole Dataset as NetCDF 3; ``.parquet``, ``.csv`` and ``.json`` hold one row
    or record a (policy, layer, unit, budget) with recall and the most keys held. In .parquet and
    .csv the parameters are one text, ``recent=32,scores=full``.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in SAVE_SUFFIXES:
        raise UserError(
            f"results file {target}: found the ending {target.suffix!r}, expected one of "
            f"{', '.join(SAVE_SUFFIXES)}"
        )
    require_writer(target)
    with _replacing(target) as temporary:
        if suffix == ".nc":
            results.to_netcdf(temporary, engine="scipy")
        elif suffix == ".json":
            rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in _rows(results))
            temporary.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
        else:
            import pandas as pd

            frame = pd.DataFrame([{k: flat(v) for k, v in row.items()} for row in _rows(results)])
            if suffix == ".csv":
                frame.to_csv(temporary, index=False, lineterminator="\n")
            else:
                frame.to_parquet(temporary, engine="pyarrow", index=False)
    return target


def flat(value: object) -> object:
    """A value as one cell: a mapping as ``recent=32,scores=full``, a list joined by commas."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={inner}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(inner) for inner in value)
    return value


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside ``target`` that takes its place if the body succeeds."""
    with tempfile.TemporaryDirectory(prefix=".h2osim-", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        yield temporary
        os.replace(temporary, target)


def _require(module: str, extra: str, job: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{job} needs {module}: run pip install 'h2osim[{extra}]'")


# --- policies -------------------------------------------------------------------------------


def policy_record(policy: Policy) -> dict[str, Any]:
    """A policy's declaration as plain values: rule, source, parameters and facts."""
    return {
        "name": policy.name,
        "summary": policy.summary,
        "source": policy.source,
        "params": [
            {"name": p.name, "default": p.default, "range": p.range, "doc": p.doc}
            for p in policy.params
        ],
        "kind": _beyond(policy) or "online",
        "one_pass": _one_pass(policy),
        "within_budget": policy.with_params().within_budget(),
        "needs": policy.needs,
        "notes": policy.notes,
    }


def _one_pass(policy: Policy) -> str:
    """Whether one pass gives every budget (T7): yes, one head (only), by parameters, or no."""
    if not callable(policy.inclusive):
        return "yes" if policy.inclusive else "no"
    default = policy.with_params()
    if default.inclusive(2):
        return "yes"
    return "one head" if default.inclusive(1) else "by parameters"


def policies_table(policies: Sequence[Policy]) -> Table:
    """One row a policy: name and parameters with their defaults, rule, source, facts."""
    from rich.table import Table

    table = Table(
        caption="one pass: whether one pass over a trace gives every budget (theorem T7); "
        "`h2osim policies NAME` shows one in full",
        caption_justify="left",
        title_justify="left",
    )
    for header in ("policy", "rule", "parameters", "one pass", "source", "remarks"):
        table.add_column(header, overflow="fold")
    for policy in policies:
        defaults = ", ".join(f"{p.name}={p.default}" for p in policy.params)
        remarks = [_beyond(policy)]
        if not policy.with_params().within_budget():
            remarks.append("may hold more than the budget")
        if policy.needs:
            remarks.append(f"needs {policy.needs}")
        table.add_row(
            policy.name,
            policy.summary,
            defaults,
            _one_pass(policy),
            policy.source,
            ", ".join(filter(None, remarks)),
        )
    return table


def policy_page(policy: Policy) -> Group:
    """Everything that is declared about one policy."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    record = policy_record(policy)
    facts = {
        "source": record["source"],
        "kind": record["kind"],
        "one pass": record["one_pass"],
        "needs": record["needs"] or "attention rows only",
        "budget": "kept in every decode step" if record["within_budget"] else "may be exceeded",
        "notes": record["notes"],
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if value:
            grid.add_row(name, Text(str(value)))
    parts: list[Any] = [Text(f"{policy.name}: {policy.summary}"), grid]
    if policy.params:
        table = Table(title="parameters", title_justify="left")
        for header in ("name", "default", "values", "meaning"):
            table.add_column(header, overflow="fold")
        for p in policy.params:
            table.add_row(p.name, str(p.default), p.range, p.doc)
        parts.append(table)
    written = ",".join(f"{p.name}={p.default}" for p in policy.params)
    also = f" or {policy.name}:{written}" if written else ""
    parts.append(Text(f"written {policy.name}{also}"))
    return Group(*parts)


# --- generators -----------------------------------------------------------------------------


def generators_table(generators: Sequence[Generator]) -> Table:
    """One row a generator of synthetic traces, then a row for each of its parameters."""
    from rich.table import Table

    table = Table()
    for header in ("generator", "parameter", "default", "values", "meaning"):
        table.add_column(header, overflow="fold")
    for generator in generators:
        table.add_row(generator.name, "", "", "", generator.summary)
        for p in generator.params:
            default = "from n" if callable(p.default) else f"{p.default:g}"
            table.add_row("", p.name, default, p.range, p.doc)
        table.add_section()
    return table


# --- traces ---------------------------------------------------------------------------------


def trace_record(trace: Trace) -> dict[str, Any]:
    """What the manifest says about a trace, in a few plain values; reads no scores."""
    model = trace.manifest.get("model") or {}
    text = trace.manifest.get("text") or {}
    return {
        "name": trace.name,
        "tokens": trace.n,
        "prompt": trace.prompt_len,
        "layers": list(trace.layers),
        "heads": len(trace.heads),
        "group_size": trace.group_size,
        "stores": list(trace.stores),
        "model": model.get("name"),
        "text": text.get("name"),
        "license": text.get("license"),
        "megabytes": round(sum(f["bytes"] for f in trace.manifest["layers"]) / 1e6, 1),
    }


def traces_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """One row a trace, from :func:`trace_record`."""
    from rich.table import Table

    table = Table()
    for header in ("trace", "tokens", "layers", "heads", "store", "model", "text", "MB"):
        table.add_column(header, justify="right" if header in ("tokens", "MB") else "left")
    for r in records:
        heads = f"{r['heads']} in groups of {r['group_size']}"
        layers, stores = (str(flat(r[name])) for name in ("layers", "stores"))
        model, text = r["model"] or "–", r["text"] or "–"
        table.add_row(
            r["name"], str(r["tokens"]), layers, heads, stores, model, text, str(r["megabytes"])
        )
    return table


def info_page(facts: TraceFacts) -> Group:
    """What :func:`h2osim.describe.describe` found: the manifest's facts, then a row a layer."""
    from rich.console import Group
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    prompt = f"prompt of {facts.prompt_len}" if facts.prompt_len else "no prompt of its own"
    size = "in memory" if facts.bytes is None else f"{facts.bytes / 1e6:.1f} MB"
    shape = f"{facts.heads} heads of {facts.kv_heads} KV heads"
    lines = {
        "trace": facts.name,
        "path": facts.path,
        "model": " ".join(filter(None, (facts.model, _bracketed(facts.architecture)))),
        "text": " ".join(filter(None, (facts.text, _bracketed(facts.license)))),
        "tokens": f"{facts.n} ({prompt})",
        "shape": f"{len(facts.layers)} layers, {shape} (groups of {facts.group_size})",
        "store": f"{' and '.join(facts.stores)}: {', '.join(facts.tensors)}; {size}",
        "made by": facts.created_by,
        "command": facts.command,
    }
    for name, value in lines.items():
        if value:
            grid.add_row(name, value)
    table = Table(
        caption="% of entries under 1 % of their row's maximum and exactly 0; % of the attention "
        "mass on the first 4 tokens (sinks), the newest 32 (recent), the tenth most attended of "
        "the others (heavy) and the rest; largest mass a row lost to float16; power-law exponent "
        "of the mass tokens receive",
        caption_justify="left",
    )
    columns = ("layer", "sparse", "zero", "sinks", "recent", "heavy", "rest", "lost", "exponent")
    for header in columns:
        table.add_column(header, justify="right")
    windowed = any(layer.window is not None for layer in facts.layers)
    if windowed:
        table.add_column("window", justify="right")
    for layer in facts.layers:
        shares = (layer.sparsity, layer.zeros, layer.sinks, layer.recent, layer.heavy, layer.rest)
        row = [str(layer.layer), *(f"{100 * share:.1f}" for share in shares)]
        row.append("–" if layer.lost_max is None else f"{layer.lost_max:.1g}")
        row.append("–" if layer.exponent is None else f"{layer.exponent:.2f}")
        if windowed:
            row.append(str(layer.window or "–"))
        table.add_row(*row)
    return Group(grid, table)


def _bracketed(text: str | None) -> str | None:
    return f"({text})" if text else None


def plot_attention(trace: Trace, path: str | os.PathLike, cells: int = 256) -> Path:
    """Draw the attention of the first KV group of every layer, queries down, keys to the right.

    Grey is logarithmic, from 1e-4 (white) to 1 (black); a cell shows the largest mean over the
    group's heads among its entries (see :func:`h2osim.describe.heatmap`).
    """
    require_matplotlib()
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    from h2osim.describe import heatmap

    target = Path(path)
    units = [unit for unit in trace.units("group") if unit.index == 0]
    columns = min(5, len(units))
    rows = -(-len(units) // columns)
    figure = Figure(figsize=(2.6 * columns + 0.8, 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    norm = LogNorm(1e-4, 1, clip=True)
    for axes, unit in zip(grid.flat, units, strict=False):
        picture = heatmap(unit, cells)
        picture = np.where(np.isnan(picture), np.nan, np.maximum(picture, 1e-4))
        extent = (0, unit.n, unit.n, 0)
        axes.imshow(picture, cmap="Greys", norm=norm, extent=extent)
        axes.set_title(f"layer {unit.layer}", fontsize="medium")
        axes.tick_params(labelsize="x-small")
    for axes in list(grid.flat)[len(units) :]:
        axes.set_visible(False)
    grid[0, 0].set_ylabel("query")
    grid[-1, 0].set_xlabel("key")
    figure.colorbar(ScalarMappable(norm, "Greys"), ax=grid, shrink=0.8, label="attention")
    with _replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)
    return target
