"""``h2osim allocate``: how to split cache slots over units and layers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import (
    Share,
    checked_traces,
    command_line,
    one_or_several,
    parse_integers,
    parse_policies,
    progress_bar,
)
from h2osim.cli.options import (
    FormatOption,
    Layers,
    Outputs,
    PromptLen,
    ShareOption,
    TraceNames,
    plot_option,
    policies_option,
)
from h2osim.cli.output import Format, check_files, draw, save, show
from h2osim.support.errors import UserError


class Split(StrEnum):
    """How a policy's curves are split."""

    auto = "auto"
    dp = "dp"
    hull = "hull"


def allocate(
    context: typer.Context,
    traces: TraceNames,
    slots: Annotated[
        int, typer.Option("--slots", min=1, help="Cache slots in all, over every unit.")
    ],
    policies: Annotated[
        list[str] | None, policies_option("Policies whose own curves are split as well.")
    ] = None,
    prompt_len: PromptLen = None,
    share: ShareOption = Share.group,
    layers: Layers = None,
    method: Annotated[
        Split, typer.Option("--method", help="For policies: exact (dp) or by concave hulls.")
    ] = Split.auto,
    format_: FormatOption = Format.table,
    plot: Annotated[Path | None, plot_option("slots over layer and unit")] = None,
    output: Outputs = None,
) -> None:
    """Split cache slots over units: the best split, against equal, PyramidKV's and Ada-KV's."""
    from h2osim.optima.allocating import allocate as split
    from h2osim.report import comparison, figures, frames, terminal

    chosen = parse_policies(policies) if policies else []
    check_files(plot, output)
    recorded = checked_traces(traces)
    if len(recorded) > 1 and plot is not None:
        raise UserError(f"--plot: found {len(recorded)} traces, expected one: each has its split")
    with progress_bar() as progress:
        found = split(
            one_or_several(recorded),
            slots,
            policies=chosen,
            prompt_len=prompt_len,
            share=share.value,
            layers=parse_integers(layers, "--layers"),
            method=method.value,
            progress=progress,
        )
    names = comparison.traces_named([one.name for one in recorded])
    title = f"{names}: {slots} slots over {found.layer.size * found.unit.size} units"
    found.attrs["command"] = command_line(context)
    draw(plot, lambda: figures.allocation_figure(found, title))
    save(found, output)
    show(
        format_,
        lambda: frames.allocation_records(found),
        lambda: terminal.allocation_page(found, title),
    )
