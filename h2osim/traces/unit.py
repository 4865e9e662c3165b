"""Units: the heads that share one cache, and the exact rows that engines read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import fixed_from_bits
from h2osim.attention.softmax import BLOCK_ROWS, RowMaker
from h2osim.attention.triangle import row_slice, tri
from h2osim.support.errors import UserError
from h2osim.traces.checks import PER_QUERY_HEAD
from h2osim.traces.eight_bit import from_eight_bits

T = TypeVar("T")


class Recording(Protocol):
    """What a unit reads of its trace (:class:`~h2osim.traces.trace.Trace`)."""

    name: str
    path: Path | None
    stores: tuple[str, ...]

    def tensors(self, layer: int) -> tuple[str, ...]:
        """Names of the tensors stored for a layer."""

    def tensor(self, layer: int, name: str) -> NDArray[Any]:
        """A tensor of a layer; KeyError when it is not stored."""

    def layer_entry(self, layer: int) -> dict[str, Any]:
        """The manifest's entry of a layer."""

    def where(self, layer: int) -> str:
        """The layer's file, for messages."""

    def check_layer(self, layer: int) -> None:
        """UserError where the layer's file or one of its rows is broken."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some consecutive rows of a unit.

    bits: uint16 [heads, packed], read-only and C-contiguous, rows first ... stop-1: row t of head h
    is ``bits[h, row_slice(t, first)]``, starting at tri(t) - tri(first). Rows start ... stop-1 have
    not been in an earlier block; rows first ... start-1 are repeated for rules that look back.
    """

    start: int
    stop: int
    first: int
    bits: NDArray[np.uint16]

    def head_rows(self, t: int) -> NDArray[np.int64]:
        """Row t of every head, fixed point, int64 [heads, t+1]."""
        return fixed_from_bits(self.bits[:, row_slice(t, self.first)])


