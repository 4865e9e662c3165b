"""Pages of studies: Markdown with its figures in a folder of the page's name beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from h2osim.report.files import save_figure
from h2osim.support.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are already text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def write(page: Path, text: str, figures: Mapping[str, Figure]) -> None:
    """Write PAGE.md and the figures, PAGE/NAME.png each."""
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
