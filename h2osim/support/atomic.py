"""Files that are whole whenever they are there, also after a crash or a power cut."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVERS = ".*.partial*"
"""Glob pattern of the temporary names: what a killed process leaves behind is found by it."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target`, with the same suffix, that takes its place if the body succeeds.

    The body writes the file. It is flushed to the disk before it is renamed, and the folder after,
    so at any time `target` holds either what it held before or all of the new contents. If the body
    raises, the temporary file is removed and `target` stays as it was.
    """
    temporary = temporary_name(target)
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    flush(target.parent)


def temporary_name(target: Path) -> Path:
    """A free temporary name in the folder of `target`, with the same suffix."""
    return target.parent / f".{secrets.token_hex(8)}.partial{target.suffix}"


def flush(path: Path) -> None:
    """Wait until the contents of a file, or the names in a folder, are on the disk.

    Does nothing on Windows, where only what is opened for writing can be flushed.
    """
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_file(file: Path, wait: bool = False) -> Iterator[bool]:
    """Hold a lock that ends with the process; False where another process holds it."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: files stay whole, some work is done twice
        yield True
        return
    with open(file, "w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True
