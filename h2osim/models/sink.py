"""Where the rows of a recording go: into the layers' files of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.attention.triangle import row_slice, tri
from h2osim.models.residual import Residual
from h2osim.models.rotary import PlainQueries
from h2osim.models.rows import Layer, RowBlock
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.traces.eight_bit import to_eight_bits
from h2osim.traces.unit import projected_norms
from h2osim.traces.writer import LayerWriter, TraceWriter


@dataclass(frozen=True)
class RecordingPlan:
    """What is written: n rows of some heads in some layers.

    order: the layers as the model calls them. layers: the ones recorded. heads: places of the heads
    among those of a layer. caches: which of the caches that the heads share. pre_rope: whether
    queries before RoPE are recorded. projected: what to take the layers' output projections from,
    where norms of projected values are recorded, or (`residual`) the projections themselves and the
    norms of the residual stream.
    """

    model: str
    n: int
    order: tuple[int, ...]
    layers: frozenset[int]
    heads: tuple[int, ...]
    caches: tuple[int, ...]
    stores: tuple[str, ...]
    values: bool | str
    pre_rope: bool = False
    residual: bool = False
    projected: Mapping[int, Residual] = field(default_factory=dict)

    def projections(self, layer: Layer) -> NDArray[np.float32]:
        """The output projections of the recorded heads, [heads, d, residual size]."""
        order = layer.order or range(layer.heads)
        weights = self.projected[layer.index].weights(layer.heads, layer.value_dim)
        return weights[[order[head] for head in self.heads]]

    def taken(self, plain: PlainQueries, layer: Layer, rows: int) -> torch.Tensor:
        """The queries before RoPE of the recorded heads, [heads, rows, d]."""
        return plain.take(self.model, layer, 1, rows)[list(self.heads)]


class Enough(Exception):
    """Ends a pass of the model after the last layer that matters."""


@dataclass
class _LayerFile:
    """A layer's open file, and how many rows are in it."""

    context: AbstractContextManager[LayerWriter]
    file: LayerWriter
    rows: int = 0


