"""Rows packed into a lower triangle: row t starts at t(t+1)/2."""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray


def tri(t: int) -> int:
    """Where row t of a packed lower triangle starts: t(t+1)/2. Also the size of t rows."""
    return t * (t + 1) // 2


def rows_in(size: int) -> int:
    """The n with tri(n) = size; ValueError if no triangle has that many entries."""
    n = (isqrt(8 * size + 1) - 1) // 2
    if size < 0 or tri(n) != size:
        raise ValueError(f"{size} entries are no packed triangle")
    return n


def row_slice(t: int, first: int = 0) -> slice:
    """Where row t lies in a packed array whose first row is `first`."""
    start = tri(t) - tri(first)
    return slice(start, start + t + 1)


def pack(square: NDArray[Any], first: int = 0) -> NDArray[Any]:
    """Rows `first`, `first`+1, ... of a matrix, `square[r, :]` being row first + r, packed.

    square has shape [rows, columns] with columns >= first + rows; the entries above the diagonal
    are left out. Always a new contiguous array, whatever the strides of `square`.
    """
    rows, columns = square.shape
    if columns < first + rows:
        raise ValueError(f"{rows} rows from row {first} need {first + rows} columns, not {columns}")
    keep = np.arange(first + rows)[None, :] <= (first + np.arange(rows))[:, None]
    return np.ascontiguousarray(square[:, : first + rows][keep])


def unpack(packed: NDArray[Any], first: int = 0) -> NDArray[Any]:
    """The rows of a packed array as a matrix [rows, first + rows], zeros above the diagonal."""
    stop = rows_in(packed.shape[0] + tri(first))
    rows = stop - first
    square = np.zeros((rows, stop), dtype=packed.dtype)
    square[np.arange(stop)[None, :] <= (first + np.arange(rows))[:, None]] = packed
    return square
