"""``h2osim traces`` and ``h2osim info``: which traces there are and what is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import checked_traces, parse_integers
from h2osim.cli.options import (
    FormatOption,
    Layers,
    PlotSize,
    PlotTitle,
    TraceNames,
    plot_option,
)
from h2osim.cli.output import Format, check_files, draw, look_of, show
from h2osim.support.errors import UserError


def traces(
    format_: FormatOption = Format.table,
) -> None:
    """List the bundled traces (and those in traces/local/): the names other commands take."""
    from h2osim.report import pages
    from h2osim.traces.catalogue import bundled_traces, open_trace

    found = bundled_traces()
    records = [
        {**pages.trace_record(open_trace(path)), "name": name} for name, path in found.items()
    ]
    show(format_, lambda: records, lambda: pages.traces_table(records))


def info(
    traces: TraceNames,
    layers: Layers = None,
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="How to print; csv: the layers only.")
    ] = Format.table,
    plot: Annotated[Path | None, plot_option("the attention of every layer")] = None,
    plot_size: PlotSize = None,
    plot_title: PlotTitle = None,
) -> None:
    """Show what is in traces, after checking all of it: shape, origin, where the mass lies."""
    from h2osim.report import figures, pages

    only = parse_integers(layers, "--layers")
    look = look_of(plot, plot_size, plot_title)
    check_files(plot)

    from h2osim.traces.description import describe

    recorded = checked_traces(traces)
    if len(recorded) > 1 and plot is not None:
        raise UserError(f"--plot: found {len(recorded)} traces, expected one")
    facts = [describe(one, None if only is None else tuple(only)) for one in recorded]
    draw(plot, lambda: figures.attention_figure(recorded[0], look=look))
    if len(facts) == 1:
        one = facts[0]
        rows = lambda: one.record()["layers"]  # noqa: E731
        show(format_, one.record, lambda: pages.info_page(one), rows=rows)
        return
    show(
        format_,
        lambda: [one.record() for one in facts],
        lambda: pages.infos_table(facts),
        rows=lambda: [
            {"trace": one.name} | layer for one in facts for layer in one.record()["layers"]
        ],
    )
