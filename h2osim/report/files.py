"""Results and figures in files, and the libraries that some formats need."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

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
        require("pyarrow", "parquet", "writing .parquet")


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
            rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in records(result))
            temporary.write_text(f"[\n{rows}\n]\n", encoding="utf-8")
        else:
            table = frame(result)
            if "params" in table:
                table["params"] = [flat(values) for values in table["params"]]
            if suffix == ".csv":
                table.to_csv(temporary, index=False, lineterminator="\n")
            else:
                table.to_parquet(temporary, engine="pyarrow", index=False)
    return target


def save_figure(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure to a file; its ending chooses the format."""
    target = _of_kind(Path(path), "figure", PLOT_SUFFIXES)
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=150)
    return target


def _of_kind(path: Path, what: str, suffixes: tuple[str, ...]) -> Path:
    if path.suffix.lower() not in suffixes:
        raise UserError(
            f"{what} file {path}: found the ending {path.suffix!r}, expected one of "
            f"{', '.join(suffixes)}"
        )
    return path


def require_matplotlib() -> None:
    """UserError, naming the extra, where figures cannot be drawn."""
    require("matplotlib", "plot", "drawing plots")


def require(module: str, extra: str, job: str) -> None:
    """UserError, naming the extra, where a module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{job} needs {module}: run pip install 'h2osim[{extra}]'")
