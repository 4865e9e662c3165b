"""The store of a sweep: a folder in the Zarr format, version 3, written without the zarr package.

Labelled arrays that many workers write, chunk by chunk, is what Zarr is for: a chunk of the sweep
is one chunk of ``recall`` and one of ``held``, each a file of its own, and xarray, zarr-python and
tensorstore read the folder. It is written here, because a sweep's promise hangs on *when* a file
appears: a chunk's results are written beside their place, flushed to the disk and renamed, and only
then, in the same way, the chunk of ``done`` that says so. Whatever moment a process is killed at, a
chunk that is marked is whole; one that is not is computed again.

    zarr.json                     the group: attributes, what was asked for, all metadata
    recall/c/I/U/0, held/c/I/U/0  results of the chunk of configurations I and units U
    done/c/I/U                    one byte, once both are there
    NAME/c/0                      coordinates
    .h2osim/log.jsonl, lock       who started and finished which chunk; who is at work
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from h2osim.replays.found import Found
from h2osim.replays.plan import WorkPlan
from h2osim.support.errors import UserError
from h2osim.sweeps.identity import check_same, identity

#: The attribute of the group that holds the sweep's identity.
KEY = "h2osim_sweep"
_OWN = ".h2osim"
_DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype("<f8"),
    "int64": np.dtype("<i8"),
    "int32": np.dtype("<i4"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
}
#: Recalls are noise in their low bits: only `held` and coordinates are worth packing.
_GZIP = {"name": "gzip", "configuration": {"level": 1}}

#: Dimensions and values, by name.
Coords = dict[str, tuple[tuple[str, ...], np.ndarray]]


class SweepStore:
    """A sweep's folder."""

    def __init__(self, path: Path):
        self.path = path
        self.meta = _read_group(path)
        self.attributes: dict[str, Any] = self.meta["attributes"]
        self.identity: dict[str, Any] = self.attributes[KEY]["identity"]
        self.arrays: dict[str, dict[str, Any]] = self.meta["consolidated_metadata"]["metadata"]
        configurations, units, _ = self._chunks("recall")
        self.chunk = configurations, units
        self.grid: tuple[int, ...] = tuple(self.arrays["done"]["shape"])

    @classmethod
    def create(
        cls, path: Path, plan: WorkPlan, coords: Coords, attributes: Mapping[str, Any]
    ) -> SweepStore:
        """Lay out an empty store, whole or not at all."""
        dims = ("policy", "unit", "budget")
        full = (*plan.chunk, plan.shape[2])
        also = {"coordinates": " ".join(sorted(set(coords) - set(dims)))}
        arrays = {
            "recall": _array(plan.shape, full, "float64", dims, "NaN", also),
            "held": _array(plan.shape, full, "int32", dims, 0, also, _GZIP),
            "done": _array(plan.grid, (1, 1), "uint8", ("policy_chunk", "unit_chunk"), 0, {}),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
        temporary.mkdir()
        try:
            for name, (on, values) in coords.items():
                text = values.dtype.kind in "OUT"
                kind = "string" if text else str(values.dtype)
                arrays[name] = _array(
                    values.shape, values.shape, kind, on, "" if text else 0, {}, _GZIP
                )
                data = _strings(values) if text else values.astype(_DTYPES[kind]).tobytes()
                place = temporary / name / "/".join(["c", *["0"] * values.ndim])
                _write(place, gzip.compress(data, 1, mtime=0))
            for name, meta in arrays.items():
                _write(temporary / name / "zarr.json", json.dumps(meta, indent=1).encode())
            group = {
                "zarr_format": 3,
                "node_type": "group",
                "attributes": {**attributes, KEY: {"identity": identity(plan)}},
                "consolidated_metadata": {
                    "kind": "inline", "must_understand": False, "metadata": arrays,
                },
            }  # fmt: skip
            _write(temporary / "zarr.json", json.dumps(group, indent=1).encode())
            (temporary / _OWN).mkdir()
            os.rename(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls(path)

    def check(self, plan: WorkPlan) -> None:
        """UserError, in one line, unless this is the store of the same sweep."""
        check_same(self.identity, identity(plan), self.path)

    # --- chunks ------------------------------------------------------------------------------

    def finished(self, index: int) -> bool:
        """Whether this chunk is done."""
        return self._mark(index).exists()

    def started(self, index: int) -> None:
        """Note that work on a chunk begins."""
        self._log({"start": index})

    def room(self, index: int) -> Found:
        """What a chunk's results are entered into before they are written."""
        row, column = divmod(index, self.grid[1])
        (c, u), (configurations, units, budgets) = self.chunk, self.arrays["recall"]["shape"]
        shape = min(c, configurations - row * c), min(u, units - column * u), budgets
        return Found.empty(shape)

    def put(self, index: int, found: Found) -> None:
        """Write a chunk's results and then mark it as done; each file is whole or absent."""
        place = "/".join(["c", *map(str, divmod(index, self.grid[1])), "0"])
        for name, values in (("recall", found.recall), ("held", found.held)):
            meta = self.arrays[name]
            whole = np.full(self._chunks(name), meta["fill_value"], _DTYPES[meta["data_type"]])
            whole[tuple(map(slice, values.shape))] = values
            data = whole.tobytes()
            packed = any(codec["name"] == "gzip" for codec in meta["codecs"])
            _write(self.path / name / place, gzip.compress(data, 1, mtime=0) if packed else data)
        _write(self._mark(index), b"\1")
        self._log({"done": index})

    def _mark(self, index: int) -> Path:
        row, column = divmod(index, self.grid[1])
        return self.path / "done" / "c" / str(row) / str(column)

    def _log(self, event: dict[str, Any]) -> None:
        here = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        line = json.dumps({**event, **here})
        with open(self.path / _OWN / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(line + "\n")

    # --- reading -----------------------------------------------------------------------------

    def read(self, name: str, at: tuple[slice, ...] | None = None) -> np.ndarray:
        """An array, or a part of it (slices of step 1); only the chunks it touches are read."""
        meta = self.arrays[name]
        shape, chunks = tuple(meta["shape"]), self._chunks(name)
        at = at or tuple(slice(None) for _ in shape)
        bounds = [part.indices(size)[:2] for part, size in zip(at, shape, strict=True)]
        text = meta["data_type"] == "string"
        dtype: np.dtype[Any] = np.dtype(object) if text else _DTYPES[meta["data_type"]]
        size = [max(0, stop - start) for start, stop in bounds]
        found = np.full(size, np.nan if meta["fill_value"] == "NaN" else meta["fill_value"], dtype)
        if 0 in size:
            return found
        ranges = [
            range(low // c, -(-high // c)) for (low, high), c in zip(bounds, chunks, strict=True)
        ]
        packed = any(codec["name"] == "gzip" for codec in meta["codecs"])
        for key in np.ndindex(*(len(r) for r in ranges)):
            number = [r[i] for r, i in zip(ranges, key, strict=True)]
            file = self.path / name / "/".join(["c", *map(str, number)])
            try:
                data = file.read_bytes()
            except FileNotFoundError:
                continue
            data = gzip.decompress(data) if packed else data
            part = _texts(data) if text else np.frombuffer(data, dtype)
            inside, outside = [], []
            for i, c, (start, stop) in zip(number, chunks, bounds, strict=True):
                low, high = max(i * c, start), min((i + 1) * c, stop)
                inside.append(slice(low - i * c, high - i * c))
                outside.append(slice(low - start, high - start))
            found[tuple(outside)] = part.reshape(chunks)[tuple(inside)]
        return found

    def _chunks(self, name: str) -> tuple[int, ...]:
        return tuple(self.arrays[name]["chunk_grid"]["configuration"]["chunk_shape"])

    # --- one at a time -----------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second process at work on this store; a killed one leaves no lock behind."""
        try:
            import fcntl
        except ImportError:  # no such locks on this system: chunks stay whole, some run twice
            yield
            return
        with open(self.path / _OWN / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.path}: another process is sweeping into it") from None
            yield

    def sweep_up(self) -> None:
        """Remove what killed processes had half written, once nobody writes any more."""
        for name in ("recall", "held", "done"):
            for left in (self.path / name).rglob(".*.partial"):
                left.unlink(missing_ok=True)


def _read_group(path: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
        assert meta["attributes"][KEY]["identity"] and meta["consolidated_metadata"]
    except (OSError, ValueError, KeyError, AssertionError, TypeError):
        raise UserError(f"{path}: found something else than the store of a sweep") from None
    return meta


def _array(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    kind: str,
    dims: tuple[str, ...],
    fill: Any,
    attributes: Mapping[str, Any],
    *codecs: Any,
) -> dict[str, Any]:
    """The metadata of a Zarr array."""
    first = {"name": "bytes", "configuration": {"endian": "little"}}
    if kind == "string":
        first = {"name": "vlen-utf8"}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": kind,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunks)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if kind == "bool" else fill,
        "codecs": [first, *codecs],
        "attributes": dict(attributes),
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def _strings(values: np.ndarray) -> bytes:
    """Texts as the codec vlen-utf8 has them: how many, then the length and the bytes of each."""
    words = [str(word).encode() for word in values.ravel()]
    pieces = [len(words).to_bytes(4, "little")]
    for word in words:
        pieces += [len(word).to_bytes(4, "little"), word]
    return b"".join(pieces)


def _texts(data: bytes) -> np.ndarray:
    """The reverse of :func:`_strings`."""
    count, at = int.from_bytes(data[:4], "little"), 4
    found = np.empty(count, object)
    for i in range(count):
        size = int.from_bytes(data[at : at + 4], "little")
        found[i] = data[at + 4 : at + 4 + size].decode()
        at += 4 + size
    return found


def _write(path: Path, data: bytes) -> None:
    """Write a file that is whole whenever it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.{uuid.uuid4().hex}.partial"
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
