"""The store of a sweep: a folder in the Zarr format, version 3.

Labelled arrays that many workers write, chunk by chunk, is what Zarr is for: a chunk of the sweep
is one chunk of each array of results, each a file of its own. A sweep's promise depends on
*when* a file appears: a chunk's results are written under a temporary name, flushed to the disk
and renamed, and only then, in the same way, its mark, which holds a digest of them. Whenever a
process is killed, a chunk whose mark fits is whole; any other is computed again.

    zarr.json                     the group: attributes, the sweep's identity, all metadata
    recall/c/I/U/0, kept, held    results of the chunk of configurations I and units U; errors too
    mass/c/U                      the mass of these units, the same from every I
    done/c/I/U/0                  the chunk's mark: a sha256 of its files, once they are there
    NAME/c/0                      coordinates
    .h2osim/layout.json           a sha256 of every file above but results and marks
    .h2osim/log.jsonl, lock       who started and finished each chunk; a lock
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import zarr
from msgspec import Meta, Struct
from zarr.codecs import ZstdCodec
from zarr.storage import LocalStore

from h2osim.replays.found import Found
from h2osim.replays.measures import MEASURES
from h2osim.replays.plan import WorkPlan
from h2osim.replays.results import FORMS, VARIABLES, Labels
from h2osim.support.atomic import hidden_folder, locked_file, naming, replacing, sweep
from h2osim.support.errors import UserError
from h2osim.support.identity import check_same
from h2osim.support.reading import Sha256, json_of, regular
from h2osim.sweeps.identity import identity

#: The attribute of the group that holds the sweep's identity.
KEY = "h2osim_sweep"
_OWN = ".h2osim"
_LAYOUT = f"{_OWN}/layout.json"
_DIMS = ("policy", "unit", "budget")
#: The arrays of results, and what they hold where nothing was computed.
RESULTS: dict[str, float] = {"recall": np.nan, "kept": -1, "held": 0, "mass": 0}
#: A text, or all texts of a coordinate, is no larger than this, in bytes.
_MOST_TEXT = 1 << 26
#: No chunk has more numbers than this.
_MOST_NUMBERS = 1 << 27
#: Recalls are noise in their low bits: only integers and coordinates are worth packing.
_PACKED = (ZstdCodec(level=1),)


_Three = Annotated[int, Meta(ge=3, le=3)]


class _Codec(Struct):
    """Zarr finds codecs by name, and some that it may find run code: only ours are let in."""

    name: Annotated[str, Meta(pattern=r"^(bytes|vlen-utf8|zstd)\Z")]


_Shape = list[Annotated[int, Meta(ge=0, le=1 << 24)]]


class _Chunks(Struct):
    chunk_shape: _Shape


class _Grid(Struct):
    name: Annotated[str, Meta(pattern=r"^regular\Z")]
    configuration: _Chunks


class _Array(Struct):
    zarr_format: _Three
    node_type: Annotated[str, Meta(pattern=r"^array\Z")]
    shape: _Shape
    chunk_grid: _Grid
    data_type: str
    codecs: Annotated[list[_Codec], Meta(max_length=2)]  # zstd once


class _Arrays(Struct):
    metadata: dict[str, _Array]


class _Group(Struct):
    """What zarr.json may hold."""

    zarr_format: _Three
    consolidated_metadata: _Arrays


class DurableStore(LocalStore):
    """A Zarr store in a folder whose files are on the disk before they get their names."""

    async def _set(self, key: str, value: Any, exclusive: bool = False) -> None:
        self._check_writable()
        if exclusive and (self.root / key).exists():
            raise FileExistsError
        await asyncio.to_thread(_write, self.root / key, value.to_bytes())

    def set_sync(self, key: str, value: Any) -> None:
        """Write one file."""
        self._check_writable()
        _write(self.root / key, value.to_bytes())


class SweepStore:
    """A sweep's folder."""

    def __init__(self, path: Path):
        self.path = path
        with understood(path):
            self._metadata = _check_layout(path)
            self._whose = _sha256(path / _LAYOUT)
            self._arrays = zarr.open_group(DurableStore(path), mode="r+", use_consolidated=True)
            self.identity: dict[str, Any] = self._arrays.attrs[KEY]["identity"]
            self._shape: tuple[int, ...] = self._arrays["recall"].shape
            self._errors = MEASURES[self.identity.get("measure", "recall")]
            self._results = (*RESULTS, *self._errors)
            self.chunk: tuple[int, int] = self._arrays["recall"].chunks[:2]
            self.grid: tuple[int, int] = self._arrays["done"].shape[:2]

    @classmethod
    def create(
        cls, path: Path, plan: WorkPlan, coords: Mapping[str, Labels], attributes: Mapping[str, Any]
    ) -> SweepStore:
        """Lay out an empty store, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with naming(path), hidden_folder(path.parent) as folder:
            temporary = folder / path.name
            (temporary / _OWN).mkdir(parents=True)
            _lay_out(temporary, plan, coords, attributes)
            digests = {name: _sha256(temporary / name) for name in _files(temporary)}
            _write(temporary / _LAYOUT, json.dumps(digests, indent=1).encode())
            os.rename(temporary, path)
        return cls(path)

    def check(self, plan: WorkPlan) -> None:
        """UserError, in one line, unless this is the store of the same sweep."""
        check_same(self.identity, identity(plan), self.path)

    def verify(self) -> None:
        """UserError, in one line, where a chunk is not as it was written."""
        marks = (mark.parts[-3:-1] for mark in (self.path / "done" / "c").glob("*/*/0"))
        places = sorted((int(i), int(u)) for i, u in marks if (i + u).isdecimal())
        for index in (i * self.grid[1] + u for i, u in places):
            if not self.finished(index):
                raise UserError(
                    f"{self.path}: chunk {index} is damaged: its files are not as they were "
                    "written; the command that made the store computes it again"
                )
        for name in self._results:
            _check_size(self.path, name, self._metadata[name])

    # --- chunks ------------------------------------------------------------------------------

    def finished(self, index: int) -> bool:
        """Whether this chunk is done, and still as it was written."""
        try:
            return self._mark(index).read_bytes() == self._digest(index)
        except OSError:
            return False

    def started(self, index: int) -> None:
        """Note that work on a chunk begins."""
        self._log({"start": index})

    def room(self, index: int) -> Found:
        """What a chunk's results are entered into before they are written."""
        configurations, units = (part.stop - part.start for part in self._slices(index))
        return Found.empty((configurations, units, self._shape[2]), errors=self._errors)

    def put(self, index: int, found: Found) -> None:
        """Write a chunk's results and then mark it as done; each file is whole or absent."""
        # What was damaged must not be read again; the mass is that of other chunks too.
        for name in ("done", *(name for name in self._results if name != "mass")):
            self._file(name, index).unlink(missing_ok=True)
        at = self._slices(index)
        for name in self._results:
            values = found.errors[name] if name in self._errors else getattr(found, name)
            self._arrays[name][at if values.ndim > 1 else at[1]] = values
        mark = np.frombuffer(self._digest(index), np.uint8)
        self._arrays["done"][divmod(index, self.grid[1])] = mark
        self._log({"done": index})

    def _slices(self, index: int) -> tuple[slice, slice]:
        first = [i * c for i, c in zip(divmod(index, self.grid[1]), self.chunk, strict=True)]
        (i, u), (c, v) = first, self.chunk
        return slice(i, min(i + c, self._shape[0])), slice(u, min(u + v, self._shape[1]))

    def _file(self, name: str, index: int) -> Path:
        row, column = divmod(index, self.grid[1])
        place = (column,) if name == "mass" else (row, column, 0)
        return self.path.joinpath(name, "c", *map(str, place))

    def _mark(self, index: int) -> Path:
        return self._file("done", index)

    def _digest(self, index: int) -> bytes:
        """A sha256 of a chunk's files, its number and sweep; OSError where a file is missing."""
        total = hashlib.sha256(f"{index} {self._whose}".encode())
        for name in self._results:
            total.update(hashlib.sha256(self._file(name, index).read_bytes()).digest())
        return total.digest()

    def _log(self, event: dict[str, Any]) -> None:
        here = {"time": time.time(), "host": socket.gethostname(), "pid": os.getpid()}
        line = json.dumps({**event, **here})
        file = self.path / _OWN / "log.jsonl"
        with naming(file), open(file, "a", encoding="utf-8") as log:
            log.write(line + "\n")

    # --- one at a time -----------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second process at work on this store; a killed one leaves no lock behind."""
        with locked_file(self.path / _OWN / "lock") as mine:
            if not mine:
                raise UserError(f"{self.path}: another process is sweeping into it")
            yield

    @contextmanager
    def alone(self, index: int) -> Iterator[None]:
        """Wait until no other process is at work on a chunk, and keep others from it."""
        with locked_file(self.path / _OWN / f"chunk-{index}", wait=True):
            yield

    def sweep_up(self) -> None:
        """Remove what killed processes left, after all writing has ended."""
        sweep(self.path, below=True)
        sweep(self.path.parent)
        for left in (self.path / _OWN).glob("chunk-*"):
            left.unlink(missing_ok=True)


