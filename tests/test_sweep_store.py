"""The store of a sweep: what it holds, what damage it notices, what a kill leaves."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from commands import Run, fails
from drawing import long_but
from sweep_cases import GRID, MANY, files, finished, log, same
from trace_cases import random_trace

from h2osim.replays.execute import ENGINES
from h2osim.support.atomic import LEFTOVERS
from h2osim.support.errors import UserError
from h2osim.sweeps.store import SweepStore
from h2osim.sweeps.sweeping import open_sweep, sweep


def test_a_store_holds_what_is_returned(small: Path, tmp_path: Path) -> None:
    expected = sweep(small, GRID, [2, 0.5])
    found = sweep(small, GRID, [2, 0.5], tmp_path / "s.zarr", chunk=(2, 3))
    same(found, expected)
    same(open_sweep(tmp_path / "s.zarr"), expected)
    # parts are read on their own, whichever chunks they lie in
    lazy = open_sweep(tmp_path / "s.zarr")
    np.testing.assert_array_equal(lazy.recall[7:1:-2, 1, ::-1], expected.recall[7:1:-2, 1, ::-1])
    np.testing.assert_array_equal(lazy.held[[5, 0], :, -1], expected.held[[5, 0], :, -1])
    assert lazy.recall[3:3].values.shape == (0, 4, 2)
    assert not list(tmp_path.rglob(LEFTOVERS))


def test_zarr_and_xarray_read_the_store(small: Path, tmp_path: Path) -> None:
    traces_: list[Any] = [small, random_trace(11, 1, 1, 1)]
    expected = sweep(traces_, GRID + ",full", [2, 0.5, 0.25], tmp_path / "s.zarr", chunk=(4, 3))
    found = xarray.open_zarr(tmp_path / "s.zarr", chunks=None)
    assert set(found.variables) - set(expected.variables) == {"done"}
    assert found.done.any("sha256").all()
    for name, variable in expected.variables.items():
        assert found[name].dims == variable.dims
        assert (name in found.coords) == (name in expected.coords)
        if variable.dtype.kind == "U":
            assert found[name].values.tolist() == variable.values.tolist()
        else:
            assert found[name].dtype == variable.dtype
            np.testing.assert_array_equal(found[name].values, variable.values)


def test_the_same_call_again_computes_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(small, GRID, "all", tmp_path / "s.zarr")
    before = files(tmp_path / "s.zarr")
    monkeypatch.setattr(SweepStore, "started", lambda *_: pytest.fail("a finished chunk was begun"))
    same(sweep(small, GRID, "all", tmp_path / "s.zarr", engine="naive", chunk=(1, 1)), first)
    assert files(tmp_path / "s.zarr") == before


def test_what_is_no_store_is_left_alone(small: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text('{"attributes": {}}')
    for name in ("file", "other"):
        with pytest.raises(UserError, match="something else"):
            sweep(small, "tova", 4, tmp_path / name)
    with pytest.raises(UserError, match="something else"):
        open_sweep(tmp_path / "missing")
    assert (tmp_path / "file").read_text() == "mine"


# --- damage ---------------------------------------------------------------------------------


def damage(file: Path, way: str, other: bytes) -> None:
    content = file.read_bytes()
    if way == "deleted":
        file.unlink()
    elif way == "cut":
        file.write_bytes(content[:-1])
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "another chunk's":
        file.write_bytes(other)
    else:
        place = len(content) // 2
        flipped = bytes([content[place] ^ 1])
        file.write_bytes(content[:place] + flipped + content[place + 1 :])


@pytest.mark.parametrize("way", ["deleted", "cut", "empty", "another chunk's", "bit"])
@pytest.mark.parametrize(
    "name", long_but(["recall", "kept", "held", "mass", "done"], "kept", "done")
)
def test_a_damaged_chunk_is_seen_and_computed_again(
    small: Path, tmp_path: Path, name: str, way: str
) -> None:
    path = tmp_path / "s.zarr"
    expected = sweep(small, GRID, [2, 9], path, chunk=(4, 3)).load()
    good = files(path)
    # the last chunk of both axes is not full; the mass of its units is of all chunks beside it too
    last, first = ("c/1", "c/0") if name == "mass" else ("c/2/1/0", "c/0/0/0")
    spoiled = [1, 3, 5] if name == "mass" else [5]
    damage(path / name / last, way, good[f"{name}/{first}"])
    if (name, way) != ("done", "deleted"):  # that chunk is not finished, and says so with NaN
        with pytest.raises(UserError, match=f"chunk {spoiled[0]} is damaged") as error:
            open_sweep(path)
        assert "\n" not in str(error.value)
    before = len(log(path))
    same(sweep(small, GRID, [2, 9], path), expected)
    assert [e["start"] for e in log(path)[before:] if "start" in e] == spoiled
    assert files(path) == good


def test_swapped_chunks_are_seen(small: Path, tmp_path: Path) -> None:
    """Results and mark of one chunk in the place of another's."""
    path = tmp_path / "s.zarr"
    sweep(small, GRID, [2, 9], path, chunk=(5, 2))
    # of the same units, so that their mass, which is stored once, is the same
    for name in ("recall", "kept", "held", "done"):
        shutil.copy(path / name / "c/0/1/0", path / name / "c/1/1/0")
    with pytest.raises(UserError, match="chunk 3 is damaged"):
        open_sweep(path)


