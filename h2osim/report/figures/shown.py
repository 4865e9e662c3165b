"""Figures that a notebook shows by themselves, without pyplot and its backends."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

#: Dots an inch, of which a notebook shows 72: sharp on a fine screen.
_DPI = 144


class Shown(Figure):
    """A Figure that is an image where a cell ends in it."""

    def _repr_png_(self) -> tuple[bytes, dict[str, float]]:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", dpi=_DPI, facecolor="white")
        width, height = self.get_size_inches() * 72
        return drawn.getvalue(), {"width": float(width), "height": float(height)}
