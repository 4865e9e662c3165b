"""The compiled loops over packed rows: sums and validity, column sums, softmax rows.

Imported lazily (numba is slow to import) by trace.py, rows.py and describe.py, never by engines.
Everything here is free of reassociation and of fused multiply-add (no fastmath), so that the
results do not depend on the machine, and releases the GIL, so that units can be read in threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_ONE_BITS = 0x3C00


def _fixed_table() -> Any:
    """Fixed point of each pattern; 0 for the patterns that are no probability."""
    table = np.zeros(1 << 16, dtype=np.int32)
    patterns = np.arange(_ONE_BITS + 1, dtype=np.uint16)
    table[: _ONE_BITS + 1] = np.ldexp(patterns.view(np.float16).astype(np.float64), 24)
    return table


FIXED = _fixed_table()


@njit(cache=True, nogil=True)
def scan_rows(bits: Any, n: int, window: int, table: Any, sums: Any, top: Any) -> None:
    """Row sums and largest patterns of `bits` [heads, tri(n)], in one pass.

    sums int64 [heads, n]: fixed-point sum of each row (patterns above 1 count as 0); top int64
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
                total += table[pattern]
                largest = max(largest, pattern)
            sums[h, t] = total
            top[h, t] = largest
            if window > 0:
                for j in range(base, base + t + 1 - window):
                    if bits[h, j] != 0:
                        top[h, t] = -1
            base += t + 1


@njit(cache=True, nogil=True)
def add_columns(
    bits: Any, first: int, start: int, stop: int, table: Any, columns: Any, masses: Any
) -> None:
    """Add rows start ... stop-1 of a block from row `first` on to columns and masses, int64 [n]."""
    for h in range(bits.shape[0]):
        base = (start * (start + 1) - first * (first + 1)) // 2
        for t in range(start, stop):
            total = np.int64(0)
            for j in range(t + 1):
                value = table[bits[h, base + j]]
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
    table: Any,
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
            limit = np.int64(table[largest])
            under, zeros = np.int64(0), np.int64(0)
            total, to_sinks, to_near = np.int64(0), np.int64(0), np.int64(0)
            for j in range(low, t + 1):
                value = np.int64(table[bits[h, base + j]])
                under += value * 100 < limit
                zeros += value == 0
                total += value
                columns[h, j] += value
            for j in range(low, min(sinks, t + 1)):
                to_sinks += table[bits[h, base + j]]
            for j in range(low, near):
                late[h, j] += table[bits[h, base + j]]
            for j in range(max(low, near, sinks), t + 1):
                to_near += table[bits[h, base + j]]
            counts[h, 0] += t + 1 - low
            counts[h, 1] += under
            counts[h, 2] += zeros
            sums[h, t - start] = total
            masses[h, 0] += total
            masses[h, 1] += to_sinks
            masses[h, 2] += to_near
            base += t + 1


