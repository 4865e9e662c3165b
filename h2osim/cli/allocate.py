"""``h2osim allocate``: how to split cache slots over units and layers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from h2osim.cli.common import (
    Format,
    Share,
    console,
    notice,
    output_path,
    parse_integers,
    print_csv,
    print_json,
    progress_bar,
)
from h2osim.cli.options import FormatOption, Layers, PromptLen, ShareOption, TraceName

if TYPE_CHECKING:
    import xarray
    from rich.table import Table


class Split(StrEnum):
    """How a policy's curves are split."""

    auto = "auto"
    dp = "dp"
    hull = "hull"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("allocate")(allocate)


def allocate(
    trace: TraceName,
    slots: Annotated[
        int, typer.Option("--slots", min=1, help="Cache slots in all, over every unit.")
    ],
    policies: Annotated[
        str | None,
        typer.Option("--policies", "-p", help="Policies whose own curves are split as well."),
    ] = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    layers: Layers = None,
    method: Annotated[
        Split, typer.Option("--method", help="For policies: exact (dp) or by concave hulls.")
    ] = Split.auto,
    format_: FormatOption = Format.table,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Heat map of slots over layer and unit (.png, .pdf, .svg)."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save it all: .nc")] = None,
) -> None:
    """Split cache slots over units: the best split, against equal, PyramidKV's and Ada-KV's."""
    from h2osim import report
    from h2osim.optima.allocating import allocate as split
    from h2osim.policies.text import parse, split_policies
    from h2osim.traces.catalogue import open_trace

    chosen = split_policies(policies) if policies else []
    for text in chosen:
        parse(text)
    if plot is not None:
        output_path(plot, "--plot", report.PLOT_SUFFIXES)
        report.require_matplotlib()
    if output is not None:
        output_path(output, "--output", (".nc",))
    recorded = open_trace(trace)
    recorded.verify()
    with progress_bar() as progress:
        found = split(
            recorded,
            slots,
            policies=chosen,
            prompt_len=prompt_len,
            share=share.value,
            layers=parse_integers(layers, "--layers"),
            method=method.value,
            progress=progress,
        )
    title = f"{recorded.name}: {slots} slots over {found.layer.size * found.unit.size} units"
    if plot is not None:
        report.plot_allocation(found, plot, title=title)
        notice(f"wrote {plot}")
    if output is not None:
        report.save_results(found, output)
        notice(f"wrote {output}")
    if format_ is Format.table:
        console().print(table(found, title))
    elif format_ is Format.json:
        print_json(records(found))
    else:
        print_csv(records(found))


def records(found: xarray.Dataset) -> list[dict[str, Any]]:
    """Records {policy, rule, layer, unit, slots, recall, overall}."""
    flat = found[["slots", "recall", "overall"]].to_dataframe().reset_index()
    rows: list[dict[str, Any]] = flat.to_dict("records")
    return rows


def table(found: xarray.Dataset, title: str) -> Table:
    """A row a policy and rule: recall over all units, and each layer's slots."""
    from rich.table import Table

    caption = "recall: over all units together; then each layer's slots"
    slack = found["bound"].values - found["overall"].sel(rule="best").values
    if (slack > 0).any():
        caption += f"; best is proved within {slack.max():.1e}"
    shown = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    shown.add_column("policy", overflow="fold", min_width=9)
    for column in ("rule", "recall", *(f"layer {layer}" for layer in found["layer"].values)):
        shown.add_column(column, justify="left" if column == "rule" else "right", no_wrap=True)
    for policy in found["policy"].values:
        one = found.sel(policy=policy)
        shown.add_section()
        name = str(policy)
        for rule in found["rule"].values:
            slots = one["slots"].sel(rule=rule).sum("unit").values
            recall = f"{float(one['overall'].sel(rule=rule)):.4f}"
            shown.add_row(name, str(rule), recall, *map(str, slots.tolist()))
            name = ""
    return shown
