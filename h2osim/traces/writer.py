"""Writing a trace so that it is there whole or not at all, also after a crash."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import rows_in, tri
from h2osim.support import reading
from h2osim.support.atomic import flush, hidden_folder, take_place
from h2osim.support.errors import UserError
from h2osim.support.given import printable
from h2osim.traces import files, manifest


class LayerWriter:
    """One layer's file while it is written; made by `TraceWriter.layer`.

    ``f.write_rows("scores", head, t0, bits)`` streams packed rows; ``f[name]`` is a writable array
    over the tensor's place in the file (float16 as such). Every tensor must be filled: what is not
    written stays zero.
    """

    def __init__(self, path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        header, self._slots = files.layout(tensors)
        last = max(self._slots.values(), key=lambda slot: slot.offset)
        size = last.offset + last.nbytes
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._views: dict[str, NDArray[Any]] = {}
        try:
            # the room is taken now: a full disk is an error here, not a bus error in the map later
            _reserve(self._fd, size)
            self._write(0, header)
        except BaseException:
            self.close()
            raise

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B")
        while left:
            done = os.pwrite(self._fd, left, offset)
            left, offset = left[done:], offset + done

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._views:
            slot = self._slots[name]
            self._views[name] = np.memmap(
                self._path, files.DTYPES[slot.dtype], "r+", slot.offset, slot.shape
            )
        return self._views[name]

    def write_rows(self, name: str, head: int, first: int, bits: Any) -> None:
        """Rows `first`, first+1, ... of one head into a packed tensor.

        bits: float16 or their uint16 patterns, one axis, any strides, whole rows.
        """
        data = np.asarray(bits)
        if data.dtype not in (np.float16, np.uint16) or data.ndim != 1:
            raise TypeError(f"rows are 1-d float16 or uint16, not {data.dtype} {data.shape}")
        slot = self._slots[name]
        heads, packed = slot.shape
        if not 0 <= head < heads:
            raise IndexError(f"head {head} of {heads}")
        stop = rows_in(tri(first) + data.size)
        if tri(stop) > packed:
            raise IndexError(f"row {stop - 1} of {rows_in(packed)}")
        data = np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("<"))
        self._write(slot.offset + 2 * (head * packed + tri(first)), data.data)

    def close(self) -> None:
        """Write the file out to the disk and close it; arrays got from it are used no more."""
        self._views.clear()
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1


class TraceWriter:
    """Writes a trace folder; a context manager.

    Everything goes into a folder in a hidden one beside `path`. It gets its name when the block
    ends well and is removed when it does not (Ctrl-C included); after a kill, by the next one who
    writes there. An existing `path` is refused, at the beginning, unless `overwrite` is set and it
    is a trace with nothing else in it; at any time it is the old trace or the new one, whole. A
    link is written through.

    fields: the manifest's fields, see the package's docstring. n, heads, kv_heads and head_dim may
    also be given with the first layer. ``writer.manifest`` can be amended until the block ends, so
    that what is known late (tokens, prompt_len) can be put in late. before_naming: called with the
    hidden folder once everything is in it; what it raises leaves no trace behind.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        before_naming: Callable[[Path], None] | None = None,
        **fields: Any,
    ) -> None:
        self.path = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
        self._before_naming = before_naming
        self._overwrite = overwrite
        known = {*manifest.OPTIONAL, "name", "n", "heads", "group_size", "kv_heads", "stores"}
        if unknown := set(fields) - known:
            raise TypeError(f"no such fields in a manifest: {', '.join(sorted(unknown))}")
        version = getattr(sys.modules[__package__.partition(".")[0]], "__version__", "")
        self.manifest: dict[str, Any] = {
            "format": manifest.FORMAT,
            "version": manifest.VERSION,
            "name": printable(self.path.absolute().name),
            **manifest.OPTIONAL,
            "provenance": {},
            "created_by": f"h2osim {version}".strip(),
            **fields,
            "layers": [],
        }
        self._folder: Path | None = None
        self._hidden = ExitStack()
        self._made: list[Path] = []

    def __enter__(self) -> TraceWriter:
        reading.check(self.manifest["name"], manifest.Name, f"{self.path}: field name")
        try:
            self._refuse_existing()
            parent = self.path.absolute().parent
            for above in (parent, *parent.parents):
                if (above / "trace.json").is_file():
                    raise UserError(f"{self.path}: is in the trace {above}, expected another place")
            missing = [p for p in (parent, *parent.parents) if not p.exists()]
            for place in reversed(missing):
                self._made.append(place)
                place.mkdir(exist_ok=True)
            self._folder = self._hidden.enter_context(hidden_folder(parent)) / self.path.name
            self._folder.mkdir()
        except BaseException as error:
            self._discard()
            if isinstance(error, OSError):
                raise UserError(f"{self.path}: cannot be made: {error.strerror}") from None
            raise
        return self

    def attempt(self) -> None:
        """UserError where a trace cannot be made here, before any work; nothing is left of it."""
        self.__enter__()
        self._discard()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._discard()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
            return
        try:
            self._publish()
        except BaseException as failure:
            self._discard()
            if isinstance(failure, OSError):
                raise UserError(f"{self.path}: cannot be written: {failure.strerror}") from None
            raise

    @contextmanager
    def layer(
        self,
        index: int,
        n: int | None = None,
        heads: int | Sequence[int] | None = None,
        kv_heads: int | Sequence[int] | None = None,
        head_dim: int | None = None,
        *,
        tensors: Mapping[str, tuple[Any, Sequence[int]]] | Iterable[str],
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        **facts: Any,
    ) -> Iterator[LayerWriter]:
        """The file of model layer `index`, closed and summed (sha256) when the block ends.

        heads, kv_heads: indices, or how many from 0 on. tensors: name -> (dtype, shape), or just
        the names where the shapes follow (all but "v" of another size than the keys). facts: more
        of the layer's entry in the manifest.
        """
        if self._folder is None:
            raise RuntimeError("a TraceWriter is used in a with statement")
        given = {"n": n, "heads": _indices(heads), "kv_heads": _indices(kv_heads)}
        for field, value in {**given, "head_dim": head_dim}.items():
            if value is not None and self.manifest.get(field) is None:
                self.manifest[field] = value
            elif value is not None and self.manifest[field] != value:
                raise ValueError(f"{field} {value}, but {self.manifest[field]} before")
        spec = self._shapes(tensors)
        file = f"layer-{index:03d}.safetensors"
        path = self._folder / file
        try:
            writer = LayerWriter(path, spec)
        except OSError as error:
            raise UserError(f"{self.path}: cannot be written: {error.strerror}") from None
        try:
            yield writer
        finally:
            writer.close()
        self.manifest["layers"].append(
            {
                "index": index,
                "file": file,
                "sha256": reading.sha256_of(path),
                "bytes": path.stat().st_size,
                "scale": scale,
                "window": window,
                "softcap": softcap,
                "tensors": sorted(spec),
                **facts,
            }
        )

    def _shapes(
        self, tensors: Mapping[str, tuple[Any, Sequence[int]]] | Iterable[str]
    ) -> dict[str, tuple[str, tuple[int, ...]]]:
        m = self.manifest
        listed = tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors)
        if not listed:
            raise ValueError("a layer has at least one tensor")
        spec = {}
        for name, given in listed.items():
            wanted = files.expected(
                name, m["n"], len(m["heads"]), len(m["kv_heads"]), m["head_dim"]
            )
            if wanted is None:
                raise ValueError(f"no tensor of a trace is called {name}")
            dtype, shape = wanted
            if given is not None:
                found = tuple(int(s) for s in given[1])
                names = {dtype, str(files.DTYPES[dtype]), files.DTYPES[dtype].name}
                if dtype == "F16":
                    names.add("uint16")  # their patterns
                kind = given[0] if isinstance(given[0], str) else np.dtype(given[0]).name
                if kind not in names or not files.fits(found, shape):
                    raise ValueError(
                        f"tensor {name}: {kind} {found}, expected {dtype} {files.shape_text(shape)}"
                    )
                spec[name] = (dtype, found)
            else:
                filled = tuple(m["head_dim"] if s is None else s for s in shape)
                if None in filled:
                    raise ValueError(f"tensor {name}: its shape needs head_dim")
                spec[name] = (dtype, filled)
        return spec

    def _refuse_existing(self) -> None:
        if not (self.path.exists() or self.path.is_symlink()):
            return
        if not self._overwrite:
            raise UserError(f"{self.path}: exists already; nothing was written")
        try:
            others = _others(self.path)
        except (UserError, OSError):
            raise UserError(
                f"{self.path}: exists and is no trace; only a trace is overwritten"
            ) from None
        if others:
            raise UserError(
                f"{self.path}: holds {min(others)}, which is no part of the trace; move it first"
            )

    def _publish(self) -> None:
        """Write trace.json and give the folder its name."""
        assert self._folder is not None
        manifest.check(self.manifest, str(self.path / "trace.json"))
        text = json.dumps(self.manifest, ensure_ascii=False, indent=1, allow_nan=False)
        file = self._folder / "trace.json"
        file.write_text(text + "\n", encoding="utf-8")
        flush(file)
        flush(self._folder)
        if self._before_naming is not None:
            self._before_naming(self._folder)
        self._refuse_existing()
        if not self._overwrite:
            os.rename(self._folder, self.path)  # fails where one has come since
            former = None
        else:
            former = take_place(self._folder, self.path)
        if former is not None and _others(former):  # put in since it was looked at
            take_place(former, self.path)
            self._refuse_existing()
        self._hidden.close()
        flush(self.path.absolute().parent)

    def _discard(self) -> None:
        """Remove what was written, and the parent folders made for it."""
        self._hidden.close()
        for place in reversed(self._made):
            with suppress(OSError):
                place.rmdir()


def _others(path: Path) -> set[str]:
    """The names in a trace's folder that are no part of the trace."""
    own = {"trace.json"} | {layer["file"] for layer in manifest.read(path)["layers"]}
    return {entry.name for entry in path.iterdir()} - own


def _reserve(fd: int, size: int) -> None:
    """Make a file of this size, on the disk where the file system can do that."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
    os.truncate(fd, size)


def _indices(heads: int | Sequence[int] | None) -> list[int] | None:
    if heads is None:
        return None
    return list(range(heads)) if isinstance(heads, int) else [int(h) for h in heads]
