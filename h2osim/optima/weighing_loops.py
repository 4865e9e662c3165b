"""The compiled loop behind :mod:`h2osim.optima.weighing`: one order of operations, no fast math."""

from __future__ import annotations

from typing import Any

import numpy as np

from h2osim.attention.fixed_point import UNIT
from h2osim.attention.row_loops import fixed
from h2osim.support.compiling import njit

_LANES = 8


@njit(cache=True, nogil=True, error_model="numpy")
def weigh(
    bits: Any, first: int, start: int, stop: int, values: Any, kv: Any, scale: float, room: Any
) -> None:
    """Rows start … stop - 1 of A |v - o| / scale, packed from row `start`, into `room`."""
    size = values.shape[2]
    o = np.zeros(size)
    for h in range(bits.shape[0]):
        v = values[kv[h]]
        for t in range(start, stop):
            base = (t * (t + 1) - first * (first + 1)) // 2
            into = (t * (t + 1) - start * (start + 1)) // 2
            o[:] = 0.0
            mass = np.int64(0)
            for j in range(t + 1):
                x = fixed(np.int64(bits[h, base + j]))
                if x:
                    mass += x
                    for c in range(size):
                        o[c] += float(x) * v[j, c]
            if mass:
                for c in range(size):
                    o[c] /= float(mass)
            for j in range(t + 1):
                x = fixed(np.int64(bits[h, base + j]))
                if x:
                    room[h, into + j] = float(x) * UNIT * distance(v[j], o) / scale


@njit(cache=True, nogil=True, error_model="numpy")
def distance(x: Any, y: Any) -> float:
    """|x - y|: eight sums of every eighth square, added up in order."""
    lanes = np.zeros(_LANES)
    many = x.shape[0] // _LANES * _LANES
    for c in range(0, many, _LANES):
        for lane in range(_LANES):
            off = x[c + lane] - y[c + lane]
            lanes[lane] += off * off
    for c in range(many, x.shape[0]):
        off = x[c] - y[c]
        lanes[c - many] += off * off
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    return float(np.sqrt(total))
