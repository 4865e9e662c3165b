"""Results as a notebook wants them: pandas tables that read by themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from h2osim.replays.results import FORMS, dims_of
from h2osim.report.frames import frame as rows_of

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


def frame(result: xr.Dataset) -> pd.DataFrame:
    """A result as a pandas table: what was measured, by policy, layer, unit and budget.

    The index is where (the result's dimensions), the columns are its variables; budgets that come
    to other tokens in each trace, and their split, stand beside them. What is the same in every
    row, the provenance, is in ``.attrs``; :func:`h2osim.report.frames.frame` has it in columns.

        table = h2osim.frame(h2osim.replay(trace, ["h2o", "tova"], [0.05, 0.2]))
        table["recall"].unstack("budget").groupby("policy").mean()
    """
    form = result.attrs["form"]
    dims = dims_of(form, next(iter(FORMS[form])), "trace" in result.dims)
    table = rows_of(result)
    beside = [name for name in ("tokens", "split", "kind") if name in table]
    measured = [str(name) for name in result.data_vars if name in table]
    found = table[[*dims, *measured, *beside]].set_index(list(dims))
    found.attrs = dict(result.attrs)
    return found
