"""Files that are replaced: whole whenever they are there, and on the disk before they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from h2osim.support.atomic import LEFTOVERS, replacing


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to files, in order: ``flush NAME`` and ``rename``."""
    found: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        found.append(f"flush {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def rename(old: Path, new: Path) -> None:
        found.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    return found


def test_the_contents_are_on_the_disk_before_the_name(tmp_path: Path, calls: list[str]) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with replacing(target) as temporary:
        assert temporary.name == target.name and temporary.parent.parent == tmp_path
        temporary.write_text("new")
        assert target.read_text() == "old"
        assert [*tmp_path.glob(LEFTOVERS)] == [temporary.parent]
    assert target.read_text() == "new"
    assert [*tmp_path.iterdir()] == [target]
    assert calls == [f"flush {temporary.name}", "rename", f"flush {tmp_path.name}"]


def test_a_failure_leaves_everything_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert [*tmp_path.iterdir()] == [target]


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "table"
    with replacing(target) as one, replacing(target) as other:
        one.write_text("one")
        other.write_text("other")
    assert target.read_text() == "one"
    assert [*tmp_path.iterdir()] == [target]


def test_it_may_be_read_by_whoever_may_read_new_files(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    target = tmp_path / "target"
    with replacing(target) as temporary:
        temporary.write_text("")
    assert target.stat().st_mode == plain.stat().st_mode
