"""``h2osim traces`` and ``h2osim info``: which traces there are and what is in one."""

from __future__ import annotations

from typing import Annotated

import typer

from h2osim.cli.common import Format, console, print_csv, print_json


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("traces")(traces)


def traces(
    format_: Annotated[Format, typer.Option("--format", help="How to print.")] = Format.table,
) -> None:
    """List the bundled traces (and those in traces/local/): the names other commands take."""
    from h2osim import report
    from h2osim.carried import bundled_traces
    from h2osim.trace import open_trace

    records = [report.trace_record(open_trace(path)) for path in bundled_traces().values()]
    if format_ is Format.json:
        print_json(records)
    elif format_ is Format.csv:
        print_csv(records)
    else:
        console().print(report.traces_table(records))
