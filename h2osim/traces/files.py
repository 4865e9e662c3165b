"""One layer of a trace as a safetensors file: where its tensors lie, how to map and to write them.

The format is safetensors' own (8 bytes little endian length of the header, header in JSON, tensors
one after the other), so that its package opens these files. We read it ourselves because the NumPy
reader of that package copies every tensor into memory, while a replay of a long trace wants to read
the triangle straight from the page cache: here a tensor is a view of one memory map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.support import reading
from h2osim.support.errors import UserError

DTYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "I8": np.dtype("i1"), "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}  # fmt: skip
ALIGNMENT = 64
MOST_HEADER = 1 << 20
"""A longer header is refused unread: ours take hundreds of bytes."""

Size = Annotated[int, Meta(ge=0)]


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
        "q_plain": ("F32", (heads, n, head_dim)),
        "k": ("F32", (kv_heads, n, head_dim)),
        "v": ("F32", (kv_heads, n, None)),  # some models have values of another size than keys
        "v_q8": ("I8", (kv_heads, n, None)),
        "v_scale": ("F32", (kv_heads, n)),
        "v_norm1": ("F32", (kv_heads, n)),
        "wv_norm1": ("F32", (heads, n)),
        "v_norm2": ("F32", (kv_heads, n)),
        "k_norm2": ("F32", (kv_heads, n)),
        "w_o": ("F32", (heads, None, None)),
        "x_norm": ("F32", (n,)),
    }
    return shapes.get(name)


def fits(found: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    """Whether a shape is the one wanted."""
    return len(found) == len(wanted) and all(
        f > 0 and w in (None, f) for f, w in zip(found, wanted, strict=True)
    )


def misfit(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What is wrong with a layer's output projection beside its other tensors; None if nothing."""
    if ("w_o" in shapes) != ("x_norm" in shapes):
        return "found one of tensors w_o and x_norm, expected both or none"
    if "w_o" in shapes:
        size = next((shapes[name][-1] for name in ("v", "v_q8") if name in shapes), None)
        if size is None:
            return "tensor w_o: found no values, whose size it has"
        if shapes["w_o"][1] != size:
            return f"tensor w_o: found shape {list(shapes['w_o'])}, expected values' size {size}"
    return None


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape as it stands in a message."""
    return "[" + ", ".join("any" if s is None else str(s) for s in shape) + "]"


def layout(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> tuple[bytes, dict[str, Slot]]:
    """The bytes before the tensors, and where each tensor goes.

    Tensors of wide numbers go first, so that all are aligned for their dtype.
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


class _Tensor(Struct):
    """What a header says of one tensor."""

    dtype: str
    shape: list[Size]
    data_offsets: tuple[Size, Size]


def read_header(path: Path, where: object = None) -> tuple[dict[str, str], dict[str, Slot]]:
    """The metadata of a safetensors file, and where its tensors lie; reads the header only.

    UserError when the file is missing, or the safetensors package would not open it. `where` is
    what messages call it.
    """
    from safetensors import SafetensorError, safe_open

    where = where or path
    size = reading.regular(path, where)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MOST_HEADER):
                raise UserError(
                    f"{where}: truncated or no safetensors file: found {size} bytes, and a header "
                    f"of {length}"
                )
            text = file.read(length)
        safe_open(path, framework="numpy")
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise UserError(f"{where}: its safetensors header is damaged: {error}") from None
    header = reading.parse(text, dict[str, Any], f"{where}: its safetensors header is damaged")
    metadata = header.pop("__metadata__", None) or {}
    reading.check(header, dict[str, _Tensor], f"{where}: its safetensors header is damaged")
    return metadata, {
        name: Slot(t["dtype"], tuple(t["shape"]), 8 + length + t["data_offsets"][0])
        for name, t in header.items()
    }


def map_tensors(path: Path, slots: Mapping[str, Slot]) -> dict[str, NDArray[Any]]:
    """Read-only views of the tensors over one memory map; float16 as its uint16 bit patterns.

    Reads nothing. The views are plain C-contiguous arrays; the map lives as long as one of them.
    """
    reading.regular(path, path)
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
