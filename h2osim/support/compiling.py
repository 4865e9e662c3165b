"""numba, and where it may keep compiled code: beside the package, else in a folder of the user's.

Compiled code is run when it is found again, so it is taken from folders only that nobody else can
write to.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path

from numba import config, njit
from platformdirs import user_cache_path

__all__ = ["cache_folder", "njit"]


@cache
def cache_folder() -> Path:
    """A folder for code: the user's cache, else one in the temporary folder; a new one if need be.
    """
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
