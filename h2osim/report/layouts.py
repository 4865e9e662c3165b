"""How tables fit a screen: names that break where a reader would, and the first form with room."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

#: How wide a title or a caption may be.
_PROSE = 100


class Name:
    """A policy or a file's name; where it is too long, it breaks behind `,` `:` `/` `-` or `=`.

    ``folded``: it asks for no more room than its longest piece, as above a narrow column.
    """

    def __init__(self, text: str, folded: bool = False) -> None:
        self.text = text
        self.folded = folded

    def __str__(self) -> str:
        return self.text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("\n".join(self._lines(options.max_width)), justify=options.justify)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, self._pieces()), default=0)
        wanted = longest if self.folded else len(self.text)
        return Measurement(min(longest, options.max_width), min(wanted, options.max_width))

    def _pieces(self) -> list[str]:
        return re.findall(r"[^ ,:/=-]*[ ,:/=-]|[^ ,:/=-]+", self.text)

    def _lines(self, width: int) -> list[str]:
        lines = [""]
        # Behind a comma first: `recent=32,` stays whole where it fits a line.
        for part in re.findall(r"[^,: ]*[,: ]|[^,: ]+", self.text):
            pieces = [part] if len(part) <= width else Name(part)._pieces()
            for piece in pieces:
                if lines[-1] and len(lines[-1]) + len(piece) > width:
                    lines.append("")
                lines[-1] += piece
        return lines


class Sheet(Table):
    """A table whose title and caption may be wider than it is."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        around = options.update(width=min(options.max_width, _PROSE))
        yield from self._text(console, around, self.title, "table.title")
        title, caption = self.title, self.caption
        self.title = self.caption = None
        try:
            yield from super().__rich_console__(console, options)
        finally:
            self.title, self.caption = title, caption
        yield from self._text(console, around, caption, "table.caption")

    @staticmethod
    def _text(
        console: Console, options: ConsoleOptions, text: object, style: str
    ) -> Iterator[Segment]:
        if text:
            for line in console.render_lines(Text(str(text), style), options, pad=False):
                yield from (*line, Segment.line())


def plain_table(title: str | None, caption: str = "") -> Sheet:
    """An empty table with what it shows above it and how to read it below."""
    return Sheet(title=title, caption=caption)


def fits(screen: Console, table: RenderableType) -> bool:
    """Whether a table has room on the screen without breaking a word."""
    unbounded = screen.options.update(max_width=10_000)
    return screen.measure(table, options=unbounded).maximum <= screen.width


def first_that_fits(screen: Console, tables: Iterable[RenderableType]) -> RenderableType:
    """The first of several forms of a table that fits the screen, else the last."""
    for table in tables:
        if fits(screen, table):
            break
    return table


def in_parts(
    screen: Console, columns: Sequence[int], table: Callable[[Sequence[int]], Table]
) -> Iterator[Table]:
    """Tables of some columns each, as many as the screen has room for."""
    while columns:
        sizes = range(len(columns), 1, -1)
        most = next((m for m in sizes if fits(screen, table(columns[:m]))), 1)
        yield table(columns[:most])
        columns = columns[most:]