@dataclass(frozen=True, eq=False)
class Unit:
    """A set of heads with one cache, in one layer of a trace.

    layer: index in the model. index: number of the unit in the layer. heads: positions of its query
    heads along the recorded-heads axis (consecutive). kv: positions of its KV heads. label: for
    people, such as ``layer 9, KV head 1``. Reading is safe from several threads.
    """

    trace: Recording
    layer: int
    index: int
    heads: tuple[int, ...]
    kv: tuple[int, ...]
    n: int
    label: str
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)

    # --- rows ------------------------------------------------------------------------------------

    def blocks(self, rows: int | None = None, lag: int = 0) -> Iterator[Block]:
        """The unit's rows in order, at most `rows` new ones a block, with `lag` rows before them.

        rows None: a `scores` store gives everything in one block, a view of the memory map; a `qk`
        store makes `BLOCK_ROWS` at a time. The bits do not depend on `rows`. With several heads and
        `rows` given, blocks of a `scores` store are copies (a slice would not be contiguous).
        """
        if rows is not None and rows < 1:
            raise ValueError(f"rows {rows}, expected at least 1")
        if lag < 0:
            raise ValueError(f"lag {lag}, expected at least 0")
        if "scores" in self.trace.stores:
            bits = self._scores()
            if rows is None or rows >= self.n:
                yield Block(0, self.n, 0, bits)
                return
            for start in range(0, self.n, rows):
                stop, first = min(start + rows, self.n), max(0, start - lag)
                part = np.ascontiguousarray(bits[:, tri(first) : tri(stop)])
                part.flags.writeable = False
                yield Block(start, stop, first, part)
            return
        step = rows or BLOCK_ROWS
        before: Block | None = None
        for start in range(0, self.n, step):
            stop, first = min(start + step, self.n), max(0, start - lag)
            part = np.empty((len(self.heads), tri(stop) - tri(first)), dtype=np.uint16)
            repeated = tri(start) - tri(first)
            if before is not None and repeated:
                part[:, :repeated] = before.bits[:, tri(first) - tri(before.first) :]
            self._make(start, stop, first, part)
            part.flags.writeable = False
            before = Block(start, stop, first, part)
            yield before

    def all_bits(self) -> NDArray[np.uint16]:
        """All rows of all heads as float16 bits, packed, uint16 [heads, n(n+1)/2]; a copy."""
        return np.concatenate([block.bits for block in self.blocks()], axis=1)

    def head_rows(self, t: int) -> NDArray[np.int64]:
        """Row t of every head, fixed point, int64 [heads, t+1]."""
        if not 0 <= t < self.n:
            raise IndexError(f"row {t} of {self.n}")
        if "scores" in self.trace.stores:
            return fixed_from_bits(self._scores()[:, row_slice(t)])
        # readers go row by row, so the block they are in is kept
        last: Block | None = self._memo.get("last")
        if last is None or not last.start <= t < last.stop:
            start = t - t % BLOCK_ROWS
            stop = min(start + BLOCK_ROWS, self.n)
            part = np.empty((len(self.heads), tri(stop) - tri(start)), dtype=np.uint16)
            self._make(start, stop, start, part)
            last = Block(start, stop, start, part)
            self._memo["last"] = last
        return last.head_rows(t)

    def row(self, t: int) -> NDArray[np.int64]:
        """Row t summed over the unit's heads, fixed point, int64 [t+1]."""
        return np.asarray(self.head_rows(t).sum(axis=0))

    def column_sums(self) -> NDArray[np.int64]:
        """Mass each token receives over the whole trace, fixed point, int64 [n]."""
        return self._sums()[0]

    def row_masses(self) -> NDArray[np.int64]:
        """Mass of each row, summed over the unit's heads, fixed point, int64 [n]."""
        return self._sums()[1]

    def _sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        def compute() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            from h2osim.attention import row_loops

            columns = np.zeros(self.n, dtype=np.int64)
            masses = np.zeros(self.n, dtype=np.int64)
            for block in self.blocks():
                row_loops.add_columns(
                    block.bits, block.first, block.start, block.stop,
                    columns, masses,
                )  # fmt: skip
            columns.flags.writeable = masses.flags.writeable = False
            return columns, masses

        return self._once("sums", compute)

    # --- queries, keys, values -------------------------------------------------------------------

    def queries(self) -> NDArray[np.float32]:
        """Queries after RoPE, float32 [heads, n, d]; UserError when not recorded."""
        return self._heads_of("q", "--store qk")

    def keys(self) -> NDArray[np.float32]:
        """Keys after RoPE, float32 [KV heads, n, d]; UserError when not recorded."""
        return self._heads_of("k", "--store qk")

    def plain_queries(self) -> NDArray[np.float32]:
        """Queries before RoPE, float32 [heads, n, d]; UserError when not recorded."""
        return self._heads_of("q_plain", "--store qk --pre-rope")

    def values(self) -> NDArray[np.float32]:
        """Values, float32 [KV heads, n, d]; UserError when not recorded."""
        if "v_q8" in self.trace.tensors(self.layer):
            numbers = self._heads_of("v_q8", "--values")
            return from_eight_bits(numbers, self._heads_of("v_scale", "--values"))
        return self._heads_of("v", "--values")

    @property
    def has_values(self) -> bool:
        """Whether the values were recorded."""
        return not {"v", "v_q8"}.isdisjoint(self.trace.tensors(self.layer))

    def projections(self) -> NDArray[np.float32]:
        """Output projections, float32 [heads, d, residual size]; UserError when not recorded."""
        return self._heads_of("w_o", "--residual")

    def residual_norms(self) -> NDArray[np.float32]:
        """Norm of each token's residual stream before the layer, float32 [n]; or UserError."""
        self.projections()
        return self.trace.tensor(self.layer, "x_norm")

    @property
    def has_residual(self) -> bool:
        """Whether values, output projections and norms of the residual stream were recorded."""
        return "w_o" in self.trace.tensors(self.layer)

    def value_norms(self, order: int = 1) -> NDArray[np.float64]:
        """L1 (order 1) or L2 (order 2) norm of each token's value, float64 [n].

        The sum over the unit's KV heads when there are several. UserError when neither these norms
        nor the values were recorded.
        """
        if order not in (1, 2):
            raise ValueError(f"order {order}, expected 1 or 2")
        return self._norms(f"v_norm{order}", "v", order, "--values")

    def output_norms(self) -> NDArray[np.float64]:
        """L1 norm of W_o v, of each token's value as a head adds it to the residual stream,
        float64 [n], mean over the unit's heads.

        UserError when neither these norms nor values and output projections were recorded.
        """

        def compute() -> NDArray[np.float64]:
            if "wv_norm1" in self.trace.tensors(self.layer):
                norms = self._heads_of("wv_norm1", "--output-norms").astype(np.float64)
            else:
                size = len(self.heads) // len(self.kv)
                values = np.repeat(self.values(), size, axis=0)
                norms = projected_norms(values, self.projections())
            total = np.add.accumulate(norms, axis=0)[-1] / len(norms)
            total.flags.writeable = False
            return total

        return self._once("wv_norm1", compute)

    def key_norms(self) -> NDArray[np.float64]:
        """L2 norm of each token's key, float64 [n]; as `value_norms`."""
        return self._norms("k_norm2", "k", 2, "--store qk")

    def _norms(self, name: str, vectors: str, order: int, option: str) -> NDArray[np.float64]:
        def compute() -> NDArray[np.float64]:
            stored = self.trace.tensors(self.layer)
            if name in stored or not (vectors in stored or (vectors == "v" and self.has_values)):
                norms = self._heads_of(name, option).astype(np.float64)
            else:
                # summed one number after the other: the result of a pairwise sum depends on how the
                # array lies in memory
                found = self.values() if vectors == "v" else self.keys()
                wide = np.abs(found.astype(np.float64))
                total = np.add.accumulate(wide if order == 1 else wide * wide, axis=2)[:, :, -1]
                norms = total if order == 1 else np.sqrt(total)
            total = np.add.accumulate(norms, axis=0)[-1]
            total.flags.writeable = False
            return total

        return self._once(name, compute)

    def _heads_of(self, name: str, option: str) -> NDArray[Any]:
        places = self.heads if name in PER_QUERY_HEAD else self.kv
        try:
            tensor = self.trace.tensor(self.layer, name)
        except KeyError:
            raise UserError(
                f"trace {self.trace.name}: layer {self.layer} has no tensor {name}; "
                f"record with h2osim record … {option}"
            ) from None
        return tensor[places[0] : places[-1] + 1]

    # --- inside ----------------------------------------------------------------------------------

    def _scores(self) -> NDArray[np.uint16]:
        scores = self.trace.tensor(self.layer, "scores")
        return scores[self.heads[0] : self.heads[-1] + 1]

    def _make(self, start: int, stop: int, first: int, out: NDArray[np.uint16]) -> None:
        def maker() -> RowMaker:
            entry = self.trace.layer_entry(self.layer)
            return RowMaker(
                self.keys(),
                group_size=len(self.heads) // len(self.kv),
                scale=entry["scale"],
                softcap=entry.get("softcap"),
                window=entry.get("window"),
            )

        try:
            self._once("maker", maker).make(
                self.queries()[:, start:stop], start, first=first, out=out
            )
        except ValueError as error:
            raise UserError(f"{self.trace.where(self.layer)}, {self.label}: {error}") from None

    def _once(self, name: str, compute: Callable[[], T]) -> T:
        # two threads may compute the same; they get the same bits, and the last one stays
        if name not in self._memo:
            self._memo[name] = compute()
        result: T = self._memo[name]
        return result


