"""Vectors in eight bits a number and one scale a vector: values that take little room."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def to_eight_bits(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers [..., d] and scales [...]: v rounded to the nearest multiple of max |v| / 127.

    So no number is off by more than its vector's largest one / 254.
    """
    scale = (np.abs(vectors).max(axis=-1) / np.float32(127)).astype(np.float32)
    whole = np.divide(
        vectors, scale[..., None], out=np.zeros_like(vectors), where=scale[..., None] > 0
    )
    return np.clip(np.rint(whole), -127, 127).astype(np.int8), scale


def from_eight_bits(
    numbers: NDArray[np.int8], scale: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The vectors, float32: each product rounded once, the same on every machine."""
    return numbers.astype(np.float32) * scale[..., None]
