"""Small files that unpack to huge arrays, and files that are cut short while they are read."""

from __future__ import annotations

import hashlib
import json
import resource
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import h2osim
from h2osim import UserError
from h2osim.sweeps.store import SweepStore, _unpacked

BLOCK = 1 << 17


def frame(size: int, told: bool = True) -> bytes:
    """So many zero bytes (a multiple of 2^17) in the Zstandard format; the size told or not."""
    head = b"\x28\xb5\x2f\xfd" + (b"\xe0" + struct.pack("<Q", size) if told else b"\x00\x58")
    blocks = size // BLOCK
    last = [0] * (blocks - 1) + [1]  # each is a run of one byte
    return head + b"".join((BLOCK << 3 | 2 | end).to_bytes(3, "little") + b"\0" for end in last)


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> Path:
    h2osim.sweep(folder, "h2o:recent=0|1,tova", [2, 4], tmp_path / "s.zarr", chunk=(2, 2))
    return tmp_path / "s.zarr"


def test_the_size_in_a_frame_is_read_as_zstandard_reads_it(tmp_path: Path) -> None:
    """Against the library's own frames, of all four widths of the field."""
    zstd = pytest.importorskip("numcodecs.zstd").Zstd

    file = tmp_path / "frame"
    for size in (0, 1, 255, 256, 257, 65791, 65792, 65793, 1 << 20):
        file.write_bytes(zstd(level=1).encode(bytes(size)))
        assert _unpacked(file) == size
    for told, wanted in ((True, 4 * BLOCK), (False, float("inf"))):
        file.write_bytes(frame(4 * BLOCK, told))
        assert _unpacked(file) == wanted
        assert len(zstd().decode(file.read_bytes())) == 4 * BLOCK  # a frame it would unpack
    for damaged in (b"", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18" + bytes(20)):
        file.write_bytes(damaged)
        assert _unpacked(file) == float("inf")


@pytest.mark.parametrize(
    ("name", "told", "size"),
    [
        ("kept", True, 1 << 30), ("kept", False, 1 << 30), ("policy", True, 1 << 30),
        ("budget", False, 1 << 30), ("kept", True, BLOCK),
    ],
)  # fmt: skip
def test_a_bomb_in_a_store_is_refused_before_it_is_unpacked(
    store: Path, name: str, told: bool, size: int
) -> None:
    """A file of 33 kB unpacked to a gigabyte, or a small one to more than its chunk has; digests
    and marks are those of the bomb.
    """
    file = next(path for path in sorted((store / name / "c").rglob("*")) if path.is_file())
    file.write_bytes(frame(size, told))
    layout = store / ".h2osim/layout.json"
    digests = json.loads(layout.read_text())
    if (key := str(file.relative_to(store))) in digests:
        digests[key] = hashlib.sha256(file.read_bytes()).hexdigest()
        layout.write_text(json.dumps(digests))
    else:
        opened = SweepStore(store)
        (store / "done" / "c" / "0" / "0" / "0").write_bytes(opened._digest(0))
        assert opened.finished(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=f"{name}.*expected what unpacks to at most") as caught:
        h2osim.open_sweep(store)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


@pytest.mark.parametrize(
    "change",
    [
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1 << 20] * 3}}},
        {"codecs": [{"name": "bytes"}, {"name": "zstd"}, {"name": "zstd"}]},
        {"chunk_grid": {"name": "rectangular", "configuration": {"chunk_shape": [1]}}},
        {"data_type": "no type"},
    ],
)
def test_metadata_that_ask_for_memory_are_refused(store: Path, change: dict[str, object]) -> None:
    fields = json.loads((store / "zarr.json").read_text())
    fields["consolidated_metadata"]["metadata"]["kept"] |= change
    text = json.dumps(fields).encode()
    (store / "zarr.json").write_bytes(text)
    layout = store / ".h2osim/layout.json"
    digests = json.loads(layout.read_text()) | {"zarr.json": hashlib.sha256(text).hexdigest()}
    layout.write_text(json.dumps(digests))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError):
        h2osim.open_sweep(store)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_marks_beyond_count_cost_no_time(store: Path) -> None:
    """A grid of 2^48 chunks was gone through chunk by chunk."""
    fields = json.loads((store / "zarr.json").read_text())
    fields["consolidated_metadata"]["metadata"]["done"]["shape"] = [1 << 24, 1 << 24, 32]
    text = json.dumps(fields).encode()
    (store / "zarr.json").write_bytes(text)
    layout = store / ".h2osim/layout.json"
    digests = json.loads(layout.read_text()) | {"zarr.json": hashlib.sha256(text).hexdigest()}
    layout.write_text(json.dumps(digests))
    with pytest.raises(UserError, match="is damaged"):
        h2osim.open_sweep(store)


# --- files that are cut short --------------------------------------------------------------------

CUT = """
import os, sys
from pathlib import Path
from h2osim import cli
from h2osim.traces.unit import Unit

file, blocks = Path(sys.argv.pop(1)), Unit.blocks

def cut(self, *given, **named):
    os.truncate(file, 4096)
    return blocks(self, *given, **named)

Unit.blocks = cut
cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bus errors as Linux has them")
@pytest.mark.parametrize(
    "words",
    [("compare", "-p", "h2o", "-b", "20"),
     *(pytest.param(words, marks=pytest.mark.nightly) for words in (
         ("compare", "-p", "h2o", "-b", "all"), ("info", "--plot", "x.png"), ("verify",),
         ("compare", "-p", "h2o", "-b", "20", "--engine", "naive")))],
    ids=" ".join,
)  # fmt: skip
def test_a_file_cut_short_while_it_is_read_is_one_line(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Found: 'Bus error', for the file is mapped into memory; the numbers are gone, or right."""
    rows = np.tril(np.ones((1, 1, 300, 300), np.float32)) / np.arange(1, 301)[:, None]
    trace = h2osim.Trace.from_scores(rows).save(tmp_path / "t")
    name, *more = words
    ended = subprocess.run(
        [sys.executable, "-c", CUT, trace / "layer-000.safetensors", name, trace, *more],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, ""), (ended.returncode, ended.stderr)
    assert ended.stderr.startswith("h2osim: error: ") and ended.stderr.count("\n") == 1
    assert ended.stderr == "h2osim: error: a file was cut short while it was read\n"
