"""Trace: recorded attention of some layers, in a folder or in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.support.errors import UserError
from h2osim.support.reading import sha256_of
from h2osim.traces import checks, files, in_memory, in_notebook, manifest
from h2osim.traces.arrays import real
from h2osim.traces.unit import Unit, split_layer
from h2osim.traces.writer import TraceWriter

KEPT = (*manifest.OPTIONAL, "name", "n", "heads", "group_size", "kv_heads", "stores")
"""The fields of a manifest that a trace keeps where it is written anew."""


class Trace:
    """Attention recorded from a model, or made up.

    Got from `open_trace`, `Trace.from_scores`, `Trace.from_packed` or `Trace.from_qk`. Reading is
    safe from several threads; tensors in a file are mapped into memory when first asked for.

    manifest: the content of trace.json. n: tokens. prompt_len: length of the prompt of a generated
    run, None for given text. layers: model indices of the recorded layers. heads, kv_heads: model
    indices of the recorded query and KV heads, `group_size` consecutive query heads for each KV
    head. stores: "scores", "qk" or both. path: the folder, None in memory.
    """

    def __init__(
        self,
        fields: dict[str, Any],
        path: Path | None,
        slots: Mapping[int, Mapping[str, files.Slot]],
        arrays: Mapping[int, Mapping[str, NDArray[Any]]],
    ) -> None:
        self.manifest = fields
        self.path = path
        self.name: str = fields["name"]
        self.n: int = fields["n"]
        self.prompt_len: int | None = fields["prompt_len"]
        self.heads: tuple[int, ...] = tuple(fields["heads"])
        self.kv_heads: tuple[int, ...] = tuple(fields["kv_heads"])
        self.group_size: int = fields["group_size"]
        self.stores: tuple[str, ...] = tuple(fields["stores"])
        self.layers: tuple[int, ...] = tuple(entry["index"] for entry in fields["layers"])
        self._entries = {entry["index"]: entry for entry in fields["layers"]}
        self._slots = slots
        self._arrays = {layer: dict(tensors) for layer, tensors in arrays.items()}
        self._units: dict[str, list[Unit]] = {}
        self._lock = threading.RLock()
        self._row_locks = {layer: threading.Lock() for layer in self.layers}
        self._checked: dict[int, tuple[int, ...] | None] = {}

    def __repr__(self) -> str:
        where = "in memory" if self.path is None else f"in {self.path}"
        return (
            f"<Trace {self.name}: {self.n} tokens, layers {list(self.layers)}, "
            f"{len(self.heads)} heads in {len(self.kv_heads)} KV heads, "
            f"{'+'.join(self.stores)}, {where}>"
        )

    def _repr_html_(self) -> str:
        return in_notebook.trace_html(self.manifest, self.tensors(self.layers[0]), self.path)

    # --- making ----------------------------------------------------------------------------------

    @classmethod
    def from_scores(
        cls,
        scores: Any,
        *,
        group_size: SupportsIndex = 1,
        prompt_len: SupportsIndex | None = None,
        layers: Sequence[SupportsIndex] | NDArray[Any] | None = None,
        name: str = "scores",
        v_norm1: Any = None,
        v_norm2: Any = None,
        k_norm2: Any = None,
        v: Any = None,
        w_o: Any = None,
        x_norm: Any = None,
        computed_in: str | None = None,
        **fields: Any,
    ) -> Trace:
        """A trace in memory from post-softmax attention, `scores[layers, heads, n, n]`.

        scores: any float dtype, any strides; ``[heads, n, n]`` is one layer, ``[n, n]`` one head.
        What `output_attentions` returns will do: a tuple of tensors, also in half precision, with
        a batch of one.
        Row t holds the probabilities of query t; entries above the diagonal are 0. Rounded to
        float16 (to nearest, ties to even); the sum of each row before that is kept, unless the
        array is float16 already and the sum is lost.
        group_size: query heads per KV head (consecutive heads share a cache). prompt_len: the
        prompt's length of a generated run. layers: model indices, 0 ... by default.
        v_norm1, v_norm2, k_norm2: norms of values and keys [layers, KV heads, n]; v: values
        [layers, KV heads, n, d]; w_o: output projections [layers, heads, d, D], x_norm: norms of
        the residual stream [layers, n]. The layers axis may be left out where scores leaves it out.
        computed_in: the float type in which the rows were computed ("bfloat16"), where they have
        been cast since; by default it is found out where their sums need it.
        fields: more fields of the manifest (model, text, tokens, provenance, ...).

        UserError: shape or dtype; an entry that is NaN, negative, above 1 or above the diagonal; a
        row whose sum misses 1 by more than float32 softmax explains, (t+1) 2^-23 + 1e-6. Rows that
        were computed in float16 or bfloat16, whatever they are cast to, may miss it by their own
        rounding (`checks.summation_bound`).
        """
        array = real(scores, "scores", axes=4)
        shape = array.shape
        if array.ndim not in (2, 3, 4) or shape[-1] != shape[-2] or 0 in shape:
            raise UserError(
                f"scores: found shape {list(shape)}, expected [layers, heads, n, n], "
                f"[heads, n, n] or [n, n]"
            )
        array = array[(None,) * (4 - array.ndim)]
        indices = in_memory.layer_numbers(layers, len(array))
        bits, row_sum, entry = in_memory.pack_rows(array, indices, computed_in)
        tensors = {
            "scores": bits, "row_sum": row_sum, "v_norm1": v_norm1, "v_norm2": v_norm2,
            "k_norm2": k_norm2, "v": v, "w_o": w_o, "x_norm": x_norm,
        }  # fmt: skip
        made = in_memory.content(
            tensors, ["scores"], shape[-1], bits.shape[1], group_size, prompt_len, indices, name,
            entry, fields,
        )  # fmt: skip
        return cls._in_memory(*made)

    @classmethod
    def from_packed(
        cls,
        bits: Any,
        *,
        group_size: SupportsIndex = 1,
        prompt_len: SupportsIndex | None = None,
        layers: Sequence[SupportsIndex] | NDArray[Any] | None = None,
        name: str = "scores",
        row_sum: Any = None,
        v_norm1: Any = None,
        v_norm2: Any = None,
        k_norm2: Any = None,
        v: Any = None,
        w_o: Any = None,
        x_norm: Any = None,
        **fields: Any,
    ) -> Trace:
        """A trace in memory from packed rows: float16 or their uint16 patterns [layers, heads, P].

        P = n(n+1)/2. row_sum: float32 [layers, heads, n], sums before rounding. The rest as in
        `from_scores`. The rows are checked when they are used (`check_layer`).
        """
        packed = real(bits, "packed scores", axes=3, bits=True)
        if packed.dtype not in (np.uint16, np.float16) or packed.ndim != 3 or 0 in packed.shape:
            raise UserError(
                f"packed scores: found {packed.dtype} {list(packed.shape)}, expected float16 "
                f"[layers, heads, n(n+1)/2]"
            )
        tensors = {
            "scores": packed, "row_sum": row_sum, "v_norm1": v_norm1, "v_norm2": v_norm2,
            "k_norm2": k_norm2, "v": v, "w_o": w_o, "x_norm": x_norm,
        }  # fmt: skip
        size = packed.shape[2]
        n = int((2 * size) ** 0.5)
        if tri(n) != size:
            raise UserError(f"packed scores: {size} entries are no triangle n(n+1)/2")
        made = in_memory.content(
            tensors, ["scores"], n, packed.shape[1], group_size, prompt_len, layers, name, {},
            fields,
        )  # fmt: skip
        return cls._in_memory(*made)

    @classmethod
    def from_qk(
        cls,
        q: Any,
        k: Any,
        *,
        scale: SupportsFloat,
        v: Any = None,
        q_plain: Any = None,
        wv_norm1: Any = None,
        softcap: SupportsFloat | None = None,
        window: SupportsIndex | None = None,
        prompt_len: SupportsIndex | None = None,
        layers: Sequence[SupportsIndex] | NDArray[Any] | None = None,
        name: str = "qk",
        **fields: Any,
    ) -> Trace:
        """A trace in memory from queries [layers, H, n, d] and keys [layers, G, n, d] after RoPE.

        v: values [layers, G, n, d']. q_plain: queries before RoPE, like q. wv_norm1: L1 norms of
        values under each head's output projection [layers, H, n]. scale, softcap, window: see
        `h2osim.attention.softmax`; the same in all layers. The group size is H/G. The rest as in
        `from_scores`.
        """
        queries, keys = (real(x, what, axes=4, whole=True) for what, x in (("q", q), ("k", k)))
        if queries.ndim != 4 or keys.ndim != 4 or 0 in queries.shape or 0 in keys.shape:
            raise UserError(
                f"q, k: found shapes {list(queries.shape)}, {list(keys.shape)}, expected "
                f"[layers, heads, n, d], [layers, KV heads, n, d]"
            )
        _, heads, n, size = queries.shape
        if heads % keys.shape[1]:
            raise UserError(f"q, k: {heads} heads do not share {keys.shape[1]} KV heads evenly")
        entry = {"scale": scale, "softcap": softcap, "window": window}
        fields["head_dim"] = size
        made = in_memory.content(
            {"q": queries, "k": keys, "v": v, "q_plain": q_plain, "wv_norm1": wv_norm1},
            ["qk"], n, heads, heads // keys.shape[1], prompt_len, layers, name, entry, fields,
        )  # fmt: skip
        return cls._in_memory(*made)

    @classmethod
    def _in_memory(
        cls, fields: dict[str, Any], arrays: Mapping[int, Mapping[str, NDArray[Any]]]
    ) -> Trace:
        trace = cls(fields, None, {}, arrays)
        for index in trace.layers:
            others = {t: a for t, a in arrays[index].items() if t != "scores"}
            checks.check_floats(trace.where(index), trace.heads, trace.kv_heads, others)
        return trace

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write the trace into a new folder; whole or not at all.

        UserError when `path` exists (with overwrite: when it is not a trace). Rows are checked
        before, so that no bad trace gets written.
        """
        fields = {k: v for k, v in self.manifest.items() if k in KEPT and v is not None}
        with TraceWriter(path, overwrite=overwrite, **fields) as writer:
            for index in self.layers:
                self.check_layer(index)
                self.write_layer(writer, index)
        return Path(path)

    def write_layer(self, writer: TraceWriter, layer: int) -> None:
        """Write a layer into a trace that is being written; it is not checked here."""
        of_file = ("index", "file", "sha256", "bytes", "tensors")
        facts = {k: v for k, v in self.layer_entry(layer).items() if k not in of_file}
        tensors = {name: self.tensor(layer, name) for name in self.tensors(layer)}
        shapes = {name: (t.dtype, t.shape) for name, t in tensors.items()}
        with writer.layer(layer, tensors=shapes, **facts) as file:
            for name, tensor in tensors.items():
                if name == "scores":
                    for head, bits in enumerate(tensor):
                        file.write_rows(name, head, 0, bits)
                else:
                    file[name][...] = tensor

    # --- reading ---------------------------------------------------------------------------------

    def tensors(self, layer: int) -> tuple[str, ...]:
        """Names of the tensors stored for a layer."""
        self.layer_entry(layer)
        return tuple(self._arrays[layer] if layer in self._arrays else self._slots[layer])

    def tensor(self, layer: int, name: str) -> NDArray[Any]:
        """A tensor of a layer, read-only, C-contiguous: float32, or uint16 patterns of float16.

        A view of the memory map where the trace is in a folder. KeyError when it is not stored.
        """
        if name not in self.tensors(layer):
            raise KeyError(name)
        with self._lock:
            if layer not in self._arrays:
                self._arrays[layer] = files.map_tensors(self._file(layer), self._slots[layer])
        return self._arrays[layer][name]

    def layer_entry(self, layer: int) -> dict[str, Any]:
        """The manifest's entry of a layer (scale, window, softcap, file, ...)."""
        if layer not in self._entries:
            raise UserError(
                f"trace {self.name}: no layer {layer}; it has {', '.join(map(str, self.layers))}"
            )
        entry: dict[str, Any] = self._entries[layer]
        return entry

    def units(self, share: str = "group") -> list[Unit]:
        """The units of the trace, layer by layer.

        share: which heads share a cache. "head": none; "group": the query heads of a KV head;
        "layer": all recorded heads of the layer.
        """
        if share not in manifest.SHARES:
            raise UserError(f"share: found {share!r}, expected one of {', '.join(manifest.SHARES)}")
        with self._lock:
            if share not in self._units:
                self._units[share] = [
                    unit
                    for layer in self.layers
                    for unit in split_layer(self, layer, self.heads, self.kv_heads, self.n, share)
                ]
            return list(self._units[share])

    # --- checking --------------------------------------------------------------------------------

    def where(self, layer: int) -> str:
        """How messages call a layer: its file, or the trace's name and the layer."""
        if self.path is None:
            return f"trace {self.name}, layer {layer}"
        return f"{self._file(layer)}, layer {layer}"

    def check_layer(self, layer: int) -> None:
        """Check a layer: its file's sha256, and every number in it.

        scores: entries in [0, 1], zeros before the window, rows that sum to what `checks` explains.
        Other tensors: finite, norms not negative. UserError names file, layer, head, row, what was
        found and what was expected. A layer is checked once, and again when its file has changed.
        """
        entry = self.layer_entry(layer)
        with self._row_locks[layer]:
            state = self._file_state(layer)
            if self._checked.get(layer, ...) == state:
                return
            if state is not None:
                found = sha256_of(self._file(layer))
                expected = entry.get("sha256")
                if found != expected:
                    raise UserError(
                        f"{self._file(layer)}: sha256 found {found}, trace.json says {expected}"
                    )
            tensors = {name: self.tensor(layer, name) for name in self.tensors(layer)}
            where = self.where(layer)
            if "scores" in tensors:
                scores, row_sum = tensors["scores"], tensors.get("row_sum")
                checks.check_scores(
                    where, self.heads, scores, row_sum, self.n, entry.get("window"),
                    entry.get("computed_in"), bool(entry.get("sink")),
                )  # fmt: skip
            checks.check_floats(where, self.heads, self.kv_heads, tensors)
            self._checked[layer] = state

    def verify(self) -> None:
        """Check every layer: the sha256 of its file and its numbers."""
        for layer in self.layers:
            self.check_layer(layer)

    def _file_state(self, layer: int) -> tuple[int, ...] | None:
        """What changes when the layer's file is written or replaced; None in memory."""
        if self.path is None:
            return None
        try:
            status = self._file(layer).stat()
        except OSError as error:
            raise UserError(f"{self._file(layer)}: cannot be read: {error.strerror}") from None
        return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns

    def _file(self, layer: int) -> Path:
        assert self.path is not None
        return self.path / str(self._entries[layer]["file"])
