"""numba, and where it may keep compiled code: beside the package, else in a folder of the user's.

Compiled code is run when it is found again, so it is taken from folders only that nobody else can
write to, and only as it was written.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numba
from numba import config
from numba.core.caching import IndexDataCacheFile
from platformdirs import user_cache_path

__all__ = ["cache_folder", "njit"]


@cache
def cache_folder() -> Path:
    """A folder for code: the user's cache, else a temporary one; a new one if need be."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    for folder in (user_cache_path("h2osim"), Path(tempfile.gettempdir()) / f"h2osim-{user}"):
        if _writable(folder) and folder.stat().st_uid == (user or 0):
            return folder
    return Path(tempfile.mkdtemp(prefix="h2osim"))


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


if not config.CACHE_DIR and not _writable(Path(__file__).parent / "__pycache__"):
    config.CACHE_DIR = str(cache_folder() / "numba")


class _Sound(IndexDataCacheFile):
    """numba's files of compiled code, each with a sha256 at its end: what is damaged, or speaks of
    other arguments, is compiled again. What cannot be written is done without.
    """

    def save(self, key: Any, data: Any) -> None:
        with suppress(OSError):
            super().save(key, (key, data))

    def load(self, key: Any) -> Any:
        # two processes that save at once may have left one's code under the other's name
        found = super().load(key)
        return found[1] if found is not None and found[0] == key else None

    def _dump(self, value: Any) -> bytes:
        data: bytes = super()._dump(value)
        return data + sha256(data).digest()  # the reader of pickles stops before

    def _load_index(self) -> Any:
        version = pickle.dumps(self._version, protocol=-1)
        with suppress(OSError):
            whole = Path(self._index_path).read_bytes()
            if whole.startswith(version) and _sound(whole[len(version) :]):
                return super()._load_index()
        return {}

    def _load_data(self, name: str) -> Any:
        if not _sound(Path(self._data_path(name)).read_bytes()):
            raise OSError  # as if it were not there
        return super()._load_data(name)


def _sound(data: bytes) -> bool:
    return sha256(data[:-32]).digest() == data[-32:]


def njit(*given: Any, **options: Any) -> Any:
    """``numba.njit``, of which compiled code is only taken as it was written."""
    if not given:
        return lambda function: njit(function, **options)
    compiled: Callable[..., Any] = numba.njit(*given, **options)
    files = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if files is not None:
        files.__class__ = _Sound
    return compiled
