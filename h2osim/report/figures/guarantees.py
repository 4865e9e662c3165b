"""What a policy kept over time, beside what is proved of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from h2osim.report.figures.drawing import (
    PLAIN,
    Look,
    canvas,
    finish,
    legend_beside,
    open_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Series of `guarantees.verify.over_time`: what each is in plain words, and how it is drawn.
_LINES = {
    "ratio": ("kept by the policy", "-", "#000000", 2.0),
    "t2": ("proved: never below best – what tokens got after eviction", "--", "#0072b2", 1.4),
    "sharp": ("the same, for scores counted only while cached", "-.", "#d55e00", 1.4),
    "certificate": ("the product of each step's growth, kept over best", ":", "#009e73", 1.8),
    "clipped": ("the same where it shrinks only: the H2O paper", (0, (7, 2)), "#cc79a7", 1.2),
}  # fmt: skip


def guarantees_figure(
    series: Mapping[str, Mapping[str, np.ndarray]],
    title: str | None = None,
    look: Look = PLAIN,
) -> Figure:
    """Draw what `guarantees.verify.over_time` gives, a column a policy.

    The score of the kept tokens over that of the best k tokens, over time, beside the proved bounds
    that are given (T2, T3 and T4 of proofs/README.md); below it what evicted tokens received after
    their eviction, as a share of the best score, and the α that the paper's theorem needs for the
    text's first n tokens, against n (a row does not know what follows, so a prefix of a run is the
    run of the prefix).
    """
    figure = canvas(1 + 3.6 * len(series), 7.5, look)
    rows = figure.subplots(
        3, len(series), sharex="col", sharey="row", squeeze=False, height_ratios=(3, 1.3, 1.3)
    )
    for (text, run), (upper, lower, needed) in zip(series.items(), rows.T, strict=True):
        for name, (label, dashes, colour, width) in _LINES.items():
            at, values = (run["step"], run[name]) if name in run else ([], [])  # for the legend
            upper.plot(at, values, ls=dashes, color=colour, lw=width, label=label)
        upper.set_title(text, loc="left", fontsize="small")
        lower.plot(run["step"], run["late"], color="#000000", lw=1.2)
        length = run["step"] + 1
        alpha = np.maximum.accumulate(run["alpha"]) * length / length[-1]  # 10 n max(theta, gamma)
        needed.semilogy(run["step"][1:], alpha[1:], color="#000000", lw=1.2)
        needed.axhline(1, color="#d55e00", lw=1, ls="--")
        needed.set_xlabel("decode step")
        for axes in (upper, lower, needed):
            open_axes(axes)
    rows[0, 0].set_ylim(-0.05, 1.1)
    words = (
        "score of the kept tokens\nover the best k tokens' score",
        "attention that\nevicted tokens\nstill got",
        "α that the paper's\ntheorem would need\n(it has α < 1)",
    )
    for axes, label in zip(rows[:, 0], words, strict=True):
        axes.set_ylabel(label, fontsize="small")
    finish(figure, title, look)
    legend_beside(figure, rows[0, 0], loc="outside lower left", ncols=1 + (len(series) > 1))
    return figure
