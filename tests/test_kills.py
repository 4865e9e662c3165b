"""What is written, killed at every line: whole whenever it is there, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import h2osim
from h2osim import Trace
from h2osim.support import atomic
from h2osim.traces import writer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and its signals")
OURS = {atomic.__file__, writer.__file__}


def killed_at(moment: int, act: Callable[[], object], begins: str) -> bool:
    """Run in a child that kills itself at this line of ours after `begins` was called.

    False once there is no such line: the child came to its end.
    """
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        return status != 0
    left = -1

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in OURS:
            return None
        if event == "call" and frame.f_code.co_name == begins:
            left = moment
        if event == "line" and left >= 0:
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
        return trace

    with suppress(BaseException):
        sys.settrace(trace)
        act()
        os._exit(0)
    os._exit(1)


def new_process() -> None:
    """What a process does once, it does again."""
    atomic._sweep_once.cache_clear()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill is no power cut: nothing needs to reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(params=["exchange", "two renames"])
def _file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One that can exchange two names, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    elif sys.platform != "linux":
        pytest.skip("no system but Linux has it")
    yield request.param


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.nightly), 4])
def test_a_trace_is_the_old_or_the_new_one_at_every_moment(
    tmp_path: Path, _file_system: str, step: int
) -> None:
    """Found: killed between two renames, the old trace was left under a hidden name for ever."""
    old, new = (Trace.from_scores(np.ones((1, 1)), name=name) for name in ("old", "new"))
    path = tmp_path / "trace"
    seen = []
    moment = 0
    while True:
        new_process()
        old.save(path, overwrite=True)
        alive = not killed_at(moment, lambda: new.save(path, overwrite=True), "_publish")
        away = not path.exists()
        trace = h2osim.open_trace(path)  # brings back what was moved away
        trace.verify()
        seen.append((trace.name, away))
        if alive:
            break
        new_process()
        Trace.from_scores(np.ones((1, 1))).save(tmp_path / "other", overwrite=True)
        assert {one.name for one in tmp_path.iterdir()} == {"trace", "other"}
        assert h2osim.open_trace(path).name == trace.name
        moment += step
    names = [name for name, _ in seen]
    assert names == sorted(names, key=["old", "new"].index)
    assert 30 < step * names.count("old") < step * (len(names) - 2)
    if step == 1 or _file_system == "exchange":
        assert any(away for _, away in seen) == (_file_system == "two renames")
    assert [one.name for one in sorted(tmp_path.iterdir())] == ["other", "trace"]


def test_a_moved_trace_is_brought_back_by_whoever_writes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only by whoever opens it: to sweep a folder must not throw it away."""
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    path = tmp_path / "trace"
    Trace.from_scores(np.ones((1, 1)), name="old").save(path)
    new = Trace.from_scores(np.ones((1, 1)), name="new")
    moment = 0
    while path.exists():
        assert killed_at(moment, lambda: new.save(path, overwrite=True), "take_place")
        moment += 1
    new_process()
    with atomic.replacing(tmp_path / "table.csv") as temporary:
        temporary.write_text("x")
    assert h2osim.open_trace(path).name == "old"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["table.csv", "trace"]


def test_a_process_that_still_writes_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another process has moved away for a moment is its own to bring back."""
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    pytest.importorskip("fcntl", reason="this system has no such locks")
    path = tmp_path / "trace"
    Trace.from_scores(np.ones((1, 1)), name="old").save(path)
    rename = os.rename

    def slow(one: Path, other: Path) -> None:
        if other == path:
            new_process()
            with pytest.raises(h2osim.UserError, match="neither a folder"):
                h2osim.open_trace(path)
            atomic.sweep(tmp_path)
        rename(one, other)

    monkeypatch.setattr(os, "rename", slow)
    Trace.from_scores(np.ones((1, 1)), name="new").save(path, overwrite=True)
    assert h2osim.open_trace(path).name == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["trace"]


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl", reason="this system has no such locks")
    locked = atomic._locked

    def late(folder: Path, wait: bool = False) -> int | None:
        monkeypatch.setattr(atomic, "_locked", locked)
        atomic.sweep(tmp_path)
        return locked(folder, wait)

    monkeypatch.setattr(atomic, "_locked", late)
    with atomic.replacing(tmp_path / "table.csv") as temporary:
        temporary.write_text("x")
    assert [one.name for one in tmp_path.iterdir()] == ["table.csv"]


def test_a_failure_to_name_the_new_one_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    path = tmp_path / "trace"
    Trace.from_scores(np.ones((1, 1)), name="old").save(path)
    rename = os.rename
    failed: list[Path] = []

    def once(one: Path, other: Path) -> None:
        if other == path and not failed:
            failed.append(one)
            raise OSError(5, "Input/output error")
        rename(one, other)

    monkeypatch.setattr(os, "rename", once)
    with pytest.raises(h2osim.UserError, match="cannot be written: Input/output error"):
        Trace.from_scores(np.ones((1, 1)), name="new").save(path, overwrite=True)
    assert h2osim.open_trace(path).name == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["trace"]


def test_a_trace_that_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    one = writer.TraceWriter(path, name="late", stores=["scores"], group_size=1)
    with pytest.raises(h2osim.UserError, match="cannot be written"), one:
        with one.layer(0, 1, 1, 1, tensors=["scores", "row_sum"]) as file:
            file["scores"][:], file["row_sum"][:] = 1, 1
        one._refuse_existing = lambda: None  # type: ignore[method-assign]  # it has looked already
        Trace.from_scores(np.ones((1, 1)), name="first").save(path)
    assert h2osim.open_trace(path).name == "first"
    assert [one.name for one in tmp_path.iterdir()] == ["trace"]


def test_an_output_is_the_old_or_the_new_one_at_every_moment(tmp_path: Path) -> None:
    """Found: what was half written when a command was killed stayed for ever, hidden."""
    path = tmp_path / "table.csv"

    def write(text: str) -> None:
        with atomic.replacing(path) as temporary:
            temporary.write_text(text)

    found = []
    moment = 0
    alive = False
    while not alive:
        new_process()
        write("old")
        assert [one.name for one in tmp_path.iterdir()] == ["table.csv"]
        alive = not killed_at(moment, lambda: write("new"), "replacing")
        found.append(path.read_text())
        moment += 1
    assert found == sorted(found, key=["old", "new"].index)
    assert 10 < found.count("old") < len(found)
