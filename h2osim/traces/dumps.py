"""Arrays that others saved, by name: seen by their headers, read when they are asked for."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.support.errors import UserError
from h2osim.support.machine import memory
from h2osim.support.reading import regular
from h2osim.traces import files

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_TYPES = {**files.DTYPES, "F64": np.dtype("<f8"), "BF16": np.dtype("<u2")}
"""Of safetensors, in NumPy; bfloat16 as its bits, which are the upper half of a float32's."""


@dataclass(frozen=True)
class Dumped:
    """One array of a file: its shape, its float type ("" for others), and how to read it."""

    shape: tuple[int, ...]
    floats: str
    read: Callable[[], Any]


def read_npz(path: Path) -> dict[str, Dumped]:
    """The arrays of a .npz file; no pickle in it is opened. UserError where it is damaged."""
    regular(path, path)
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                with archive.open(info) as member:
                    version = np.lib.format.read_magic(member)
                    head = {
                        (1, 0): np.lib.format.read_array_header_1_0,
                        (2, 0): np.lib.format.read_array_header_2_0,
                    }[version]
                    shape, _, dtype = head(member)
                if dtype.itemsize * prod(shape) > min(info.file_size, memory()):
                    raise UserError(
                        f"{path}: {name}: says it has shape {list(shape)}, more than is there"
                    )
                kind = dtype.name if dtype.kind == "f" else ""
                found[name] = Dumped(shape, kind, _member(path, name))
    except UserError:
        raise
    except Exception as error:  # what zipfile, zlib and NumPy make of damage is of many kinds
        raise damaged(path, error, ".npz") from None
    return found


def _member(path: Path, name: str) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        try:
            with np.load(path, allow_pickle=False) as archive:
                return np.asarray(archive[name])
        except Exception as error:
            raise damaged(path, error, ".npz") from None

    return read


def read_safetensors(path: Path) -> dict[str, Dumped]:
    """The arrays of a safetensors file; bfloat16 is read as float32."""
    return {
        name: Dumped(slot.shape, _FLOATS.get(slot.dtype, ""), _slot(path, slot))
        for name, slot in files.read_header(path)[1].items()
    }


def _slot(path: Path, slot: files.Slot) -> Callable[[], NDArray[Any]]:
    def read() -> NDArray[Any]:
        dtype = _TYPES[slot.dtype]
        data = np.memmap(path, np.uint8, "r", slot.offset, dtype.itemsize * prod(slot.shape))
        values = data.view(dtype).reshape(slot.shape)
        if slot.dtype == "BF16":
            return (values.astype(np.uint32) << 16).view(np.float32)
        return values

    return read


def damaged(path: Path, error: Exception, kind: str) -> UserError:
    """The error of a file that is not of its kind."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(f"{path}: damaged or no {kind} file: {said[:120]}")
