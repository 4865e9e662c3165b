"""The compiled loops that make softmax rows from queries and keys (see softmax.py)."""

from __future__ import annotations

from typing import Any

import numpy as np

from h2osim.support.compiling import njit

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
    """Rows start ... stop-1 of every head into `out`, packed from row `first`; see softmax.py.

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
