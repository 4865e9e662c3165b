"""Traces made from arrays: what is given, checked and brought into the form of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import ONE_BITS, round_to_bits
from h2osim.attention.triangle import pack, tri
from h2osim.support.errors import UserError
from h2osim.support.given import whole
from h2osim.support.wording import near
from h2osim.traces import checks, files, manifest
from h2osim.traces.arrays import plain, precision, real

_ROWS_AT_A_TIME = 512


def content(
    tensors: Mapping[str, Any],
    stores: list[str],
    n: int,
    heads: int,
    group_size: Any,
    prompt_len: Any,
    layers: Sequence[Any] | NDArray[Any] | None,
    name: str,
    entry: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[int, dict[str, NDArray[Any]]]]:
    """The manifest of a trace in memory, and its tensors by layer, copied and read-only.

    tensors: by name, each with the layers as its first axis; None for one that is not there. entry:
    what the manifest says of every layer. fields: more of the manifest's optional fields. UserError
    for a shape that does not fit, a number that is not whole, a field that no manifest has.
    """
    _refuse_unknown(fields, tensors, stores, entry)
    group_size = whole("group_size", group_size, 1)
    if heads % group_size:
        raise UserError(f"group_size: found {group_size}, expected a divisor of {heads} heads")
    kv_heads = heads // group_size
    first = next(iter(tensors.values()))
    indices = layer_numbers(layers, len(first))
    fields = plain(dict(fields))
    arrays: dict[int, dict[str, NDArray[Any]]] = {index: {} for index in indices}
    for tensor, given in tensors.items():
        if given is None:
            continue
        wanted = files.expected(tensor, n, heads, kv_heads, fields.get("head_dim"))
        assert wanted is not None
        axes = len(wanted[1])
        array = real(given, tensor, axes=axes + 1, bits=tensor == "scores", whole=True)
        if array.ndim == axes and len(indices) == 1:
            array = array[None]
        found: Any = tuple(array.shape)
        if not (found and found[0] == len(indices) and files.fits(found[1:], wanted[1])):
            shape = files.shape_text((len(indices), *wanted[1]))
            raise UserError(f"{tensor}: found shape {list(found)}, expected {shape}")
        for index, part in zip(indices, array, strict=True):
            arrays[index][tensor] = _frozen(part, wanted[0])
    if wrong := files.misfit({t: array.shape for t, array in arrays[indices[0]].items()}):
        raise UserError(f"trace {name}: {wrong}")
    made = {
        **manifest.OPTIONAL,
        "provenance": {},
        **fields,
        "format": manifest.FORMAT,
        "version": manifest.VERSION,
        "name": name,
        "n": n,
        "prompt_len": None if prompt_len is None else whole("prompt_len", prompt_len, 1, n),
        "stores": stores,
        "heads": list(range(heads)),
        "kv_heads": list(range(kv_heads)),
        "group_size": group_size,
        "layers": [
            {"index": index, **plain(dict(entry)), "tensors": sorted(arrays[index])}
            for index in indices
        ],
    }
    return manifest.check(made, f"trace {name}"), arrays


def layer_numbers(layers: Sequence[Any] | NDArray[Any] | None, count: int) -> list[int]:
    """The numbers of the layers of an array with `count` of them, 0 on unless they are given."""
    indices = list(range(count)) if layers is None else [whole("layers", i) for i in layers]
    if len(indices) != count:
        raise UserError(f"layers: found {len(indices)} indices, expected {count}")
    return indices


def _refuse_unknown(
    fields: Mapping[str, Any],
    tensors: Mapping[str, Any],
    stores: Sequence[str],
    entry: Mapping[str, Any],
) -> None:
    """UserError for a keyword that means nothing, with what may have been meant."""
    known = {*manifest.OPTIONAL, *tensors, *entry, "prompt_len", "layers", "name"}
    known |= {"group_size"} if "scores" in stores else set()
    for word in fields:
        if word not in manifest.OPTIONAL:
            meant = "; did you mean group_size, the heads of one KV head?"
            hint = meant if "kv_heads" in word and "scores" in stores else near(word, sorted(known))
            raise UserError(f"no argument or field of a trace is called {word}{hint}")


def _frozen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """A read-only contiguous copy, float16 as its patterns."""
    if dtype == "F16":
        half = array if array.dtype == np.uint16 else array.astype(np.float16, copy=False)
        kept = np.array(half.view(np.uint16), order="C", copy=True)
    else:
        kept = np.array(array, dtype=np.float32, order="C", copy=True)
    kept.flags.writeable = False
    return kept


def pack_rows(
    scores: NDArray[Any], layers: Sequence[int], computed_in: str | None = None
) -> tuple[NDArray[np.uint16], NDArray[np.float32] | None, dict[str, Any]]:
    """Patterns [layers, heads, n(n+1)/2], sums before rounding, and what a layer's entry says.

    scores: [layers, heads, n, n]. The sums are None where the rows were float16 before they came
    here, whatever they have been cast to since. computed_in: the type they were computed in, where
    it is known; else it is found out. UserError for a row that is no distribution.
    """
    count, heads, n, _ = scores.shape
    bits = np.empty((count, heads, tri(n)), dtype=np.uint16)
    sums = np.empty((count, heads, n))
    for i, layer in enumerate(layers):
        for head in range(heads):
            where = f"scores: layer {layer}, head {head}"
            bits[i, head], sums[i, head] = _pack_square(scores[i, head], where)
    entries = np.arange(1.0, n + 1)
    known = computed_in is not None
    computed_in = computed_in or ("float16" if scores.dtype == np.float16 else "float32")
    off = np.abs(sums - 1) > checks.summation_bound(entries, computed_in)
    if off.any() and not known:
        kinds = {precision(square) for layer in scores for square in layer}
        if kinds <= {"float16", "bfloat16"}:
            computed_in = max(kinds, key=["float16", "bfloat16"].index)
            off = np.abs(sums - 1) > checks.summation_bound(entries, computed_in)
    if off.any():
        i, head, row = (int(x) for x in np.argwhere(off)[0])
        limit = checks.summation_bound(entries[row], computed_in)
        raise UserError(
            f"scores: layer {layers[i]}, head {head}, row {row}: found sum "
            f"{sums[i, head, row]:.9g}, expected 1 within {limit:.2g}"
        )
    entry = {"computed_in": computed_in} if computed_in == "bfloat16" else {}
    return bits, None if computed_in == "float16" else sums.astype(np.float32), entry


def _pack_square(
    square: NDArray[Any], where: str
) -> tuple[NDArray[np.uint16], NDArray[np.float64]]:
    """Patterns and sums before rounding of one head's matrix [n, n]; UserError on a bad entry."""
    n = square.shape[0]
    bits = np.empty(tri(n), dtype=np.uint16)
    sums = np.empty(n)
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
        bits[tri(start) : tri(start + len(part))] = round_to_bits(pack(part, start))
        sums[start : start + len(part)] = part.sum(axis=1, dtype=np.float64)
    assert not bits.size or int(bits.max()) <= ONE_BITS
    return bits, sums
