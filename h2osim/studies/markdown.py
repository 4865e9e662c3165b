"""Pages of studies: Markdown with its figures in a folder of the page's name beside it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from h2osim.report.files import save_figure
from h2osim.support.atomic import replacing

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are already text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def made(frame: pandas.DataFrame) -> str:
    """How a study's table was made, where its column ``made`` says so."""
    return f"{frame['made'].iloc[0]}\n\n" if "made" in frame else ""


def wrapped(text: str) -> str:
    """The text with its paragraphs and points broken into lines of at most 100 characters."""
    blocks = []
    for block in re.split(r"(```.*?```|\n\n)", text, flags=re.DOTALL):
        points = re.split(r"\n(?=\* )", block) if re.match(r"\w|\*|`[^`]", block) else None
        blocks.append(block if points is None else "\n".join(map(_fill, points)))
    return "".join(blocks)


def _fill(text: str) -> str:
    hang, words = "  " if text.startswith("* ") else "", " ".join(text.split())
    return textwrap.fill(
        words, 100, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False
    )


def write(page: Path, text: str, figures: Mapping[str, Figure]) -> None:
    """Write PAGE.md and the figures, PAGE/NAME.png each."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    with replacing(page) as temporary:
        temporary.write_text(wrapped(text), encoding="utf-8")
