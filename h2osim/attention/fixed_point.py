"""Float16 probabilities as integers.

A float16 number in [0, 1] is an integer multiple of 2^-24. That integer, 0 ... 2^24, is its *fixed
point*: sums of it in int64 are exact in any order, which is what lets two engines agree on every
eviction. This module converts between the three spellings (float16, its bit pattern, its fixed
point) and never rounds silently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SHIFT = 24
"""Binary digits after the point: fixed point = probability * 2^SHIFT."""

ONE = 1 << SHIFT
"""The fixed point of probability 1."""

UNIT = 2.0**-SHIFT
"""The probability whose fixed point is 1: every float16 probability is a multiple of it."""

ONE_BITS = 0x3C00
"""The float16 bit pattern of 1.0; the patterns 0 ... ONE_BITS are exactly the numbers in [0, 1],
in increasing order (15361 of them)."""


def fixed_point(pattern: Any) -> Any:
    """The fixed point of float16 patterns that are already int64: one number, or an array of them.

    With exponent field e and fraction field m: m if e = 0 (subnormal), else (1024 + m) * 2^(e-1).
    This is the one definition: NumPy runs it on arrays, and `row_loops.fixed` is it compiled for
    one number. Nothing is checked.
    """
    exponent = pattern >> 10
    normal = exponent > 0
    return (pattern & 1023 | normal << 10) << exponent - normal


def fixed_from_bits(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    """Fixed point of float16 bit patterns, the same shape, int64 (see `fixed_point`).

    Patterns above `ONE_BITS` (negative, above 1, infinite, NaN) raise ValueError.
    """
    bits = np.asarray(bits)
    if bits.dtype != np.uint16:
        raise TypeError(f"float16 bit patterns have dtype uint16, not {bits.dtype}")
    if bits.size and int(bits.max()) > ONE_BITS:
        raise ValueError("a bit pattern is not a float16 number in [0, 1]")
    return np.asarray(fixed_point(bits.astype(np.int64)))


def round_to_bits(probabilities: Any) -> NDArray[np.uint16]:
    """Float16 bit patterns of probabilities of any float dtype, rounded to nearest, ties to even.

    Minus zero becomes zero, so that a pattern and its value determine each other. The caller has
    checked that the numbers lie in [0, 1].
    """
    return (np.asarray(probabilities) + 0.0).astype(np.float16).view(np.uint16)