@njit(cache=True, nogil=True)
def pool_rows(bits: Any, first: int, start: int, stop: int, n: int, table: Any, cells: Any) -> None:
    """Cells int64 [c, c] = largest entry of the summed rows of a block in each cell."""
    size = cells.shape[0]
    row = np.empty(stop, dtype=np.int64)
    base = (start * (start + 1) - first * (first + 1)) // 2
    for t in range(start, stop):
        row[: t + 1] = 0
        for h in range(bits.shape[0]):
            for j in range(t + 1):
                row[j] += table[bits[h, base + j]]
        at = t * size // n
        for j in range(t + 1):
            cells[at, j * size // n] = max(cells[at, j * size // n], row[j])
        base += t + 1


_TILE = 512
_LANES = 16
_LOG2E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low bits
_SUBNORMAL = np.float32(8388608.0)  # 2^23
_TO_FIXED = np.float32(16777216.0)  # 2^24
_SMALLEST = np.float32(-87.0)
_LEAST_POWER = np.float32(-126.0)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_TWO = np.float32(2.0)
_C3 = np.float32(1.0 / 6)
_C4 = np.float32(1.0 / 24)
_C5 = np.float32(1.0 / 120)
_C6 = np.float32(1.0 / 720)

# The helpers below take whole arrays and count from 0: indices that numba cannot prove to be
# non-negative get a test for Python's negative indexing, and such loops are not vectorised.


@njit(cache=True, nogil=True, error_model="numpy")
def _add_products(x0: Any, x1: Any, x2: Any, x3: Any, key: Any, a: Any) -> None:
    """Add a[i] * key to the logits of four rows: one coordinate of the inner products."""
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    for j in range(key.shape[0]):
        k = key[j]
        x0[j] += a0 * k
        x1[j] += a1 * k
        x2[j] += a2 * k
        x3[j] += a3 * k


@njit(cache=True, nogil=True, error_model="numpy")
def _exp_into(x: Any, power: Any) -> None:
    """Put exp(x) for x, float32 x <= 0; 0 below -87, NaN stays NaN.

    x = m ln 2 + r with |r| <= ln 2 / 2, then the Taylor polynomial of degree 6 (relative error
    under 2^-22) times 2^m put together from bits. `power` is float32 room of the same length. Only
    additions and multiplications: libm and the vector libraries of two machines differ in the last
    digit of exp, this does not.
    """
    as_int = power.view(np.int32)
    for j in range(x.shape[0]):
        whole = (x[j] * _LOG2E + _ROUND) - _ROUND
        r = (x[j] - whole * _LN2_HIGH) - whole * _LN2_LOW
        p = _ONE + r * (_ONE + r * (_HALF + r * (_C3 + r * (_C4 + r * (_C5 + r * _C6)))))
        kept = whole if whole > _LEAST_POWER else _LEAST_POWER
        as_int[j] = (np.int32(kept) + np.int32(127)) << np.int32(23)
        x[j] = _ZERO if x[j] < _SMALLEST else p
    for j in range(x.shape[0]):
        x[j] *= power[j]


@njit(cache=True, nogil=True, error_model="numpy")
def _cap_logits(x: Any, cap: Any, room: Any) -> None:
    """Put cap * tanh(x / cap) for x, tanh from the same exp."""
    sign = x.copy()
    for j in range(x.shape[0]):
        x[j] = -_TWO * abs(x[j] / cap)
    _exp_into(x, room)
    for j in range(x.shape[0]):
        squashed = cap * ((_ONE - x[j]) / (_ONE + x[j]))
        x[j] = -squashed if sign[j] < _ZERO else squashed


@njit(cache=True, nogil=True, error_model="numpy")
def _largest(x: Any) -> Any:
    """The largest of x, float32."""
    lanes = np.full(_LANES, x[0], dtype=np.float32)
    many = x.shape[0] // _LANES
    for i in range(many):
        part = x[i * _LANES :]
        for lane in range(_LANES):
            lanes[lane] = part[lane] if part[lane] > lanes[lane] else lanes[lane]
    for j in range(many * _LANES, x.shape[0]):
        lanes[0] = max(lanes[0], x[j])
    return lanes.max()


@njit(cache=True, nogil=True, error_model="numpy")
def _total(x: Any) -> float:
    """The sum of float32 x in float64: 16 sums of every 16th number, added up in order."""
    lanes = np.zeros(_LANES, dtype=np.float64)
    many = x.shape[0] // _LANES
    for i in range(many):
        part = x[i * _LANES :]
        for lane in range(_LANES):
            lanes[lane] += np.float64(part[lane])
    for j in range(many * _LANES, x.shape[0]):
        lanes[j - many * _LANES] += np.float64(x[j])
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def _patterns_into(out: Any, x: Any, room: Any) -> None:
    """Float16 patterns of float32 x in [0, 1] into out, to nearest, ties to even.

    Results below 2^-14 are multiples of 2^-24, which adding 2^23 to x * 2^24 rounds to; the others
    are rounded in their bits.
    """
    pattern = x.view(np.int32)
    rounding = room.view(np.int32)
    for j in range(x.shape[0]):
        room[j] = x[j] * _TO_FIXED + _SUBNORMAL
    for j in range(x.shape[0]):
        b = pattern[j]
        last = (b >> np.int32(13)) & np.int32(1)
        normal = ((b + np.int32(0xFFF) + last) >> np.int32(13)) - np.int32(0x1C000)
        flushed = rounding[j] - np.int32(0x4B000000)
        out[j] = np.uint16(normal if b >= np.int32(0x38800000) else flushed)


@njit(cache=True, nogil=True, error_model="numpy")
def softmax_rows(
    q: Any,
    keys: Any,
    group_size: int,
    start: int,
    stop: int,
    first: int,
    scale: Any,
    cap: Any,
    window: int,
    out: Any,
    lse: Any,
    row_sum: Any,
) -> None:
    """Rows start ... stop-1 of every head into `out`, packed from row `first`; see rows.py.

    q float32 [H, stop-start, d], keys float32 [G, d, n] (transposed), scale and cap float32 (cap 0:
    none), window int (0: none), out uint16 [H, packed], lse and row_sum float32 [H, stop-start].
    """
    heads, rows, size = q.shape
    logits = np.empty((4, stop), dtype=np.float32)
    room = np.empty(stop, dtype=np.float32)
    row = np.empty((size, 4), dtype=np.float32)
    for h in range(heads):
        g = h // group_size
        for t4 in range(start, stop, 4):
            many = min(4, stop - t4)
            low = max(0, t4 + 1 - window) if window > 0 else 0
            logits[:, low : t4 + many] = _ZERO
            for i in range(4):
                row[:, i] = q[h, min(t4 + i - start, rows - 1)]
            for j0 in range(low, t4 + many, _TILE):
                j1 = min(j0 + _TILE, t4 + many)
                for c in range(size):
                    _add_products(
                        logits[0, j0:j1],
                        logits[1, j0:j1],
                        logits[2, j0:j1],
                        logits[3, j0:j1],
                        keys[g, c, j0:j1],
                        row[c],
                    )
            for i in range(many):
                t = t4 + i
                low = max(0, t + 1 - window) if window > 0 else 0
                x = logits[i, low : t + 1]
                some = room[low : t + 1]
                for j in range(x.shape[0]):
                    x[j] *= scale
                if cap > _ZERO:
                    _cap_logits(x, cap, some)
                largest = _largest(x)
                for j in range(x.shape[0]):
                    x[j] -= largest
                _exp_into(x, some)
                total = _total(x)
                lse[h, t - start] = np.float32(np.float64(largest) + np.log(total))
                divisor = np.float32(total)
                for j in range(x.shape[0]):
                    x[j] /= divisor
                row_sum[h, t - start] = np.float32(_total(x))
                base = (t * (t + 1) - first * (first + 1)) // 2
                out[h, base : base + low] = 0
                _patterns_into(out[h, base + low : base + t + 1], x, some)
