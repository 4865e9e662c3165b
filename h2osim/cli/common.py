"""What the commands share: parsing of lists, consoles, the progress bar, output paths."""

from __future__ import annotations

import csv
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from h2osim.support.errors import UserError
from h2osim.support.progress import Progress

if TYPE_CHECKING:
    import typer
    from rich.console import Console

"""Called as ``progress(done, total, what)``."""


class Share(StrEnum):
    """Which heads share one cache."""

    head = "head"
    group = "group"
    layer = "layer"


class Engine(StrEnum):
    """Which engine replays."""

    auto = "auto"
    naive = "naive"
    numba = "numba"
    cuda = "cuda"


class Format(StrEnum):
    """How results are printed."""

    table = "table"
    json = "json"
    csv = "csv"


def parse_budgets(text: str) -> list[int | float] | Literal["all"]:
    """Read ``64,0.05,5%``: tokens, fractions of the trace's length, percentages; or ``all``."""
    if text.strip() == "all":
        return "all"
    return [_budget(word.strip()) for word in text.split(",")]


def _budget(word: str) -> int | float:
    try:
        if word.endswith("%"):
            value: int | float = float(word[:-1]) / 100
        elif word.isdecimal():
            value = int(word)
        else:
            value = float(word)
    except ValueError:
        value = -1
    # A float is a share of the trace; written so that NaN is refused too.
    if value > 0 and (isinstance(value, int) or value <= 1):
        return value
    raise UserError(
        f"--budgets: {word!r} is no budget; expected tokens (64), a fraction of the trace from "
        "above 0 to 1.0 (0.05) or a percentage (5%), separated by commas; or all"
    )


def parse_integers(text: str | None, option: str) -> list[int] | None:
    """Read ``0,9,16``; None stays None. ``option`` names the place in the error."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not (word.isascii() and word.isdecimal()):
            raise UserError(f"{option}: {word!r} is no index; expected whole numbers like 0,9,16")
    return [int(word) for word in words]


def parse_assignments(words: Sequence[str], option: str) -> dict[str, str]:
    """Read ``x=1`` words into a dictionary; the values stay text."""
    pairs: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals and value):
            raise UserError(f"{option}: found {word!r}, expected NAME=VALUE")
        if name in pairs:
            raise UserError(f"{option}: {name!r} is given twice")
        pairs[name] = value
    return pairs


def output_path(text: Path, option: str, suffixes: Sequence[str]) -> Path:
    """Check, before any work is done, that a file of a known kind can be written at ``text``."""
    if text.suffix.lower() not in suffixes:
        raise UserError(
            f"{option} {text}: found the ending {text.suffix!r}, expected one of "
            f"{', '.join(suffixes)}"
        )
    if text.is_dir():
        raise UserError(f"{option} {text}: found a folder, expected a file name")
    if not text.parent.is_dir():
        raise UserError(f"{option} {text}: the folder {text.parent} does not exist")
    return text


def command_line(context: typer.Context) -> str:
    """The command as it could be typed again, for the provenance in a manifest."""
    return shlex.join(["h2osim", *context.obj])


def console(stderr: bool = False) -> Console:
    """Give a console that colours on a terminal only, and does not squeeze tables in a pipe."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    # Away from a terminal rich would assume 80 columns and cut cells short.
    width = None if stream.isatty() or "COLUMNS" in os.environ else 200
    return Console(file=stream, width=width, highlight=False, markup=False)


def notice(text: str) -> None:
    """Tell the user something that is no result: on standard error, without markup."""
    print(text, file=sys.stderr)


def print_json(value: object) -> None:
    """Print JSON, one record a line when it is a list."""
    if isinstance(value, list):
        rows = ",\n".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in value)
        print(f"[\n{rows}\n]" if rows else "[]")
    else:
        print(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2))


def print_csv(records: Sequence[Mapping[str, object]]) -> None:
    """Print records of equal fields as CSV; a mapping becomes ``name=value`` words."""
    from h2osim.report import flat

    if not records:
        return
    writer = csv.DictWriter(sys.stdout, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: flat(value) for name, value in row.items()} for row in records)


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Show a bar with an estimate on standard error while the body runs; None off a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def update(done: float, total: float, what: str) -> None:
            # No total yet: the bar only shows that something goes on.
            bar.update(task, completed=done, total=total or None, description=what)

        yield update
