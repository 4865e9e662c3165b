"""Opening traces: a folder of the user's, or a bundled trace by its name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from h2osim.support import bundled
from h2osim.support.atomic import bring_back
from h2osim.support.errors import UserError
from h2osim.support.reading import regular
from h2osim.support.wording import near
from h2osim.traces import files, manifest
from h2osim.traces.trace import Trace


def open_trace(path_or_name: str | os.PathLike[str]) -> Trace:
    """Open a trace folder, or a bundled trace by its name.

    Reads trace.json and the headers of the files; numbers are read when they are needed. A folder
    goes before a bundled trace of the same name. UserError says which file or field is at fault.
    """
    path = Path(path_or_name)
    if not path.exists():
        bring_back(path)
    if not path.exists():
        path = _bundled(path_or_name)
    fields = manifest.read(path)
    slots = {entry["index"]: _check_header(path, fields, entry) for entry in fields["layers"]}
    return Trace(fields, path, slots, {})


def open_traces(paths_or_names: Iterable[str | os.PathLike[str]]) -> list[Trace]:
    """Open several traces; a folder that holds trace folders stands for all of them, by name."""
    found: list[Trace] = []
    for given in paths_or_names:
        inside: Sequence[str | os.PathLike[str]] = [given]
        if os.path.isdir(given) and not Path(given, "trace.json").is_file():
            inside = sorted(path.parent for path in Path(given).glob("*/trace.json")) or inside
        found += map(open_trace, inside)
    return found


def _bundled(given: str | os.PathLike[str]) -> Path:
    name = os.fspath(given)
    known = bundled_traces()
    if name in known:
        return known[name]
    hint = near(name, known) or f"; bundled traces: {', '.join(known) or 'none'}"
    raise UserError(f"trace {name}: neither a folder nor a bundled trace{hint}")


def _check_header(
    folder: Path, fields: Mapping[str, Any], entry: Mapping[str, Any]
) -> dict[str, files.Slot]:
    """The tensors of one layer's file; UserError when they are not what the manifest says."""
    path = folder / entry["file"]
    if os.path.dirname(os.path.realpath(path)) != os.path.realpath(folder):
        raise UserError(f"{path}: found a link out of the trace's folder, expected a file in it")
    size = regular(path, path)
    if entry["bytes"] != size:
        word = "truncated" if size < entry["bytes"] else "too long"
        raise UserError(f"{path}: {word}: found {size} bytes, trace.json says {entry['bytes']}")
    _, slots = files.read_header(path)
    required = set(entry.get("tensors") or ())
    required |= {"scores"} if "scores" in fields["stores"] else set()
    required |= {"q", "k"} if "qk" in fields["stores"] else set()
    if missing := sorted(required - set(slots)):
        raise UserError(f"{path}: tensor {missing[0]} is missing; found {', '.join(slots)}")
    known = {}
    for name, slot in slots.items():
        wanted = files.expected(
            name, fields["n"], len(fields["heads"]), len(fields["kv_heads"]), fields["head_dim"]
        )
        if wanted is None:
            continue
        if slot.dtype != wanted[0]:
            raise UserError(f"{path}: tensor {name}: found {slot.dtype}, expected {wanted[0]}")
        if not files.fits(slot.shape, wanted[1]):
            raise UserError(
                f"{path}: tensor {name}: found shape {list(slot.shape)}, "
                f"expected {files.shape_text(wanted[1])}"
            )
        known[name] = slot
    if wrong := files.misfit({name: slot.shape for name, slot in known.items()}):
        raise UserError(f"{path}: {wrong}")
    return known


def bundled_traces() -> dict[str, Path]:
    """Name and folder of every bundled trace, in the order of their names.

    Those of ``traces/local/`` (the user's own, not under version control) are found by their names
    too; a bundled trace of the same name goes first.
    """
    try:
        root = bundled.traces()
    except UserError:
        return {}
    found: dict[str, Path] = {}
    for parent in (root, root / "local"):
        if parent.is_dir():
            for place in sorted(parent.iterdir()):
                if (place / "trace.json").is_file():
                    found.setdefault(place.name, place)
    return dict(sorted(found.items()))
