"""Several texts recorded with a model that is loaded once, each into a trace in one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from h2osim.models import recorder
from h2osim.models.loading import Model
from h2osim.models.wanted import Wanted
from h2osim.support.errors import UserError
from h2osim.support.given import printable
from h2osim.support.identity import check_same
from h2osim.support.progress import Progress
from h2osim.traces import manifest
from h2osim.traces.catalogue import open_trace
from h2osim.traces.writer import TraceWriter

LONGEST = 200
"""Bytes of a name: file systems take 255, and something may be put behind it."""


def place(folder: str | os.PathLike[str], name: str) -> Path:
    """The folder of a text's trace; UserError for a name that no folder can have."""
    size = len(printable(name).encode())
    if name == "trace.json":
        raise UserError(f"text {name}: expected another name; this is the file that tells a trace")
    if not name.isprintable() or name.startswith(".") or {*"/\\"} & {*name} or not name.strip():
        raise UserError(
            f"text {name!r}: expected a name for a folder, without / and \\ and no dot in front"
        )
    if size > LONGEST:
        raise UserError(
            f"text {name[:20]}…: found a name of {size} bytes, expected at most {LONGEST}"
        )
    return Path(folder, name)


def run(
    model: Any, tokenizer: Any, wanted: Mapping[str, Wanted], folder: Path, progress: Progress
) -> list[Path]:
    """Record what is wanted and not there yet; see `h2osim.record_many`."""
    if not wanted:
        raise UserError("texts: found none, expected at least one")
    found = _found(folder)
    again = {name for name, one in wanted.items() if one.overwrite}
    kept = {name: fields for name, fields in found.items() if name not in again}
    any_one = next(iter(wanted.values()))
    for name, fields in kept.items():
        had: dict[str, Any] = {"settings": fields["provenance"].get("settings", {})}
        asked: dict[str, Any] = {"settings": any_one.settings}
        if name in wanted:
            had["text"] = (fields["text"] or {}).get("sha256")
            asked["text"] = wanted[name].text_sha256
        check_same(had, asked, folder / name, "recording")
        if name in wanted:
            open_trace(folder / name)  # its files may have been moved or cut short since
    todo = {name: one for name, one in wanted.items() if name not in kept}
    for name, one in todo.items():
        if name not in found and os.path.lexists(one.path):
            raise UserError(f"{one.path}: exists and is no trace; nothing was written")
        TraceWriter(one.path, overwrite=one.overwrite).attempt()

    loaded = recorder.ready(model, tokenizer, any_one.device, progress)
    for name, fields in kept.items():
        had = {"model": {key: (fields["model"] or {}).get(key) for key in _of(loaded)}}
        check_same(had, {"model": _of(loaded)}, folder / name, "recording")
    sizes = {
        name: len(recorder.token_ids(loaded, one)) + one.generate for name, one in todo.items()
    }
    done = 0
    for number, (name, one) in enumerate(todo.items(), 1):

        def tell(
            part: float, whole: float, what: str, before: int = done, name: str = name,
            at: str = f"{name} ({number} of {len(todo)})",
        ) -> None:  # fmt: skip
            progress(before + sizes[name] * part / whole, sum(sizes.values()), f"{at}, {what}")

        recorder.run(lambda: loaded, replace(one, progress=tell))
        done += sizes[name]
    return [one.path for one in wanted.values()]


def _found(folder: Path) -> dict[str, dict[str, Any]]:
    """The manifests of the traces in a folder, by the names of the traces' folders."""
    if (folder / "trace.json").exists():
        raise UserError(f"{folder}: is a trace, expected a folder for several")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: exists and is no folder; nothing was written")
    places = sorted(path.parent for path in folder.glob("*/trace.json"))
    return {path.name: manifest.read(path) for path in places}


def _of(loaded: Model) -> dict[str, str | None]:
    """What tells a model from others."""
    return {"name": loaded.name, "revision": loaded.revision, "sha256": loaded.sha256}
