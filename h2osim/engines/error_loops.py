"""The compiled loops behind :mod:`h2osim.engines.errors`.

Only here may the compiler reorder sums and fuse products: decisions never depend on these numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from h2osim.attention.row_loops import fixed
from h2osim.support.compiling import njit

_FAST: dict[str, Any] = {
    "cache": True, "nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"},
}  # fmt: skip


@njit(**_FAST)
def outputs(
    bits: Any, first: int, start: int, stop: int, p: int,
    values: Any, kv: Any, out: Any, whole: Any, squares: Any, power: Any,
) -> None:  # fmt: skip
    """Put o of each decode row into `out`, its mass and sum of squares, and |o|^2 into `power`."""
    size = values.shape[2]
    for h in range(bits.shape[0]):
        v = values[kv[h]]
        for t in range(max(start, p), stop):
            base = (t * (t + 1) - first * (first + 1)) // 2
            o = out[h, t - start]
            mass, square = np.int64(0), np.int64(0)
            for j in range(t + 1):
                x = fixed(np.int64(bits[h, base + j]))
                if x:
                    mass += x
                    square += x * x
                    a = float(x)
                    for c in range(size):
                        o[c] += a * v[j, c]
            total = 0.0
            if mass:
                for c in range(size):
                    o[c] /= float(mass)
                    total += o[c] * o[c]
            whole[h, t - start], squares[h, t - start], power[h, t] = mass, square, total


@njit(**_FAST)
def add_errors(
    bits: Any, first: int, start: int, stop: int, p: int, missing: Any, counts: Any,
    values: Any, kv: Any, out: Any, whole: Any, squares: Any, every: bool, sums: Any,
) -> None:  # fmt: skip
    """Add each decode row's errors to `sums`: at every budget, or (not `every`) at its step.

    `lost` is sum a_j (v_j - o) over the missing tokens. Of a stack the lowest are missing at most
    budgets, so they come first: what is lost at budget k is there once all below the first k are.
    """
    size = values.shape[2]
    lost = np.zeros(size)
    for h in range(bits.shape[0]):
        v = values[kv[h]]
        for t in range(max(start, p), stop):
            r = t - start
            base = (t * (t + 1) - first * (first + 1)) // 2
            o, all_mass, all_squares = out[h, r], whole[h, r], squares[h, r]
            lost[:] = 0.0
            mass, square = np.int64(0), np.int64(0)
            squared, distance, attention = 0.0, 0.0, 0.0
            last = 1 if every else 0
            for i in range(counts[r] - 1, last - 1, -1):
                j = np.int64(missing[r, i])
                x = fixed(np.int64(bits[h, base + j]))
                if x:
                    mass += x
                    square += x * x
                    a = float(x)
                    total = 0.0
                    for c in range(size):
                        more = lost[c] + a * (v[j, c] - o[c])
                        lost[c] = more
                        total += more * more
                    if every:
                        squared, attention = errors_of(
                            total, mass, square, all_mass, all_squares, o
                        )
                        distance = np.sqrt(squared)
                if every:
                    sums[0, h, i] += squared
                    sums[1, h, i] += distance
                    sums[2, h, i] += attention
            if not every and mass:
                total = 0.0
                for c in range(size):
                    total += lost[c] * lost[c]
                squared, attention = errors_of(total, mass, square, all_mass, all_squares, o)
                sums[0, h, t - p] = squared
                sums[1, h, t - p] = np.sqrt(squared)
                sums[2, h, t - p] = attention


@njit(**_FAST)
def errors_of(
    total: float, mass: int, square: int, all_mass: int, all_squares: int, o: Any
) -> tuple[float, float]:
    """|o - o_S|^2 and sum (a - â)^2 of a row that lacks `mass`; total: |sum a_j (v_j - o)|^2."""
    seen = all_mass - mass
    whole = float(all_mass)
    if seen == 0:  # nothing is attended: o_S and â are 0
        norm = 0.0
        for c in range(o.shape[0]):
            norm += o[c] * o[c]
        return norm, float(all_squares) / (whole * whole)
    more = float(mass) / (whole * float(seen))  # by how much an attended weight has grown
    grown = float(all_squares - square) * (more * more)
    return total / (float(seen) * float(seen)), float(square) / (whole * whole) + grown


@njit(**_FAST)
def add_residuals(
    bits: Any, first: int, start: int, stop: int, p: int, missing: Any, counts: Any,
    values: Any, ends: Any, out: Any, whole: Any, residual: Any, every: bool, sums: Any,
) -> None:  # fmt: skip
    """Add each decode row's |sum_h (o - o_S)|^2 / |x|^2 to `sums`, as `add_errors` does.

    `values` [n, ends[-1]] and `out` [rows, ends[-1]] are those behind the projection, the heads'
    coordinates one after the other, up to `ends`. A stream x of 0 has an error of 0 if nothing is
    lost, else NaN.
    """
    heads = bits.shape[0]
    lost = np.zeros(values.shape[1])
    vector = np.zeros(ends[-1] - (ends[-2] if heads > 1 else 0))  # the last head's are the most
    mass, here = np.zeros(heads, np.int64), np.zeros(heads, np.int64)
    for t in range(max(start, p), stop):
        r = t - start
        base = (t * (t + 1) - first * (first + 1)) // 2
        lost[:] = 0.0
        mass[:] = 0
        error = 0.0
        for i in range(counts[r] - 1, 0 if every else -1, -1):
            j = np.int64(missing[r, i])
            some = np.int64(0)
            for h in range(heads):
                here[h] = fixed(np.int64(bits[h, base + j]))
                mass[h] += here[h]
                some |= here[h]
            if some and every:
                error = moved(
                    lost, mass, here, values[j], ends, out[r], whole[:, r], residual[t], vector
                )
            elif some:
                low = 0
                for h in range(heads):
                    at = slice(low, ends[h])
                    add_lost(lost[at], float(here[h]), values[j, at], out[r, at])
                    low = ends[h]
            if every:
                sums[i] += error
        if not every and mass.any():
            here[:] = 0
            sums[t - p] = moved(
                lost, mass, here, out[r], ends, out[r], whole[:, r], residual[t], vector
            )


@njit(**_FAST)
def moved(
    lost: Any, mass: Any, here: Any, v: Any, ends: Any, o: Any, whole: Any, stream: float,
    vector: Any,
) -> float:  # fmt: skip
    """|sum_h (o_S - o)|^2 / stream of a row that lacks `mass`, of it `here` of token v.

    lost: sum a_j (v_j - o) of each head, to which v is added first. `vector`: room for the sum.
    """
    vector[:] = 0.0
    low = 0
    for h in range(len(ends)):
        at, seen = slice(low, ends[h]), whole[h] - mass[h]
        scale = 1.0 / float(seen) if seen else 0.0
        add_scaled(lost[at], float(here[h]), v[at], o[at], scale, vector)
        if not seen:  # where nothing is attended, o_S is 0
            vector[: ends[h] - low] += o[at]
        low = ends[h]
    total = 0.0
    for c in range(len(vector)):
        total += vector[c] * vector[c]
    if total and not stream:
        return np.nan
    return total / stream if total else 0.0


@njit(**_FAST)
def add_lost(lost: Any, a: float, v: Any, o: Any) -> None:
    """Add a (v - o)."""
    for c in range(len(lost)):
        lost[c] += a * (v[c] - o[c])


@njit(**_FAST)
def add_scaled(lost: Any, a: float, v: Any, o: Any, scale: float, vector: Any) -> None:
    """Add a (v - o), and scale times the sum to the vector."""
    for c in range(len(lost)):
        more = lost[c] + a * (v[c] - o[c])
        lost[c] = more
        vector[c] += scale * more
