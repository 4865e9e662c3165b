"""``h2osim traces`` and ``h2osim info``: which traces there are and what is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import (
    Format,
    console,
    notice,
    output_path,
    parse_integers,
    print_csv,
    print_json,
)


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("traces")(traces)
    app.command("info")(info)


def traces(
    format_: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
) -> None:
    """List the bundled traces (and those in traces/local/): the names other commands take."""
    from h2osim import report
    from h2osim.traces.catalogue import bundled_traces, open_trace

    found = bundled_traces()
    records = [
        {**report.trace_record(open_trace(path)), "name": name} for name, path in found.items()
    ]
    if format_ is Format.json:
        print_json(records)
    elif format_ is Format.csv:
        print_csv(records)
    else:
        console().print(report.traces_table(records))


def info(
    trace: Annotated[
        str, typer.Argument(metavar="TRACE", help="A trace folder, or the name of a bundled trace.")
    ],
    layers: Annotated[
        str | None, typer.Option("--layers", help="Only these model layers: 0,9,16")
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="How to print; csv: the layers only.")
    ] = Format.table,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", help="Draw the attention of every layer into this file."),
    ] = None,
) -> None:
    """Show what is in a trace, after checking all of it: shape, origin, where the mass lies."""
    from h2osim import report

    only = parse_integers(layers, "--layers")
    if plot is not None:
        output_path(plot, "--plot", report.PLOT_SUFFIXES)
        report.require_matplotlib()

    from h2osim.traces.catalogue import open_trace
    from h2osim.traces.description import describe

    recorded = open_trace(trace)
    recorded.verify()
    facts = describe(recorded, None if only is None else tuple(only))
    if plot is not None:
        report.plot_attention(recorded, plot)
        notice(f"wrote {plot}")
    if format_ is Format.table:
        console().print(report.info_page(facts))
    elif format_ is Format.json:
        print_json(facts.record())
    else:
        print_csv(facts.record()["layers"])
