"""One layer of a trace as a safetensors file: where its tensors lie, how to map and to write them.

The format is safetensors' own (8 bytes little endian length of the header, header in JSON, tensors
one after the other), so that its package opens these files. We read it ourselves because the NumPy
reader of that package copies every tensor into memory, while a replay of a long trace wants to read
the triangle straight from the page cache: here a tensor is a view of one memory map.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.support.errors import UserError

DTYPES: dict[str, np.dtype[Any]] = {"F16": np.dtype("<f2"), "F32": np.dtype("<f4")}
ALIGNMENT = 64


@dataclass(frozen=True)
class Slot:
    """Where one tensor lies: safetensors name of its dtype, its shape, its offset in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return DTYPES[self.dtype].itemsize * prod(self.shape)


def expected(
    name: str, n: int, heads: int, kv_heads: int, head_dim: int | None
) -> tuple[str, tuple[int | None, ...]] | None:
    """Dtype and shape a tensor must have (None in a shape: any size); None for an unknown name."""
    shapes: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "scores": ("F16", (heads, tri(n))),
        "lse": ("F32", (heads, n)),
        "row_sum": ("F32", (heads, n)),
        "q": ("F32", (heads, n, head_dim)),
        "k": ("F32", (kv_heads, n, head_dim)),
        "v": ("F32", (kv_heads, n, None)),  # some models have values of another size than keys
        "v_norm1": ("F32", (kv_heads, n)),
        "v_norm2": ("F32", (kv_heads, n)),
        "k_norm2": ("F32", (kv_heads, n)),
    }
    return shapes.get(name)


def fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the one wanted."""
    return len(found) == len(wanted) and all(
        w is None or f == w for f, w in zip(found, wanted, strict=True)
    )


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape as it stands in a message."""
    return "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"


def layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Slot]]:
    """The bytes before the tensors, and where each tensor goes.

    Four-byte tensors go first, so that all are aligned for their dtype.
    """
    names = sorted(tensors, key=lambda name: -DTYPES[tensors[name][0]].itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "h2osim-trace"}}
    offsets, end = {}, 0
    for name in names:
        dtype, shape = tensors[name]
        size = DTYPES[dtype].itemsize * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        offsets[name] = end
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    start = len(text) + 8
    slots = {
        name: Slot(tensors[name][0], tuple(tensors[name][1]), start + offsets[name])
        for name in names
    }
    return len(text).to_bytes(8, "little") + text, slots


def read_header(path: Path) -> dict[str, Slot]:
    """Where the tensors of a file lie; reads the header only, and the file's size.

    UserError when the file is missing, is no safetensors file, or is not as long as it says.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise UserError(
                    f"{path}: truncated or no safetensors file: found {size} bytes, expected at "
                    f"least the {8 + length} of its header"
                )
            text = file.read(length)
    except FileNotFoundError:
        raise UserError(f"{path}: file not found, but trace.json names it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    start = 8 + length
    try:
        header = json.loads(text)
        slots, end = {}, 0
        items = [(name, item) for name, item in header.items() if name != "__metadata__"]
        for name, item in sorted(items, key=lambda pair: pair[1]["data_offsets"]):
            dtype, shape = item["dtype"], tuple(int(s) for s in item["shape"])
            begin, stop = (int(x) for x in item["data_offsets"])
            if dtype in DTYPES:
                slots[name] = Slot(dtype, shape, start + begin)
                if min(shape, default=0) < 0 or slots[name].nbytes != stop - begin:
                    raise ValueError
            else:  # a reader must be able to say "wrong dtype", so keep it, but never map it
                slots[name] = Slot(str(dtype), shape, start + begin)
            if begin != end or stop < begin:
                raise ValueError
            end = stop
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: its safetensors header is damaged") from None
    if size != start + end:
        word = "truncated" if size < start + end else "too long"
        raise UserError(f"{path}: {word}: found {size} bytes, expected {start + end}")
    return slots


def map_tensors(path: Path, slots: Mapping[str, Slot]) -> dict[str, NDArray[Any]]:
    """Read-only views of the tensors over one memory map; float16 as its uint16 bit patterns.

    Reads nothing. The views are plain C-contiguous arrays; the map lives as long as one of them.
    """
    try:
        whole = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be mapped into memory: {error}") from None
    views = {}
    for name, slot in slots.items():
        if slot.offset + slot.nbytes > whole.size:
            raise UserError(f"{path}: truncated since it was opened: found {whole.size} bytes")
        dtype: np.dtype[Any] = np.dtype("<u2") if slot.dtype == "F16" else DTYPES[slot.dtype]
        count = prod(slot.shape)
        view = np.frombuffer(whole, dtype=dtype, count=count, offset=slot.offset)
        if slot.offset % dtype.itemsize:  # only in files of others: ours are aligned
            view = view.copy()
            view.flags.writeable = False
        views[name] = view.reshape(slot.shape)
    return views


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