def _lay_out(
    folder: Path, plan: WorkPlan, coords: Mapping[str, Labels], attributes: Mapping[str, Any]
) -> None:
    """Write the group, empty arrays of results and marks, and the coordinates."""
    whole = {**attributes, KEY: {"identity": identity(plan)}}
    also = {"coordinates": " ".join(sorted(set(coords) - set(_DIMS)))}
    shape = dict(zip(_DIMS, plan.shape, strict=True))
    chunk = dict(zip(_DIMS, (*plan.chunk, plan.shape[2]), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that texts are no part of Zarr's core
        group = zarr.create_group(DurableStore(folder), attributes=whole)
        # Chunks that hold nothing but the fill value are written too: a mark speaks of files.
        some: dict[str, Any] = {"compressors": None, "config": {"write_empty_chunks": True}}
        for name, nothing in {**RESULTS, **dict.fromkeys(plan.errors, np.nan)}.items():
            dims, dtype = FORMS["sweep"][name], VARIABLES[name].dtype
            packed = None if dtype == "float64" else _PACKED
            group.create_array(
                name, shape=[shape[d] for d in dims], chunks=[chunk[d] for d in dims], dtype=dtype,
                fill_value=nothing, dimension_names=dims, attributes=also,
                **{**some, "compressors": packed},
            )  # fmt: skip
        group.create_array(
            "done", shape=(*plan.grid, 32), chunks=(1, 1, 32), dtype="uint8", fill_value=0,
            dimension_names=("policy_chunk", "unit_chunk", "sha256"), **some,
        )  # fmt: skip
        for name, (on, values) in coords.items():
            text = values.dtype.kind in "OUT"
            array = group.create_array(
                name, shape=values.shape, dtype=str if text else values.dtype, chunks=values.shape,
                dimension_names=on, compressors=_PACKED, fill_value="" if text else 0,
            )  # fmt: skip
            array[...] = values.astype(object) if text else values
        zarr.consolidate_metadata(DurableStore(folder))


def _files(folder: Path) -> list[str]:
    """The files of a new store, without its own."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != _OWN)


def _check_layout(path: Path) -> dict[str, dict[str, Any]]:
    """The metadata of a store's arrays; UserError unless these and coordinates are as written."""
    digests = json_of(path / _LAYOUT, dict[str, Sha256], 1 << 20)
    for name in sorted(digests.keys() | {"zarr.json"}):
        try:
            found = _sha256(path / name)
        except (OSError, UserError):
            found = None
        if found != digests.get(name):
            raise _Damaged(
                f"{path}: damaged: {name} is not as it was written; give another --output"
            )
    found = json_of(path / "zarr.json", _Group, 1 << 26)
    for name, array in found["consolidated_metadata"]["metadata"].items():
        numbers = math.prod(array["chunk_grid"]["configuration"]["chunk_shape"])
        if numbers > _MOST_NUMBERS:
            raise _Damaged(f"{path}: array {name} has chunks of {numbers} numbers")
        if f"{name}/c/0" in digests:  # a coordinate; results are looked at when they are read
            _check_size(path, name, array)
    return found["consolidated_metadata"]["metadata"]


def _check_size(path: Path, name: str, array: Mapping[str, Any]) -> None:
    """UserError where a packed file says that it unpacks to more than its chunk has."""
    if array["codecs"][-1]["name"] != "zstd":
        return
    numbers = math.prod(array["chunk_grid"]["configuration"]["chunk_shape"])
    kind = array["data_type"]
    most = _MOST_TEXT if kind == "string" else numbers * np.dtype(kind).itemsize
    for file in (path / name).glob("c/**/*"):
        if file.is_file() and "/.h2osim-" not in str(file) and _unpacked(file) > most:
            raise _Damaged(f"{file}: damaged: expected what unpacks to at most {most} bytes")


def _unpacked(file: Path) -> float:
    """How many bytes a file of the Zstandard format (RFC 8878, 3.1.1.1) says it unpacks to."""
    with open(file, "rb") as opened:
        head = opened.read(18)
    if head[:4] != b"\x28\xb5\x2f\xfd" or len(head) < 6:
        return math.inf
    kind, single, labelled = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
    size = (single, 2, 4, 8)[kind]
    start = 6 - single + (0, 1, 2, 4)[labelled]
    value = int.from_bytes(head[start : start + size], "little") + 256 * (kind == 1)
    return value if size else math.inf


class _Damaged(UserError):
    """A store that was once whole."""


@contextmanager
def understood(path: Path) -> Iterator[None]:
    """One line for whatever zarr and xarray make of files that they do not understand."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that texts are no part of Zarr's core
            yield
    except _Damaged:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: found something else than the store of a sweep: {reason}"
        ) from None


def _sha256(path: Path) -> str:
    regular(path, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(path: Path, data: bytes) -> None:
    """Write a file that is whole, and on the disk, whenever it is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
