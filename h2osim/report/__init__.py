"""What people get to see of results: tables, figures and files.

``frames`` turns a result into rows and records, ``best`` sums up a sweep, ``terminal`` and
``pages`` make tables, ``figures`` and ``heatmap`` make figures, and ``files`` saves both. Nothing
heavy is imported before it is used: rich for tables, matplotlib for figures, pandas and
pyarrow for rows and files.
"""

from h2osim.report.best import best_records, summarise
from h2osim.report.figures import (
    allocation_figure,
    attention_figure,
    guarantees_figure,
    prices_figure,
    recall_figure,
)
from h2osim.report.files import (
    PLOT_SUFFIXES,
    SAVE_SUFFIXES,
    require_matplotlib,
    require_writer,
    save_figure,
    save_results,
)
from h2osim.report.frames import (
    MEASURED,
    allocation_records,
    comparison_records,
    flat,
    frame,
    optimum_records,
    records,
    target_records,
    with_optimum,
)
from h2osim.report.heatmap import axes_of, sweep_figure
from h2osim.report.pages import (
    generators_table,
    info_page,
    policies_table,
    policy_page,
    policy_record,
    trace_record,
    traces_table,
)
from h2osim.report.terminal import (
    allocation_table,
    best_table,
    bounds_table,
    comparison_table,
    comparison_title,
    one_pass_line,
    regret_table,
    target_table,
)

__all__ = [
    "MEASURED",
    "PLOT_SUFFIXES",
    "SAVE_SUFFIXES",
    "allocation_figure",
    "allocation_records",
    "allocation_table",
    "attention_figure",
    "axes_of",
    "best_records",
    "best_table",
    "bounds_table",
    "comparison_records",
    "comparison_table",
    "comparison_title",
    "flat",
    "frame",
    "generators_table",
    "guarantees_figure",
    "info_page",
    "one_pass_line",
    "optimum_records",
    "policies_table",
    "policy_page",
    "policy_record",
    "prices_figure",
    "recall_figure",
    "records",
    "regret_table",
    "require_matplotlib",
    "require_writer",
    "save_figure",
    "save_results",
    "summarise",
    "sweep_figure",
    "target_records",
    "target_table",
    "trace_record",
    "traces_table",
    "with_optimum",
]
