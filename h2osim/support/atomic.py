"""Files that are whole whenever they are there, also after a crash or a power cut."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LEFTOVERS = ".*.partial*"
"""Glob pattern of the temporary names: what a killed process leaves behind is found by it."""

UNFINISHED: set[Path] = set()
"""Temporary files and folders of this process, for :func:`discard_all`."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path beside `target`, with the same suffix, that takes its place if the body succeeds.

    The body writes the file. It is flushed to the disk before it is renamed, and the folder after,
    so at any time `target` holds either what it held before or all of the new contents. If the body
    raises, the temporary file is removed and `target` stays as it was. A link is written through.
    """
    with _temporary(target) as (real, temporary):
        yield temporary
        flush(temporary)
        os.replace(temporary, real)
    flush(real.parent)


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, Path]]:
    """Where `target` really is, and a temporary name beside it; what is there in the end goes."""
    real = Path(os.path.realpath(target))
    temporary = temporary_name(real)
    UNFINISHED.add(temporary)
    try:
        yield real, temporary
    finally:
        temporary.unlink(missing_ok=True)
        UNFINISHED.discard(temporary)


def try_writing(target: Path) -> None:
    """OSError where `replacing` could not write a small file: the folder, the disk or the name."""
    with suppress(FileNotFoundError):
        os.stat(target)  # says when the name is too long
    with _temporary(target) as (_, temporary), open(temporary, "xb") as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())


def claim(folder: Path) -> int | None:
    """A descriptor that locks a folder until it is closed, or its process ends; None where another
    has it, and on systems without such locks.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def discard_all() -> None:
    """Remove what this process has half written: for one that ends without a clean-up."""
    for path in list(UNFINISHED):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)


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
