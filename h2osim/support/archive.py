"""Arrays in a .npz file that is as it was written, or counts as not there."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.support.atomic import replacing

_SEAL = "sha256"
_PLACE = "place"


def write_arrays(path: Path, arrays: Mapping[str, Any], place: str = "") -> None:
    """Write a .npz file, compressed, whole or not at all; ``place`` says what it is a part of."""
    plain = {name: np.asarray(values) for name, values in arrays.items()}
    plain |= {_PLACE: np.array(place)} if place else {}
    seal = np.frombuffer(_digest(plain), np.uint8)
    with replacing(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **{**plain, _SEAL: seal})


def read_arrays(path: Path, place: str = "") -> dict[str, NDArray[Any]] | None:
    """The arrays of a .npz file; None where there is none that is whole.

    The checksums in the format do not tell when it lost an array: a digest of all of them does, and
    a file without it is not whole. Nor is one that was written for another place, as where a file
    was copied over another, or for none where one is expected.
    """
    try:
        with np.load(path, allow_pickle=False) as opened:
            found = dict(opened)
        seal = found.pop(_SEAL)
        whole = seal.tobytes() == _digest(found)
        return found if whole and str(found.pop(_PLACE, "")) == place else None
    except Exception:  # what zipfile, zlib and NumPy make of damage is of many kinds
        return None


def _digest(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    total = sha256()
    for name, values in sorted(arrays.items()):
        total.update(f"{name} {values.dtype} {values.shape};".encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.digest()
