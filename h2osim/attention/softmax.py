"""Softmax rows from queries and keys: what a `qk` trace means.

Row t of query head h, with KV head g = h // group_size, is

    x_j = scale * <q_h[t], k_g[j]>,  x_j <- c tanh(x_j / c) when there is a softcap c,
    a_j = exp(x_j - max x) / sum exp(x - max x)   for max(0, t - window + 1) <= j <= t, else 0,

in float32 (the two sums in float64, rounded to float32), then rounded to float16, to nearest, ties
to even. The order of the operations is fixed, and exp is our own, so a row has the same bits
whichever rows are made along with it, in whatever thread, on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri

BLOCK_ROWS = 256
"""How many rows readers make at a time. Only memory depends on it, no bit does."""


@dataclass(frozen=True)
class SoftmaxRows:
    """Rows made from queries and keys.

    bits uint16 [H, packed]: float16 patterns; lse float32 [H, rows]: log-sum-exp of the scaled
    logits; row_sum float32 [H, rows]: sum of the float32 probabilities before the rounding.
    """

    bits: NDArray[np.uint16]
    lse: NDArray[np.float32]
    row_sum: NDArray[np.float32]


class RowMaker:
    """Makes rows for the keys k [G, n, d] of one layer; see the module's formula.

    group_size: query heads per KV head. scale: factor of the logits. softcap: c above, None for
    none. window: keys a row sees, its own included, None for all. The keys are copied once.
    """

    def __init__(
        self,
        k: Any,
        *,
        group_size: int = 1,
        scale: float,
        softcap: float | None = None,
        window: int | None = None,
    ) -> None:
        keys = np.asarray(k, dtype=np.float32)
        if keys.ndim != 3:
            raise ValueError(f"keys have shape [G, n, d], not {keys.shape}")
        self._keys = np.ascontiguousarray(keys.transpose(0, 2, 1))
        self._group_size = int(group_size)
        self._scale = np.float32(scale)
        self._cap = np.float32(softcap or 0.0)
        self._window = int(window or 0)

    def make(
        self, q: Any, start: int, *, first: int | None = None, out: NDArray[np.uint16] | None = None
    ) -> SoftmaxRows:
        """Rows start ... start+r-1 for their queries q [H, r, d], packed.

        With `out` (uint16 [H, packed], C-contiguous) the rows are written into it, row
        `first` being the first it holds; without, bits holds just these rows. Logits that overflow
        float32 raise ValueError.
        """
        from h2osim.attention.softmax_loops import softmax_rows

        queries = np.ascontiguousarray(q, dtype=np.float32)
        kv_heads, size, length = self._keys.shape
        if queries.ndim != 3 or queries.shape[2] != size:
            raise ValueError(f"queries have shape [H, rows, {size}], not {queries.shape}")
        heads, rows, _ = queries.shape
        if heads != kv_heads * self._group_size:
            raise ValueError(f"{kv_heads} KV heads of {self._group_size} queries, not {heads}")
        stop = start + rows
        if stop > length:
            raise ValueError(f"row {stop - 1} needs {stop} keys, there are {length}")
        begin = start if first is None or out is None else first
        if out is None:
            out = np.empty((heads, tri(stop) - tri(start)), dtype=np.uint16)
        elif out.shape[0] != heads or out.shape[1] < tri(stop) - tri(begin) or begin > start:
            raise ValueError(f"room of shape {out.shape} is too small for rows {begin}-{stop - 1}")
        lse = np.empty((heads, rows), dtype=np.float32)
        row_sum = np.empty((heads, rows), dtype=np.float32)
        softmax_rows(
            queries, self._keys, self._group_size, start, stop, begin,
            self._scale, self._cap, self._window, out, lse, row_sum,
        )  # fmt: skip
        if not np.isfinite(lse).all():
            head, row = np.argwhere(~np.isfinite(lse))[0]
            raise ValueError(f"logits of head {head}, row {start + row} are not finite")
        return SoftmaxRows(out, lse, row_sum)
