"""What all figures share: their size, title and axes, how lines differ, where a legend stands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.report.files import require_matplotlib
from h2osim.support.given import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Lightness, dashes, markers and their filling all differ, so that thirteen lines are told apart in
# grey; the lengths have no common factor, so that combinations repeat late.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = (
    "-", "--", "-.", ":", (0, (7, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (9, 3, 2, 3))
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "h", ">", "p", "d")
#: A figure that is narrower, in inches, has its legend below, where it takes no width.
NARROW = 6.0
#: Letters of a name, for each inch of the figure, that leave room for two names side by side.
_LETTERS = 6
_CURVES = "curves"


@dataclass(frozen=True)
class Axis:
    """How an axis of curves is drawn: ``log`` or ``linear``, and its two ends; None leaves it."""

    scale: str | None = None
    ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Look:
    """What a reader may ask of any figure; None is the figure's own choice.

    size: width and height in inches. title: the line above, empty for none. x, y: the axes of
    curves; heat maps have their own.
    """

    size: tuple[float, float] | None = None
    title: str | None = None
    x: Axis = Axis()
    y: Axis = Axis()


PLAIN = Look()


def canvas(width: float, height: float, look: Look = PLAIN) -> Figure:
    """An empty figure, in inches; UserError, naming the extra, where figures cannot be drawn."""
    require_matplotlib()
    from h2osim.report.figures.shown import Shown

    return Shown(figsize=look.size or (width, height), layout="constrained")


def finish(figure: Figure, title: str | None, look: Look) -> Figure:
    """Give a figure its title, and the axes that were asked for."""
    title = title if look.title is None else look.title
    if title:
        # Names of texts are in it, in which a $ begins no formula.
        plain = printable(title).replace("$", r"\$")
        figure.suptitle(plain, x=0.01, ha="left", fontsize="medium", wrap=True)
    for axes in figure.axes:
        if axes.get_label() != _CURVES:
            continue
        if look.x.scale:
            axes.set_xscale(look.x.scale)
        if look.y.scale:
            axes.set_yscale(look.y.scale)
        if look.x.ends:
            axes.set_xlim(*look.x.ends)
        if look.y.ends:
            axes.set_ylim(*look.y.ends)
    return figure


def line_style(i: int) -> dict[str, Any]:
    """How line i is drawn: its colour, dashes and marker."""
    kinds = {"color": COLOURS, "linestyle": DASHES, "marker": MARKERS}
    style = {kind: some[i % len(some)] for kind, some in kinds.items()}
    hollow = i // len(COLOURS) % 2
    return style | ({"markerfacecolor": "white"} if hollow else {})


def sparse_markers(i: int, count: int) -> dict[str, Any]:
    """Where line i of many points has its markers: a few, and not where its neighbours have them.

    Counted along the drawn line, so that they are evenly spread on any axis.
    """
    return {} if count <= 20 else {"markevery": ((i % 7) / 56 + 0.01, 0.125)}


def open_axes(axes: Any) -> None:
    """Draw a light grid, and no line above and on the right."""
    axes.set_label(_CURVES)
    axes.grid(True, color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def legend_beside(figure: Figure, axes: Any, **more: Any) -> None:
    """Name the lines of one panel outside all panels: on the right, or below a narrow figure."""
    handles, labels = axes.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside right upper", "handlelength": 4}
    if (width := figure.get_size_inches()[0]) < NARROW:
        room = max(map(len, labels), default=0) < _LETTERS * width
        place = {"loc": "outside lower left", "ncols": 2 if room else 1, "fontsize": "x-small"}
    figure.legend(handles, labels, **{"frameon": False, **place, **more})


def spread(count: int, most: int) -> list[int]:
    """At most so many of the first ``count`` numbers, evenly spread, both ends included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))})


def tick_places(side: Any, words: Sequence[object] | Iterable[object], most: int) -> None:
    """Name the cells along one side of a heat map, as many as there is room for."""
    named = list(map(str, words))
    at = spread(len(named), most)
    side.set_ticks(at, [named[i] for i in at], fontsize="x-small")
