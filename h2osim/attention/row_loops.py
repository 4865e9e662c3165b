"""Compiled loops over packed rows: sums and validity, column sums, what a description counts.

Imported lazily, because numba is slow to import. Everything here is free of reassociation and of
fused multiply-add (no fastmath), so that the results do not depend on the machine, and releases
the GIL, so that units can be read in threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from h2osim.attention.fixed_point import fixed_point
from h2osim.support.compiling import njit

fixed = njit(cache=True, nogil=True)(fixed_point)


@njit(cache=True, nogil=True)
def sum_heads(bits: Any, begin: int, size: int, row: Any) -> None:
    """Fixed point of one packed row, summed over the heads of `bits`, into row[:size]."""
    for h in range(bits.shape[0]):
        part = bits[h, begin : begin + size]
        for j in range(size):
            x = fixed(np.int64(part[j]))
            row[j] = x if h == 0 else row[j] + x


@njit(cache=True, nogil=True)
def scan_rows(bits: Any, n: int, window: int, sums: Any, top: Any) -> None:
    """Row sums and largest patterns of `bits` [heads, tri(n)], in one pass.

    sums int64 [heads, n]: fixed-point sum of each row (meaningless where one is above 1); top int64
    [heads, n]: the largest pattern in the row. A pattern before the window (j <= t - window; 0: no
    window) that is not zero makes `top` -1.
    """
    for h in range(bits.shape[0]):
        base = 0
        for t in range(n):
            total = np.int64(0)
            largest = np.uint16(0)
            for j in range(base, base + t + 1):
                pattern = bits[h, j]
                total += fixed(np.int64(pattern))
                largest = max(largest, pattern)
            sums[h, t] = total
            top[h, t] = largest
            if window > 0:
                for j in range(base, base + t + 1 - window):
                    if bits[h, j] != 0:
                        top[h, t] = -1
            base += t + 1


@njit(cache=True, nogil=True)
def add_columns(bits: Any, first: int, start: int, stop: int, columns: Any, masses: Any) -> None:
    """Add rows start ... stop-1 of a block from row `first` on to columns and masses, int64 [n]."""
    for h in range(bits.shape[0]):
        base = (start * (start + 1) - first * (first + 1)) // 2
        for t in range(start, stop):
            total = np.int64(0)
            for j in range(t + 1):
                value = fixed(np.int64(bits[h, base + j]))
                columns[j] += value
                total += value
            masses[t] += total
            base += t + 1


@njit(cache=True, nogil=True)
def describe_rows(
    bits: Any,
    first: int,
    start: int,
    stop: int,
    window: int,
    sinks: int,
    recent: int,
    counts: Any,
    masses: Any,
    columns: Any,
    late: Any,
    sums: Any,
) -> None:
    """Add what describe.py counts of rows start ... stop-1 of a block from row `first` on.

    counts int64 [H, 3]: entries a row can see, those under 1 % of the row's largest, zeros.
    masses int64 [H, 3]: all, on the first `sinks` tokens, on the newest `recent` (sinks aside).
    columns, late int64 [H, n]: mass of each token, and that from rows at least `recent` later.
    sums int64 [H, stop-start]: not added to but set, the mass of each row.
    """
    for h in range(bits.shape[0]):
        base = (start * (start + 1) - first * (first + 1)) // 2
        for t in range(start, stop):
            low = max(0, t + 1 - window) if window > 0 else 0
            near = max(0, t + 1 - recent)
            largest = np.uint16(0)
            for j in range(low, t + 1):
                largest = max(largest, bits[h, base + j])
            limit = fixed(np.int64(largest))
            under, zeros = np.int64(0), np.int64(0)
            total, to_sinks, to_near = np.int64(0), np.int64(0), np.int64(0)
            for j in range(low, t + 1):
                value = fixed(np.int64(bits[h, base + j]))
                under += value * 100 < limit
                zeros += value == 0
                total += value
                columns[h, j] += value
            for j in range(low, min(sinks, t + 1)):
                to_sinks += fixed(np.int64(bits[h, base + j]))
            for j in range(low, near):
                late[h, j] += fixed(np.int64(bits[h, base + j]))
            for j in range(max(low, near, sinks), t + 1):
                to_near += fixed(np.int64(bits[h, base + j]))
            counts[h, 0] += t + 1 - low
            counts[h, 1] += under
            counts[h, 2] += zeros
            sums[h, t - start] = total
            masses[h, 0] += total
            masses[h, 1] += to_sinks
            masses[h, 2] += to_near
            base += t + 1


@njit(cache=True, nogil=True)
def pool_rows(bits: Any, first: int, start: int, stop: int, n: int, cells: Any) -> None:
    """Cells int64 [c, c] = largest entry of the summed rows of a block in each cell."""
    size = cells.shape[0]
    row = np.empty(stop, dtype=np.int64)
    base = (start * (start + 1) - first * (first + 1)) // 2
    for t in range(start, stop):
        row[: t + 1] = 0
        for h in range(bits.shape[0]):
            for j in range(t + 1):
                row[j] += fixed(np.int64(bits[h, base + j]))
        at = t * size // n
        for j in range(t + 1):
            cells[at, j * size // n] = max(cells[at, j * size // n], row[j])
        base += t + 1


@njit(cache=True, nogil=True)
def pack(rows: Any, start: int, first: int, bits: Any) -> None:
    """Rows start, start + 1, … of patterns [heads, rows, columns from `first` on] into packed bits.

    bits uint16 [heads, packed]: row `start` begins at 0; what lies before `first` stays.
    """
    for h in range(rows.shape[0]):
        base = 0
        for r in range(rows.shape[1]):
            t = start + r
            for j in range(first, t + 1):
                bits[h, base + j] = rows[h, r, j - first]
            base += t + 1