def projected_norms(values: NDArray[Any], projections: NDArray[Any]) -> NDArray[np.float64]:
    """|v W|_1 of values [heads, n, d] under projections [heads, d, D], float64 [heads, n].

    Summed one product after the other, whatever the machine's libraries do.
    """
    found = np.empty(values.shape[:2])
    for h, (v, w) in enumerate(zip(values, projections, strict=True)):
        moved = np.zeros((v.shape[0], w.shape[1]))
        for x, row in zip(v.T.astype(np.float64), w.astype(np.float64), strict=True):
            moved += x[:, None] * row
        found[h] = np.add.accumulate(np.abs(moved), axis=1)[:, -1]
    return found


def split_layer(
    trace: Recording,
    layer: int,
    heads: Sequence[int],
    kv_heads: Sequence[int],
    n: int,
    share: str,
) -> list[Unit]:
    """The units of a layer whose query and KV heads have these indices in the model.

    share: which heads share a cache. "head": none; "group": the query heads of a KV head;
    "layer": all of the layer's.
    """
    size = len(heads) // len(kv_heads)
    if share == "layer":
        every, kv = tuple(range(len(heads))), tuple(range(len(kv_heads)))
        return [Unit(trace, layer, 0, every, kv, n, f"layer {layer}")]
    if share == "head" or size == 1:
        return [
            Unit(trace, layer, h, (h,), (h // size,), n, f"layer {layer}, head {head}")
            for h, head in enumerate(heads)
        ]
    groups = [tuple(range(g * size, (g + 1) * size)) for g in range(len(kv_heads))]
    return [
        Unit(trace, layer, g, groups[g], (g,), n, f"layer {layer}, KV head {head}")
        for g, head in enumerate(kv_heads)
    ]
