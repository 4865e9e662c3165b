"""The output of commands: tables, JSON and CSV; notices on standard error; files."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2osim.support.atomic import try_writing
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure
    from rich.console import Console, RenderableType


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def console(stderr: bool = False) -> Console:
    """Give a console that colours on a terminal only, and does not squeeze tables in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Away from a terminal rich would assume 80 columns and cut cells short.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return Console(file=stream, width=width, highlight=False, markup=False)


def notice(text: str) -> None:
    """Print a message that is not a result, on standard error and without markup."""
    print(text, file=sys.stderr)


def show(
    format_: Format,
    records: Callable[[], Any],
    table: Callable[[], RenderableType],
    rows: Callable[[], Sequence[Mapping[str, object]]] | None = None,
) -> None:
    """Print a result in the format asked for; only that format is computed.

    ``rows`` are the records for CSV, where they differ from those for JSON.
    """
    if format_ is Format.table:
        console().print(table())
    elif format_ is Format.json:
        print_json(records())
    else:
        print_csv((rows or records)())


def print_json(value: object) -> None:
    """Print JSON, one record a line when it is a list."""
    from h2osim.report.files import json_text

    print(json_text(value))


def print_csv(records: Sequence[Mapping[str, object]]) -> None:
    """Print records as CSV; a mapping becomes ``name=value`` words, a missing field is empty."""
    from h2osim.report.frames import flat

    if not records:
        return
    columns = dict.fromkeys(name for record in records for name in record)
    writer = csv.DictWriter(sys.stdout, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: flat(value) for name, value in row.items()} for row in records)


# --- files ----------------------------------------------------------------------------------


def output_path(path: Path, option: str, suffixes: Sequence[str] = ()) -> None:
    """Check, before any work is done, that a file of a known kind can be written: by trying."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise UserError(
            f"{option} {path}: found the ending {path.suffix!r}, expected one of "
            f"{', '.join(suffixes)}"
        )
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{option} {path}: found a folder or device, expected a file name")
        if not path.parent.is_dir():
            raise UserError(f"{option} {path}: the folder {path.parent} does not exist")
        real = path.resolve()
        if (real.parent / "trace.json").is_file() and (
            real.name == "trace.json" or real.suffix == ".safetensors"
        ):
            raise UserError(f"{option} {path}: found a trace's own file, expected another place")
        try_writing(path)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be written: {error.strerror}") from None


def check_files(
    plot: Path | None = None,
    outputs: Sequence[Path] | None = None,
    suffixes: Sequence[str] | None = None,
) -> None:
    """Check, before any work is done, that --plot and --output can be written."""
    from h2osim.report import files

    if plot is not None:
        output_path(plot, "--plot", files.PLOT_SUFFIXES)
        files.require_matplotlib()
    for output in outputs or ():
        output_path(output, "--output", suffixes or files.SAVE_SUFFIXES)
        files.require_writer(output)


def save(result: xarray.Dataset, outputs: Sequence[Path] | None) -> None:
    """Write the files of --output, if it was given."""
    from h2osim.report import files

    for output in outputs or ():
        notice(f"wrote {files.save_results(result, output)}")


def draw(plot: Path | None, figure: Callable[[], Figure]) -> None:
    """Draw the figure of --plot, if it was given."""
    from h2osim.report import files

    if plot is not None:
        notice(f"wrote {files.save_figure(figure(), plot)}")
