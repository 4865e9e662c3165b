"""Results in files, and the libraries that some formats need."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from h2osim.report.comparison import result_rows
from h2osim.support.atomic import replacing
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray as xr

SAVE_SUFFIXES = (".nc", ".parquet", ".csv", ".json")


def require_writer(path: Path) -> None:
    """UserError, naming the extra, where a file of this ending cannot be written."""
    if path.suffix.lower() == ".parquet":
        require("pyarrow", "parquet", "writing .parquet")


def save_results(results: xr.Dataset, path: str | os.PathLike) -> Path:
    """Write a replay to a file; its ending chooses the format.

    ``.nc`` keeps the whole Dataset as NetCDF 4; ``.parquet``, ``.csv`` and ``.json`` hold one row
    or record a (policy, layer, unit, budget) with recall and the most keys held. In .parquet and
    .csv the parameters are one text, ``recent=32,scores=full``.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in SAVE_SUFFIXES:
        raise UserError(
            f"results file {target}: found the ending {target.suffix!r}, expected one of "
            f"{', '.join(SAVE_SUFFIXES)}"
        )
    require_writer(target)
    with replacing(target) as temporary:
        if suffix == ".nc":
            results.to_netcdf(temporary, engine="h5netcdf")
        elif suffix == ".json":
            rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in result_rows(results))
            temporary.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
        else:
            import pandas as pd

            frame = pd.DataFrame(
                [{k: flat(v) for k, v in row.items()} for row in result_rows(results)]
            )
            if suffix == ".csv":
                frame.to_csv(temporary, index=False, lineterminator="\n")
            else:
                frame.to_parquet(temporary, engine="pyarrow", index=False)
    return target


def flat(value: object) -> object:
    """A value as one cell: a mapping as ``recent=32,scores=full``, a list joined by commas."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={inner}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ",".join(str(inner) for inner in value)
    return value


def require(module: str, extra: str, job: str) -> None:
    """UserError, naming the extra, where a module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{job} needs {module}: run pip install 'h2osim[{extra}]'")
