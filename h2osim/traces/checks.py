"""Are the rows of a layer probabilities? One compiled pass, then words for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import ONE, ONE_BITS
from h2osim.attention.triangle import row_slice
from h2osim.support.errors import UserError

PER_QUERY_HEAD = frozenset({"scores", "lse", "row_sum", "q", "q_plain", "w_o", "wv_norm1"})
"""Tensors with one entry a query head along their first axis; the others have one a KV head."""


def rounding_bound(row_sum: Any, entries: Any) -> Any:
    """By how much rounding to float16 can change the sum of a row.

    Half a unit in the last place an entry: at most 2^-11 of a normal number, 2^-25 of a subnormal
    one, so 2^-11 row_sum + 2^-25 entries in all.
    """
    return row_sum * 2.0**-11 + entries * 2.0**-25


def summation_bound(entries: Any, computed_in: str | None = None) -> Any:
    """By how much a softmax row may miss the sum 1 before it is rounded to float16.

    Of float32: 2^-23 an entry, and 1e-6. Of rows that a model rounded to float16 or bfloat16
    itself, their rounding: half a unit in the last of 11 or 8 places.
    """
    if computed_in == "float16":
        return rounding_bound(1.0, entries)
    return entries * 2.0**-23 + (2.0**-8 if computed_in == "bfloat16" else 1e-6)


def check_scores(
    where: str,
    heads: tuple[int, ...],
    bits: NDArray[np.uint16],
    row_sum: NDArray[np.float32] | None,
    n: int,
    window: int | None,
    computed_in: str | None = None,
    sink: bool = False,
) -> NDArray[np.int64]:
    """The fixed-point row sums int64 [H, n] of the packed rows `bits`; UserError on a bad row.

    A row holds numbers in [0, 1], zeros before the window, and sums to its stored sum (1 when there
    is none) within `rounding_bound`; the stored sum is 1 within `summation_bound`, or less than
    that where a learned sink takes the rest.
    """
    from h2osim.attention import row_loops

    sums = np.empty((len(heads), n), dtype=np.int64)
    top = np.empty((len(heads), n), dtype=np.int64)
    row_loops.scan_rows(bits, n, window or 0, sums, top)
    entries = np.arange(1, n + 1, dtype=np.float64)
    stored = np.ones(sums.shape) if row_sum is None else row_sum.astype(np.float64)
    found = sums / ONE
    wrong_entry = (top < 0) | (top > ONE_BITS)
    off = stored - 1
    wrong_stored = ~(np.abs(off) <= summation_bound(entries, computed_in))
    wrong_sum = ~(np.abs(found - stored) <= rounding_bound(stored, entries))
    if sink:
        wrong_stored &= ~((stored >= 0) & (off < 0))
        if row_sum is None:
            wrong_sum &= found > stored
    if not (wrong_entry.any() or wrong_stored.any() or wrong_sum.any()):
        return sums
    h, t = (int(x) for x in np.argwhere(wrong_entry | wrong_stored | wrong_sum)[0])
    place = f"{where}, head {heads[h]}, row {t}"
    if wrong_entry[h, t]:
        row = bits[h, row_slice(t)]
        outside = np.arange(t + 1) <= t - (window or n)
        column = int(np.argmax((row > ONE_BITS) | (outside & (row != 0))))
        value = row[column : column + 1].view(np.float16)[0]
        expected = "0 before the window" if row[column] <= ONE_BITS else "a number in [0, 1]"
        raise UserError(f"{place}, column {column}: found {value}, expected {expected}")
    if wrong_stored[h, t]:
        limit = float(summation_bound(entries[t], computed_in))
        raise UserError(
            f"{place}: found stored sum before rounding {stored[h, t]:.9g}, "
            f"expected 1 within {limit:.2g}"
        )
    expected_sum = float(stored[h, t])
    limit = float(rounding_bound(expected_sum, entries[t]))
    raise UserError(
        f"{place}: found sum {found[h, t]:.9g}, expected {expected_sum:.9g} within {limit:.2g} "
        f"(what rounding to float16 explains)"
    )


def check_floats(
    where: str,
    heads: tuple[int, ...],
    kv_heads: tuple[int, ...],
    tensors: Mapping[str, NDArray[Any]],
) -> None:
    """Every float32 tensor is finite, and norms are not negative; UserError naming the place."""
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            continue
        wrong = ~np.isfinite(tensor)
        if "norm" in name:
            wrong |= tensor < 0
        if wrong.any():
            place = tuple(int(x) for x in np.argwhere(wrong)[0])
            of = heads if name in PER_QUERY_HEAD else kv_heads
            spot = f"head {of[place[0]]}, row {place[1]}" if len(place) > 1 else f"row {place[0]}"
            expected = "a finite number from 0 on" if "norm" in name else "a finite number"
            raise UserError(
                f"{where}, tensor {name}, {spot}: "
                f"found {tensor[place]}, expected {expected}"
            )
