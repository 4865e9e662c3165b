"""Figures for papers: curves, prices, allocations, sweeps, guarantees over time, attention itself.

Every function returns a Matplotlib Figure and saves nothing. ``drawing`` has what they share.
"""

from h2osim.report.figures.allocation import allocation_figure
from h2osim.report.figures.attention import attention_figure
from h2osim.report.figures.curves import recall_figure
from h2osim.report.figures.drawing import Axis, Look
from h2osim.report.figures.guarantees import guarantees_figure
from h2osim.report.figures.prices import prices_figure
from h2osim.report.figures.sweep import sweep_figure

__all__ = [
    "Axis",
    "Look",
    "allocation_figure",
    "attention_figure",
    "guarantees_figure",
    "prices_figure",
    "recall_figure",
    "sweep_figure",
]
