"""A disk that is full: one line, nothing half written, and the same command goes on later."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run

from h2osim import open_sweep, sweep
from h2osim.sweeps.store import SweepStore

WORDS = ("-p", "h2o:recent=0..2,tova", "-b", "3,9")


class Disk:
    """Takes so many flushes of files below a folder and then no more."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        self.asked = 0

        def full(descriptor: int) -> None:
            if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(folder):
                self.asked += 1
                if self.asked > self.left:
                    raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)


def finished(store: Path) -> set[int]:
    if not store.exists():
        return set()
    opened = SweepStore(store)
    return {i for i in range(int(np.prod(opened.grid))) if opened.finished(i)}


def begun(store: Path) -> list[int]:
    try:
        lines = (store / ".h2osim/log.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [event["start"] for event in map(json.loads, lines) if "start" in event]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files")
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.nightly), 12])
def test_a_disk_that_is_full_at_any_flush_of_a_sweep(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """What was finished is kept and not computed again; there is more room, and it goes on."""
    asked = ("h2o:recent=0..2,tova", [3, 9])
    expected = sweep(folder, *asked)
    disk = Disk(tmp_path, monkeypatch)
    sweep(folder, *asked, tmp_path / "whole", chunk=(2, 2))
    flushes = disk.asked
    layout = flushes - 10 * len(finished(tmp_path / "whole"))  # five files a chunk, and folders
    assert layout > 50 and flushes - layout == 40
    some = []
    for left in [*range(0, layout, 10 * step), *range(layout, flushes, step)]:
        store = tmp_path / f"full-{left}"
        disk.asked, disk.left = 0, left
        with pytest.raises(OSError, match="No space left on device") as caught:
            sweep(folder, *asked, store, chunk=(2, 2))
        assert str(caught.value.filename).startswith(str(store))
        assert not list(tmp_path.rglob(".h2osim-*"))
        disk.asked, disk.left = 0, 4  # a file or two more
        kept, before = finished(store), len(begun(store))
        some.append(len(kept))
        assert len(kept) <= max(0, left - layout + 2) // 10  # two are at work
        if len(kept) == 4:  # only its folder was not flushed any more
            continue
        ended = run("sweep", folder, *WORDS, "-o", store)
        assert (ended.code, ended.out) == (2, "")
        said = ended.err.splitlines()[-1]
        assert said.startswith(f"h2osim: error: {store}")
        assert said.endswith(": No space left on device") and ".partial" not in said
        assert "Traceback" not in ended.err and len(ended.err.splitlines()) <= 2
        disk.left = 10**9
        assert run("sweep", folder, *WORDS, "-o", store).code == 0
        assert not kept & set(begun(store)[before:])
        for name in ("recall", "kept", "mass"):
            np.testing.assert_array_equal(open_sweep(store)[name], expected[name])
    assert max(some) >= 2


@pytest.mark.nightly
def test_a_disk_that_is_really_full(folder: Path, tmp_path: Path) -> None:
    """A file system of 300 kB, in a name space of its own; then one of 30 MB."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("needs unshare -rm")
    grid = ["chat", "-p", "h2o:recent=0..40,scores=full|cached", "-b", "5%,10%,20%,30%,40%"]
    words = [sys.executable, "-m", "h2osim", "sweep", *grid, "-o", "small/s.zarr"]
    script = (
        'mkdir small; mount -t tmpfs -o size=300k none small; "$@" -f json >first; echo $?; '
        'find small -name ".h2osim-*.partial"; cp -r small kept; '
        'mount -o remount,size=30m small; "$@" -f json >second; echo $?'
    )
    ended = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *words], cwd=tmp_path, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )  # fmt: skip
    assert ended.stdout == "2\n0\n", ended
    said = [line for line in ended.stderr.splitlines() if "error" in line]
    assert len(said) == 1 and said[0].startswith("h2osim: error: small/s.zarr")
    assert said[0].endswith(": No space left on device") and "Traceback" not in ended.stderr
    assert (tmp_path / "first").read_text() == "" and (tmp_path / "second").stat().st_size > 0
    chunks = [line for line in ended.stderr.splitlines() if "chunks to do" in line]
    assert chunks[0] != chunks[1]  # some were kept


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files")
@pytest.mark.parametrize("what", ["-o r.nc", "-o r.csv", "-o r.json", "--plot r.png"])
def test_a_disk_that_fills_up_after_the_place_was_tried(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    option, name = what.split()
    target = tmp_path / name
    target.write_text("old")
    disk = Disk(tmp_path, monkeypatch)
    disk.left = 1  # the trial
    ended = run("compare", folder, "-p", "tova", "-b", "5", option, target)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == f"h2osim: error: {target}: No space left on device\n"
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == [name]


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    from h2osim.support.atomic import replacing

    def write(error: OSError) -> Any:
        with pytest.raises(OSError) as caught, replacing(tmp_path / "mine"):
            raise error
        return caught.value.filename

    assert write(OSError(5, "Input/output error")) == str(tmp_path / "mine")
    assert write(FileNotFoundError(2, "No such file or directory", "other")) == "other"
    assert write(OSError("no number")) is None