def test_chunks_of_another_sweep_are_seen(small: Path, tmp_path: Path) -> None:
    """Results and mark of another trace's sweep: whole, and of a store that is laid out alike."""
    path, other = tmp_path / "s.zarr", tmp_path / "other.zarr"
    expected = sweep(small, GRID, [2, 9], path).load()
    sweep(random_trace(seed=1), GRID, [2, 9], other)
    for name in ("recall", "kept", "held", "mass", "done"):
        shutil.rmtree(path / name / "c")
        shutil.copytree(other / name / "c", path / name / "c")
    with pytest.raises(UserError, match="chunk 0 is damaged"):
        open_sweep(path)
    same(sweep(small, GRID, [2, 9], path), expected)


@pytest.mark.parametrize("way", ["deleted", "cut", "bit"])
@pytest.mark.parametrize(
    "name", ["zarr.json", "recall/zarr.json", "done/zarr.json", "policy/c/0", ".h2osim/layout.json"]
)
def test_damaged_metadata_and_coordinates_are_refused_in_a_line(
    small: Path, tmp_path: Path, name: str, way: str
) -> None:
    path = tmp_path / "s.zarr"
    sweep(small, "tova", [2], path)
    damage(path / name, way, b"")
    for act in (lambda: open_sweep(path), lambda: sweep(small, "tova", [2], path)):
        with pytest.raises(UserError, match=r"damaged|something else") as error:
            act()
        assert "\n" not in str(error.value)


