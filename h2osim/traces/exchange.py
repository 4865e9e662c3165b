"""Traces as one file that other programs open, and back: export_trace, and what reads its files.

A file holds, for each layer i, ``attentions.i`` float16 [heads, n, n], the rows as plain matrices,
and every other tensor of the trace as ``NAME.i``; ``h2osim`` holds the manifest, as JSON's bytes.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import pack, unpack
from h2osim.support.atomic import replacing
from h2osim.support.errors import UserError
from h2osim.support.reading import parse
from h2osim.traces import files, manifest
from h2osim.traces.catalogue import open_trace
from h2osim.traces.dumps import Dumped
from h2osim.traces.trace import KEPT, Trace
from h2osim.traces.writer import LayerWriter, TraceWriter

MANIFEST = "h2osim"
ROWS = "attentions"
SUFFIXES = (".npz", ".safetensors")
Writer = Callable[..., TraceWriter]


def export_trace(trace: Trace | str | os.PathLike[str], file: str | os.PathLike[str]) -> Path:
    """Write a trace into one .npz or .safetensors file; its path.

    Every layer's attention is there as `attentions.3`, float16 [heads, n, n], twice the size of the
    packed rows (of a trace of queries and keys, the rows that they give); the other tensors and the
    manifest are there too, so that `import_trace` makes the same trace again. Layers are checked
    before, and written one by one. UserError for another ending, and a layer that is not right.
    """
    target = Path(file)
    if target.suffix not in SUFFIXES:
        raise UserError(
            f"{target}: found the ending {target.suffix!r}, expected one of {', '.join(SUFFIXES)}"
        )
    opened = trace if isinstance(trace, Trace) else open_trace(trace)
    opened.verify()
    fields = {key: opened.manifest[key] for key in (*KEPT, "layers") if key in opened.manifest}
    text = np.frombuffer(json.dumps(fields).encode(), np.int8)
    with replacing(target) as temporary:
        if target.suffix == ".npz":
            _write_npz(temporary, text, opened)
        else:
            _write_safetensors(temporary, text, opened)
    return target


def _write_npz(path: Path, text: NDArray[np.int8], trace: Trace) -> None:
    with zipfile.ZipFile(path, "x") as archive:

        def put(name: str, array: NDArray[Any]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)

        put(MANIFEST, text)
        for layer in trace.layers:
            put(f"{ROWS}.{layer}", np.stack([*_squares(trace, layer)]))
            for name in _others(trace, layer):
                put(f"{name}.{layer}", trace.tensor(layer, name))


def _write_safetensors(path: Path, text: NDArray[np.int8], trace: Trace) -> None:
    heads, n = len(trace.heads), trace.n
    known = {dtype: name for name, dtype in files.DTYPES.items()}
    spec: dict[str, tuple[str, tuple[int, ...]]] = {MANIFEST: ("I8", text.shape)}
    for layer in trace.layers:
        spec[f"{ROWS}.{layer}"] = ("F16", (heads, n, n))
        for name in _others(trace, layer):
            tensor = trace.tensor(layer, name)
            spec[f"{name}.{layer}"] = (known[tensor.dtype], tensor.shape)
    writer = LayerWriter(path, spec)
    try:
        writer[MANIFEST][...] = text
        for layer in trace.layers:
            for place, square in enumerate(_squares(trace, layer)):
                writer[f"{ROWS}.{layer}"][place] = square
            for name in _others(trace, layer):
                writer[f"{name}.{layer}"][...] = trace.tensor(layer, name)
    finally:
        writer.close()


def _others(trace: Trace, layer: int) -> list[str]:
    """The tensors of a layer besides its rows."""
    return [name for name in trace.tensors(layer) if name != "scores"]


def _squares(trace: Trace, layer: int) -> Iterator[NDArray[np.float16]]:
    """Each head's rows of a layer, float16 [n, n]."""
    (unit,) = (unit for unit in trace.units("layer") if unit.layer == layer)
    for bits in unit.all_bits():
        yield unpack(bits).view(np.float16)


def restore(found: Mapping[str, Dumped], where: object, writer: Writer) -> None:
    """Write the trace that the arrays of `export_trace` hold; UserError where they do not fit.

    writer: makes the trace's writer for the manifest's fields.
    """
    text = np.asarray(found[MANIFEST].read())
    if text.dtype != np.int8:
        raise UserError(f"{where}: {MANIFEST}: found {text.dtype}, expected the manifest as int8")
    fields = parse(text.tobytes(), dict[str, Any], f"{where}: its manifest")
    fields = {**manifest.OPTIONAL, **fields}
    manifest.check(fields, f"{where}: its manifest")
    own = {key: fields[key] for key in KEPT if fields.get(key) is not None}
    with writer(**own) as opened:
        for entry in fields["layers"]:
            index = entry["index"]
            listed = {*(entry.get("tensors") or ())} - {"scores"}
            listed |= {"q", "k"} if "qk" in fields["stores"] else set()
            arrays = {name: _array(found, name, index, where, fields) for name in sorted(listed)}
            if "scores" in fields["stores"]:
                arrays["scores"] = _packed(found, index, where, fields)
            one = Trace({**fields, "layers": [entry]}, None, {}, {index: arrays})
            try:
                one.check_layer(index)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            one.write_layer(opened, index)


def _array(
    found: Mapping[str, Dumped], name: str, layer: int, where: object, fields: Mapping[str, Any]
) -> NDArray[Any]:
    """A tensor of a layer, of the type and shape that the manifest makes it."""
    wanted = files.expected(
        name, fields["n"], len(fields["heads"]), len(fields["kv_heads"]), fields["head_dim"]
    )
    array = found.get(f"{name}.{layer}")
    values = None if array is None else np.ascontiguousarray(array.read())
    if wanted is None or values is None:
        raise UserError(f"{where}: {name}.{layer} is missing, which its manifest names")
    if values.dtype != files.DTYPES[wanted[0]] or not files.fits(values.shape, wanted[1]):
        raise UserError(
            f"{where}: {name}.{layer}: found {values.dtype} {list(values.shape)}, expected "
            f"{wanted[0]} {files.shape_text(wanted[1])}"
        )
    return values


def _packed(
    found: Mapping[str, Dumped], layer: int, where: object, fields: Mapping[str, Any]
) -> NDArray[np.uint16]:
    """A layer's rows, packed."""
    name, heads, n = f"{ROWS}.{layer}", len(fields["heads"]), fields["n"]
    squares = np.asarray(found[name].read()) if name in found else np.empty(0)
    if squares.dtype != np.float16 or squares.shape != (heads, n, n):
        raise UserError(
            f"{where}: {name}: found {squares.dtype} {list(squares.shape)}, expected float16 "
            f"{[heads, n, n]}"
        )
    if np.triu(squares, 1).any():
        raise UserError(f"{where}: {name}: found a number above the diagonal, expected 0")
    bits = squares.view(np.uint16)
    return np.stack([pack(bits[head]) for head in range(heads)])
