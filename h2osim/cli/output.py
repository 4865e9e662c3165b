"""The output of commands: tables, JSON and CSV; notices on standard error; files."""

from __future__ import annotations

import csv
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2osim.support.atomic import try_writing
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure
    from rich.console import Console, RenderableType

    from h2osim.report.figures.drawing import Axis, Look


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
        real = Path(os.path.realpath(path))  # of a link to itself too
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

    if plot is None:
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        files.save_figure(figure(), plot)
    for text in dict.fromkeys(str(one.message).splitlines()[0] for one in said):
        notice(f"{plot}: {text}")
    notice(f"wrote {plot}")


def look_of(
    plot: Path | None, size: str | None, title: str | None, axes: str | None = None
) -> Look:
    """Read --plot-size, --plot-title and --plot-axes, which only mean something beside --plot."""
    from h2osim.report.figures.drawing import Look

    options = {"--plot-size": size, "--plot-title": title, "--plot-axes": axes}
    for option, value in options.items():
        if value is not None and plot is None:
            raise UserError(f"{option}: found no --plot, expected the file to draw into")
    return Look(None if size is None else _size(size), title, **_axes(axes or ""))


_FARTHEST = 1e100
"""Of the ends of an axis: ticks between farther ones are no float64 any more."""


def _size(text: str) -> tuple[float, float]:
    """Read ``6.5x4``: inches, of which Matplotlib draws at most some metres."""
    width, _, height = text.partition("x")
    try:
        size = float(width), float(height)
    except ValueError:
        size = 0.0, 0.0
    if not all(1 <= side <= 100 for side in size):
        raise UserError(
            f"--plot-size: found {text!r}, expected width x height in inches, each 1 to 100: 6.5x4"
        )
    return size


def _axes(text: str) -> dict[str, Axis]:
    """Read ``x=log,y=0.5:1``."""
    from h2osim.report.figures.drawing import Axis

    found: dict[str, Axis] = {}
    for word in filter(None, map(str.strip, text.split(","))):
        name, _, value = word.partition("=")
        before = found.get(name, Axis())
        if name in ("x", "y") and value in ("log", "linear"):
            found[name] = replace(before, scale=value)
        elif name in ("x", "y") and (ends := _ends(value)) is not None:
            found[name] = replace(before, ends=ends)
        else:
            raise UserError(
                f"--plot-axes: found {word!r}, expected x or y = log, linear or FROM:TO, "
                "as in x=log,y=0.5:1"
            )
    for name, axis in found.items():
        if axis.scale == "log" and axis.ends is not None and axis.ends[0] <= 0:
            raise UserError(
                f"--plot-axes: {name}=log: found an end of {axis.ends[0]:g}, expected above 0"
            )
    return found


def _ends(text: str) -> tuple[float, float] | None:
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        return None
    return (low, high) if -_FARTHEST <= low < high <= _FARTHEST else None
