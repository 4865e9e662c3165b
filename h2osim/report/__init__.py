"""Tables, plots and files made from results.

Nothing heavy is imported before it is used: rich for tables, matplotlib for plots, pandas and
pyarrow for files. Files are written under a temporary name and then renamed, so that an
interrupted run leaves nothing half written.
"""

from h2osim.report.comparison import (
    comparison_records,
    comparison_table,
    comparison_title,
    one_pass_line,
    regret_table,
    target_records,
    target_table,
    with_optimum,
)
from h2osim.report.files import SAVE_SUFFIXES, flat, require_writer, save_results
from h2osim.report.pages import (
    generators_table,
    info_page,
    policies_table,
    policy_page,
    policy_record,
    trace_record,
    traces_table,
)
from h2osim.report.plots import (
    PLOT_SUFFIXES,
    plot_allocation,
    plot_attention,
    plot_guarantees,
    plot_prices,
    plot_recall,
    require_matplotlib,
)

__all__ = [
    "PLOT_SUFFIXES",
    "SAVE_SUFFIXES",
    "comparison_records",
    "comparison_table",
    "comparison_title",
    "flat",
    "generators_table",
    "info_page",
    "one_pass_line",
    "plot_allocation",
    "plot_attention",
    "plot_guarantees",
    "plot_prices",
    "plot_recall",
    "policies_table",
    "policy_page",
    "policy_record",
    "regret_table",
    "require_matplotlib",
    "require_writer",
    "save_results",
    "target_records",
    "target_table",
    "trace_record",
    "traces_table",
    "with_optimum",
]
