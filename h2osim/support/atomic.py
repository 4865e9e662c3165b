"""Files that are whole whenever they are there, also after a crash or a power cut."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

LEFTOVERS = ".h2osim-*.partial"
"""Glob pattern of the hidden folders: what a killed process leaves behind is found by it."""
_REPLACED = "replaced"

UNFINISHED: set[Path] = set()
"""Hidden folders of this process, for :func:`discard_all`."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path of the same name, in a hidden folder, that takes the target's place if the body
    succeeds.

    The body writes the file. It is flushed to the disk before it is renamed, and the folder after,
    so at any time `target` holds either what it held before or all of the new contents. If the body
    raises, the temporary file is removed and `target` stays as it was. A link is written through.
    """
    real = Path(os.path.realpath(target))
    with naming(target):
        with hidden_folder(real.parent) as folder:
            temporary = folder / real.name
            yield temporary
            flush(temporary)
            os.replace(temporary, real)
        flush(real.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system that names no file, or a hidden one, names this one."""
    try:
        yield
    except OSError as error:
        if error.errno and (not error.filename or "/.h2osim-" in str(error.filename)):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def hidden_folder(parent: Path) -> Iterator[Path]:
    """A locked folder for what is to be renamed into `parent`; it goes with what is left in it.

    The lock ends with the process. What killed processes left in `parent` is removed before, once
    in the life of this one.
    """
    _sweep_once(parent)
    lock = None
    while True:
        folder = parent / f".h2osim-{secrets.token_hex(8)}.partial"
        UNFINISHED.add(folder)
        try:
            folder.mkdir()
            lock = _locked(folder, wait=True)
            if not folder.exists():  # another process took it for abandoned
                continue
            yield folder
            return
        finally:
            _remove(folder)
            UNFINISHED.discard(folder)
            if lock is not None:
                os.close(lock)


def take_place(new: Path, target: Path) -> Path | None:
    """Give the folder `new`, in a hidden folder, the name `target`; where the former one is now.

    In one step where the system can exchange two names. Elsewhere there is none of that name for a
    moment, and if the process is killed then, :func:`sweep` brings the former one back.
    """
    if not target.exists():
        os.rename(new, target)
        return None
    if _exchange(new, target):
        return new
    former = new.parent / _REPLACED / target.name
    former.parent.mkdir()
    os.rename(target, former)
    os.rename(new, target)  # where this fails, the end of the hidden folder brings back
    return former


def _exchange(one: Path, other: Path) -> bool:
    """Whether two names were exchanged; many file systems of Linux can, and no other system."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(here, names[0], here, names[1], exchange) == 0


def sweep(parent: Path, below: bool = False) -> None:
    """Remove what killed processes left in a folder, or also below it, and bring back what they
    had moved away.
    """
    for left in list(parent.rglob(LEFTOVERS) if below else parent.glob(LEFTOVERS)):
        if (lock := _locked(left)) is not None:
            _remove(left)
            os.close(lock)


@cache
def _sweep_once(parent: Path) -> None:
    sweep(parent)


def bring_back(target: Path) -> None:
    """Undo half a replacement of `target` by a killed process."""
    if any((left / _REPLACED / target.name).exists() for left in target.parent.glob(LEFTOVERS)):
        sweep(target.parent)


def _remove(folder: Path) -> None:
    """Remove a hidden folder, but not the only copy of what was moved there."""
    with suppress(OSError):
        for former in list(folder.glob(f"{_REPLACED}/*")):
            if not (place := folder.parent / former.name).exists():
                os.rename(former, place)
        shutil.rmtree(folder, ignore_errors=True)


def try_writing(target: Path) -> None:
    """OSError where `replacing` could not write a small file: the folder, the disk or the name."""
    real = Path(os.path.realpath(target))
    with hidden_folder(real.parent) as folder, open(folder / real.name, "xb") as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())


def _locked(folder: Path, wait: bool = False) -> int | None:
    """A descriptor that locks a folder until it is closed, or its process ends; None where another
    has it, and on systems without such locks.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def discard_all() -> None:
    """Remove what this process has half written: for one that ends without a clean-up."""
    for folder in list(UNFINISHED):
        _remove(folder)


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
