"""Results and figures in files, and the libraries that some formats need."""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2osim.report.frames import flat, frame, records
from h2osim.support.atomic import replacing
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

SAVE_SUFFIXES = (".nc", ".parquet", ".csv", ".json")
PLOT_SUFFIXES = (".png", ".pdf", ".svg")


def require_writer(path: Path) -> None:
    """UserError, naming the extra, where a file of this ending cannot be written."""
    if path.suffix.lower() == ".parquet":
        require("pyarrow", "'h2osim[parquet]'", "writing .parquet")
    if path.suffix.lower() == ".nc":
        require("h5netcdf", "h5netcdf", "writing .nc")


def save_results(result: xr.Dataset, path: str | os.PathLike) -> Path:
    """Write a result to a file; its ending chooses the format.

    ``.nc`` keeps the whole Dataset as NetCDF 4; ``.parquet``, ``.csv`` and ``.json`` hold the rows
    of :func:`h2osim.report.frames.frame`, attributes included. In .parquet and .csv the parameters
    are one text, ``recent=32,scores=full``.
    """
    target = _of_kind(Path(path), "results", SAVE_SUFFIXES)
    require_writer(target)
    suffix = target.suffix.lower()
    with replacing(target) as temporary:
        if suffix == ".nc":
            result.to_netcdf(temporary, engine="h5netcdf")
        elif suffix == ".json":
            temporary.write_text(json_text(records(result)) + "\n", encoding="utf-8")
        else:
            table = frame(result)
            if "params" in table:
                table["params"] = [flat(values) for values in table["params"]]
            if suffix == ".csv":
                table.to_csv(temporary, index=False, lineterminator="\n")
            else:
                table.to_parquet(temporary, engine="pyarrow", index=False)
    return target


def json_text(value: object) -> str:
    """A value as JSON, a record a line where it is a list; NaN and infinities are null."""
    if not isinstance(value, list):
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, indent=2)
    rows = [json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) for row in value]
    return "[\n" + ",\n".join(rows) + "\n]" if rows else "[]"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure to a file; its ending chooses the format."""
    target = _of_kind(Path(path), "figure", PLOT_SUFFIXES)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)
    return target


def write_text(text: str, path: Path) -> Path:
    """Write a text to a file, which is whole or not there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _of_kind(path: Path, what: str, suffixes: tuple[str, ...]) -> Path:
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{what} file {path}: found the ending {path.suffix!r}, expected one of "
            f"{', '.join(suffixes)}"
        )
    return path


def require_matplotlib() -> None:
    """UserError, naming the extra, where figures cannot be drawn."""
    # it tells a user without a writable home what it does instead
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    require("matplotlib", "'h2osim[plot]'", "drawing plots")


def require(module: str, package: str, job: str) -> None:
    """UserError, naming the extra, where a module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{job} needs {module}: run pip install {package}")
