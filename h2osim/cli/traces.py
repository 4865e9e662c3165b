"""``h2osim traces`` and ``h2osim info``: which traces there are and what is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from h2osim.cli.common import checked_trace, parse_integers
from h2osim.cli.options import FormatOption, Layers, TraceName, plot_option
from h2osim.cli.output import Format, check_files, draw, show


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
    trace: TraceName,
    layers: Layers = None,
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="How to print; csv: the layers only.")
    ] = Format.table,
    plot: Annotated[Path | None, plot_option("the attention of every layer")] = None,
) -> None:
    """Show what is in a trace, after checking all of it: shape, origin, where the mass lies."""
    from h2osim.report import figures, pages

    only = parse_integers(layers, "--layers")
    check_files(plot)

    from h2osim.traces.description import describe

    recorded = checked_trace(trace)
    facts = describe(recorded, None if only is None else tuple(only))
    draw(plot, lambda: figures.attention_figure(recorded))
    show(
        format_,
        facts.record,
        lambda: pages.info_page(facts),
        rows=lambda: facts.record()["layers"],
    )
