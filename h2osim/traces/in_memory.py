"""Traces made from arrays: what is given, checked and brought into the form of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import ONE_BITS, round_to_bits
from h2osim.attention.triangle import pack, tri
from h2osim.support.errors import UserError
from h2osim.traces import checks, files, manifest

_ROWS_AT_A_TIME = 512


def content(
    tensors: Mapping[str, Any],
    stores: list[str],
    n: int,
    heads: int,
    group_size: int,
    prompt_len: int | None,
    layers: Sequence[int] | None,
    name: str,
    entry: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[int, dict[str, NDArray[Any]]]]:
    """The manifest of a trace in memory, and its tensors by layer, copied and read-only.

    tensors: by name, each with the layers as its first axis; None for one that is not there. entry:
    what the manifest says of every layer. UserError for a shape that does not fit.
    """
    if group_size < 1 or heads % group_size:
        raise UserError(f"group_size: found {group_size}, expected a divisor of {heads} heads")
    kv_heads = heads // group_size
    first = next(iter(tensors.values()))
    indices = list(range(len(first))) if layers is None else [int(i) for i in layers]
    head_dim = fields.get("head_dim")
    arrays: dict[int, dict[str, NDArray[Any]]] = {index: {} for index in indices}
    for tensor, given in tensors.items():
        if given is None:
            continue
        wanted = files.expected(tensor, n, heads, kv_heads, head_dim)
        assert wanted is not None
        array = np.asarray(given)
        if array.ndim == len(wanted[1]) and len(indices) == 1:
            array = array[None]
        found: Any = tuple(array.shape)
        if not (found and found[0] == len(indices) and files.fits(found[1:], wanted[1])):
            shape = files.shape_text((len(indices), *wanted[1]))
            raise UserError(f"{tensor}: found shape {list(found)}, expected {shape}")
        for index, part in zip(indices, array, strict=True):
            arrays[index][tensor] = _frozen(part, wanted[0])
    made = {
        **manifest.OPTIONAL,
        "provenance": {},
        **fields,
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "name": name,
        "n": n,
        "prompt_len": prompt_len,
        "stores": stores,
        "heads": list(range(heads)),
        "kv_heads": list(range(kv_heads)),
        "group_size": group_size,
        "layers": [
            {"index": index, **entry, "tensors": sorted(arrays[index])} for index in indices
        ],
    }
    return manifest.check(made, f"trace {name}"), arrays


def _frozen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A read-only contiguous copy, float16 as its patterns."""
    if dtype == "F16":
        bits = array.view(np.uint16) if array.dtype == np.float16 else array
        kept = np.array(bits, dtype=np.uint16, order="C", copy=True)
    else:
        kept = np.array(array, dtype=np.float32, order="C", copy=True)
    kept.flags.writeable = False
    return kept


def pack_square(
    square: NDArray[Any], where: str
) -> tuple[NDArray[np.uint16], NDArray[np.float32]]:
    """Patterns and sums before rounding of one head's matrix [n, n]; UserError on a bad one."""
    n = square.shape[0]
    bits = np.empty(tri(n), dtype=np.uint16)
    sums = np.empty(n, dtype=np.float32)
    for start in range(0, n, _ROWS_AT_A_TIME):
        part = square[start : start + _ROWS_AT_A_TIME]
        rows = start + np.arange(len(part))
        above = np.arange(n)[None, :] > rows[:, None]
        wrong = ~((part >= 0) & (part <= 1)) | (above & (part != 0))
        if wrong.any():
            r, column = (int(x) for x in np.argwhere(wrong)[0])
            found = part[r, column]
            if above[r, column]:
                expected = f"0, since it lies above the diagonal (n = {n})"
            else:
                expected = "a number in [0, 1]"
            raise UserError(
                f"{where}, row {start + r}, column {column}: found {found}, expected {expected}"
            )
        found_sums = part.sum(axis=1, dtype=np.float64)
        entries = (rows + 1).astype(np.float64)
        if part.dtype == np.float16:
            limits = checks.rounding_bound(1.0, entries)
        else:
            limits = checks.summation_bound(entries)
        off = np.abs(found_sums - 1) > limits
        if off.any():
            r = int(np.argmax(off))
            raise UserError(
                f"{where}, row {start + r}: found sum {found_sums[r]:.9g}, "
                f"expected 1 within {limits[r]:.2g}"
            )
        bits[tri(start) : tri(start + len(part))] = round_to_bits(pack(part, start))
        sums[start : start + len(part)] = found_sums
    assert not bits.size or int(bits.max()) <= ONE_BITS
    return bits, sums
