"""Arrays and texts in few characters: deflated, in base 64, as browsers can read them again."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np

#: Bits of a float32's fraction that are kept: a relative error below 2^-12, and long runs of zeros.
_FRACTION = 11


def packed(values: np.ndarray) -> dict[str, Any]:
    """An array of whole numbers (uint16 or uint32) or of floats (float32, to 3 digits), deflated.

    The bytes are sorted by their place in a number, the lowest of all numbers first, which deflates
    far better; ``shape`` and ``type`` say how to put them together.
    """
    if values.dtype.kind == "f":
        kind, plain = "float32", rounded(values)
    else:
        kind = "uint16" if values.max(initial=0) < 1 << 16 else "uint32"
        plain = values.astype(kind)
    little = plain.astype(plain.dtype.newbyteorder("<"))
    planes = np.ascontiguousarray(little).reshape(-1).view(np.uint8).reshape(-1, little.itemsize).T
    return {"shape": list(values.shape), "type": kind, "data": _deflated(planes.tobytes())}


def packed_text(text: str) -> dict[str, Any]:
    """A text, deflated."""
    return {"type": "text", "data": _deflated(text.encode())}


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 with the last bits of the fraction cleared, rounded to nearest."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    drop = 23 - _FRACTION
    half = np.uint32(1 << (drop - 1))
    return ((bits + half) >> drop << drop).astype(np.uint32).view(np.float32)


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()