def test_every_file_is_on_the_disk_before_it_has_its_name(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut could leave half written was flushed first: results, marks, layout."""
    flushed: set[int] = set()
    named: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watch(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def check(old: Any, new: Any) -> None:
        if Path(new).is_relative_to(tmp_path):  # numba keeps what it compiles in its own way
            assert os.stat(old).st_ino in flushed
            parts = Path(new).parts
            named.append(parts[parts.index("c") - 1] if "c" in parts else parts[-1])
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(os, "replace", check)
    sweep(small, "tova", [2], tmp_path / "s.zarr", chunk=(1, 4))
    assert named[-5:] == ["recall", "kept", "held", "mass", "done"]
    assert {"zarr.json", "layout.json"} <= set(named)


def test_what_a_kill_left_of_a_layout_is_swept(small: Path, tmp_path: Path) -> None:
    """Not what another process is making now, nor what is no store."""
    fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")
    left, made = (tmp_path / f".h2osim-{name}.partial" for name in "ab")
    mine = tmp_path / ".mine.partial"
    for one in (left, made, mine):
        (one / "s.zarr" / ".h2osim").mkdir(parents=True)
    held = os.open(made, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    sweep(small, "tova", [2], tmp_path / "s.zarr")
    assert (left.exists(), made.exists(), mine.exists()) == (False, True, True)
    os.close(held)
    sweep(small, "tova", [2], tmp_path / "s.zarr")  # what is whole is not made again
    assert not made.exists()


def test_without_zarr_a_store_is_refused_and_memory_works(
    small: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == "zarr" or name == "h2osim.sweeps.store":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zarr", None)
    monkeypatch.delattr(importlib.import_module("h2osim.sweeps"), "store", raising=False)
    words = ("sweep", small, "-p", "tova", "-b", "3")
    fails(run(*words, "-o", tmp_path / "s.zarr"), "pip install 'h2osim[sweep]'")
    assert not list(tmp_path.iterdir())
    assert run(*words).code == 0


def test_two_processes_do_not_work_on_one_store(small: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no such locks")
    sweep(small, "tova", 4, tmp_path / "s.zarr")
    store = SweepStore(tmp_path / "s.zarr")
    with store.locked(), pytest.raises(UserError, match="another process"):
        sweep(small, "tova", 4, tmp_path / "s.zarr")


# --- kills ----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.nightly
def test_a_stop_at_any_file_loses_and_repeats_nothing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before or after each rename: some of the layout's, all of the chunks'."""
    asked: dict[str, Any] = {"policies": "h2o:recent=0|2,tova", "budgets": [3], "engine": "naive"}
    whole = tmp_path / "whole.zarr"
    alone = dataclasses.replace(ENGINES["naive"], lanes=lambda: 1)
    monkeypatch.setitem(ENGINES, "naive", alone)
    real = {name: getattr(os, name) for name in ("replace", "rename")}

    def moves(path: Path, at: float, after: bool) -> list[str]:
        """Sweep, and end before or after a rename; the names of those that happened."""
        done: list[str] = []

        def move(old: Any, new: Any, name: str) -> None:
            if len(done) > at or (len(done) == at and not after):
                raise Killed
            real[name](old, new)
            done.append(name)
            if len(done) == at + 1:
                raise Killed

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, functools.partial(move, name=name))
            try:
                sweep(small, **asked, store=path, chunk=(2, 2))
            except Killed:
                assert at < np.inf
        return done

    names = moves(whole, np.inf, True)
    expected = files(whole)
    chunks = 5 * int(np.prod(SweepStore(whole).grid))
    layout = names.index("rename")
    assert len(names) == layout + 1 + chunks
    moments = [(0, False), (layout - 1, True)]
    moments += [(at, after) for at in range(layout, layout + 1 + chunks) for after in (False, True)]
    for at, after in moments:
        path = tmp_path / f"{at}-{after}.zarr"
        moves(path, at, after)
        done = finished(path)
        assert path.exists() == ((at, after) >= (layout, True))
        assert len(done) == max(0, at - layout - 1 + after) // 5
        events = len(log(path))
        sweep(small, **asked, store=path, chunk=(2, 2))
        assert files(path) == expected
        assert not done & {e["start"] for e in log(path)[events:] if "start" in e}


CHILD = """
import sys
from h2osim import sweep
sweep(sys.argv[1], sys.argv[2], [3, 5, 9], sys.argv[3], engine="naive", chunk=(2, 1))
"""


@pytest.mark.nightly
def test_sigkill_at_random_moments(small: Path, tmp_path: Path) -> None:
    """Started, killed, started again: the same store, and nothing marked is begun again."""
    path, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    sweep(small, MANY, [3, 5, 9], whole, chunk=(2, 1))
    total = int(np.prod(SweepStore(whole).grid))
    rng = random.Random(1)
    # done before a kill, and how long the log was then
    kills: list[tuple[set[int], int]] = []
    for part in (0.0, 0.3, 0.7):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(small), MANY, str(path)])
        while len(finished(path)) <= part * total and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills.append((finished(path), len(log(path))))
    assert len(kills[0][0]) < total, "killed too late to show anything"
    found = sweep(small, MANY, [3, 5, 9], path, engine="numba")
    same(found, open_sweep(whole))
    assert files(path) == files(whole)
    events = log(path)
    for (before, _), (after, _) in itertools.pairwise(kills):
        assert before <= after
    for done, at in kills:
        assert not done & {event["start"] for event in events[at:] if "start" in event}
    ended = [event["done"] for event in events if "done" in event]
    assert len(ended) == len(set(ended)) <= total
    # killed while at work on a few chunks each time: only those were begun twice
    begun = [event["start"] for event in events if "start" in event]
    assert len(begun) - total <= len(kills) * (os.cpu_count() or 1)