@dataclass
class TraceSink:
    """Writes the layers of a plan.

    Without `hold` every layer comes once, whole: its file is closed at its end, and the pass is
    ended after the last one. With it the files stay open for the rows of later calls. Files are
    brought to the disk and summed in a thread, while the model goes on.
    windows: each layer's window, known for certain after its last row. norms: of the residual
    stream before a layer, of the rows that are being computed; plain: their queries before RoPE.
    """

    writer: TraceWriter
    plan: RecordingPlan
    progress: Progress
    hold: bool
    windows: dict[int, int | None] = field(default_factory=dict)
    norms: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    plain: PlainQueries = field(default_factory=PlainQueries)
    _open: dict[int, _LayerFile] = field(default_factory=dict)
    _whole: set[int] = field(default_factory=set)
    _done: int = 0
    _closer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    _closing: list[Future[bool | None]] = field(default_factory=list)

    def wants(self, layer: Layer) -> bool:
        """Whether the rows are to be made; opens the layer's file."""
        index = layer.index
        if index not in self.plan.layers:
            return False
        if "qk" in self.plan.stores and not layer.regular:
            raise UserError(
                f"layer {index}: its mask is neither causal nor a sliding window, so rows cannot "
                f"be made from queries and keys; expected store scores"
            )
        if index not in self._open:
            context = self._file(layer)
            self._open[index] = _LayerFile(context, context.__enter__())
        self.windows[index] = layer.window
        return "scores" in self.plan.stores

    def block(self, layer: Layer, block: RowBlock) -> None:
        """Write rows, rounded to float16."""
        file = self._open[layer.index].file
        heads = list(self.plan.heads)
        rows = block.p.shape[1]
        stop = block.start + rows
        if block.lse is not None:
            file["lse"][:, block.start : stop] = block.lse[heads].cpu().numpy()
        file["row_sum"][:, block.start : stop] = block.row_sum[heads].cpu().numpy()
        # All heads at once: PyTorch takes its time to share out a small piece of work.
        half = block.p.to(torch.float16)[heads]
        for place, bits in enumerate(packed(half, block.start, block.first)):
            file.write_rows("scores", place, block.start, bits)
        self._tell(layer, rows)

    def end(
        self, layer: Layer, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Write what is kept of queries, keys and values."""
        if layer.index in self.plan.layers:
            self._write_call(layer, start, q, k, v)
        self.end_of_rows(layer, start, q.shape[1])

    def end_of_rows(self, layer: Layer, start: int, rows: int) -> None:
        """Take the end of a layer's call of which there is nothing more than its rows."""
        if layer.index not in self.plan.layers:
            self._tell(layer, rows)
            return
        if "scores" not in self.plan.stores:
            self._tell(layer, rows)
        opened = self._open[layer.index]
        if start != opened.rows:
            raise UserError(f"layer {layer.index}: found row {start}, expected row {opened.rows}")
        opened.rows += rows
        if self.hold:
            return
        self._end(layer.index)
        if self._whole == self.plan.layers:
            raise Enough

    def _write_call(
        self, layer: Layer, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Write all but the rows of a layer's call."""
        rows = q.shape[1]
        opened = self._open[layer.index]
        here = slice(start, start + rows)
        if layer.has_vectors:
            self._write_vectors(opened.file, here, q, k, v)
        if self.plan.pre_rope:
            plain = self.plan.taken(self.plain, layer, rows)
            opened.file["q_plain"][:, here] = plain.float().cpu().numpy()
        if self.plan.residual:
            opened.file["x_norm"][here] = self.norms.pop(layer.index)
            if start == 0:
                opened.file["w_o"][...] = self.plan.projections(layer)
        elif self.plan.projected:
            values = v[[head // layer.group_size for head in self.plan.heads]].float()
            norms = projected_norms(values.cpu().numpy(), self.plan.projections(layer))
            opened.file["wv_norm1"][:, here] = norms

    def finish(self) -> None:
        """Wait until the files are closed; UserError when a layer has not every row."""
        for index in list(self._open):
            self._end(index)
        for closing in self._closing:
            closing.result()
        if missing := sorted(self.plan.layers - self._whole):
            raise UserError(
                f"layer {missing[0]}: the model did not compute all of its {self.plan.n} rows"
            )

    def close(self) -> None:
        """Close the files still open."""
        self._closer.shutdown(cancel_futures=True)
        while self._open:
            self._open.popitem()[1].context.__exit__(None, None, None)

    def _end(self, index: int) -> None:
        opened = self._open.pop(index)
        closing = self._closer.submit(opened.context.__exit__, None, None, None)
        self._closing.append(closing)
        if opened.rows == self.plan.n:
            self._whole.add(index)

    def _write_vectors(
        self, file: LayerWriter, here: slice, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        """Norms of keys and values, and the vectors that are wanted, of some rows."""
        caches = list(self.plan.caches)
        keys, values = k[caches].float(), v[caches].float()
        file["v_norm1"][:, here] = values.abs().sum(dim=2).cpu().numpy()
        file["v_norm2"][:, here] = values.norm(dim=2).cpu().numpy()
        file["k_norm2"][:, here] = keys.norm(dim=2).cpu().numpy()
        if "qk" in self.plan.stores:
            file["q"][:, here] = q[list(self.plan.heads)].float().cpu().numpy()
            file["k"][:, here] = keys.cpu().numpy()
        if self.plan.values == "8bit":
            file["v_q8"][:, here], file["v_scale"][:, here] = to_eight_bits(values.cpu().numpy())
        elif self.plan.values:
            file["v"][:, here] = values.cpu().numpy()

    def _tell(self, layer: Layer, rows: int) -> None:
        order = self.plan.order
        last = max(order.index(index) for index in self.plan.layers)
        total = self.plan.n * (len(order) if self.hold else last + 1)
        self._done += rows
        place = order.index(layer.index) + 1
        self.progress(self._done, total, f"layer {layer.index} ({place} of {len(order)})")

    def _file(self, layer: Layer) -> AbstractContextManager[LayerWriter]:
        n, heads, caches = self.plan.n, len(self.plan.heads), len(self.plan.caches)
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        if layer.has_vectors:
            for name in ("v_norm1", "v_norm2", "k_norm2"):
                tensors[name] = ("F32", (caches, n))
        if "scores" in self.plan.stores:
            tensors["scores"] = ("F16", (heads, tri(n)))
            tensors["row_sum"] = ("F32", (heads, n))
            if not layer.own:
                tensors["lse"] = ("F32", (heads, n))
        if "qk" in self.plan.stores:
            tensors["q"] = ("F32", (heads, n, layer.head_dim))
            tensors["k"] = ("F32", (caches, n, layer.head_dim))
        if self.plan.values == "8bit":
            tensors["v_q8"] = ("I8", (caches, n, layer.value_dim))
            tensors["v_scale"] = ("F32", (caches, n))
        elif self.plan.values:
            tensors["v"] = ("F32", (caches, n, layer.value_dim))
        if self.plan.pre_rope:
            tensors["q_plain"] = ("F32", (heads, n, layer.head_dim))
        if self.plan.residual:
            width = self.plan.projected[layer.index].width
            tensors["w_o"] = ("F32", (heads, layer.value_dim, width))
            tensors["x_norm"] = ("F32", (n,))
        elif self.plan.projected:
            tensors["wv_norm1"] = ("F32", (heads, n))
        facts: dict[str, Any] = {} if layer.cache_of is None else {"cache_of": layer.cache_of}
        if layer.sink:
            facts["sink"] = True
        if layer.computed_in in ("float16", "bfloat16"):
            facts["computed_in"] = layer.computed_in
        return self.writer.layer(
            layer.index,
            tensors=tensors,
            scale=None if layer.own else layer.scale,
            softcap=layer.softcap,
            **facts,
        )


def packed(half: torch.Tensor, start: int, first: int) -> NDArray[np.float16]:
    """Rows [heads, rows, columns] of rows `start` on and keys `first` on, packed, [heads, size].

    A GPU packs them itself, so that no more than is kept goes to the host.
    """
    heads, rows, columns = half.shape
    stop = start + rows
    if half.device.type != "cpu":
        square = half.new_zeros((heads, rows, stop))
        square[:, :, first : first + columns] = half
        keys = torch.arange(stop, device=half.device)
        return np.asarray(square[:, keys <= keys[start:, None]].cpu())
    found = np.zeros((heads, tri(stop) - tri(start)), dtype=np.float16)
    for row, values in enumerate(half.numpy().swapaxes(0, 1)):
        at = row_slice(start + row, start)
        found[:, at.start + first : at.stop] = values[:, : start + row + 1 - first]
    return found
