"""Compiled code that numba keeps is taken as it was written, or compiled again."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numba import config

from h2osim.support import atomic

TEXT = """
from h2osim.support.compiling import njit

@njit(cache=True, nogil=True)
def times(x):
    return x * 3

@njit(cache=True)
def more(x):
    return times(x) + 1
"""
COUNT = itertools.count()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], ModuleType]:
    """The loops of a module that every call reads anew, as a new process would."""
    monkeypatch.setattr(config, "CACHE_DIR", "")  # the files lie beside the module
    (tmp_path / "loops.py").write_text(TEXT)

    def again() -> ModuleType:
        name = f"loops_{next(COUNT)}"
        spec = importlib.util.spec_from_file_location(name, tmp_path / "loops.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return again


def hits(function: object) -> int:
    return sum(function.stats.cache_hits.values())  # type: ignore[attr-defined]


def flip(data: bytes, at: int, rng: random.Random) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "__pycache__").glob("loops.more*.nb?"))


def test_damaged_code_is_compiled_again(load: Callable[[], ModuleType], tmp_path: Path) -> None:
    """Found: 'pickle data was truncated', a crash in LLVM, and other numbers after a bit flip."""
    assert load().more(5) == 16
    assert hits(load().more) == 0
    again = load()
    assert (again.more(5), hits(again.more)) == (16, 1)
    index, code = kept(tmp_path)[1], kept(tmp_path)[0]
    assert (index.suffix, code.suffix) == (".nbi", ".nbc")
    rng = random.Random(1)
    for path in (index, code):
        whole = path.read_bytes()
        cut = [whole[:at] for at in (0, len(whole) // 2, len(whole) - 33)]
        places = (3, len(whole) - 1, *rng.choices(range(len(whole)), k=2))
        for damaged in (*cut, *(flip(whole, at, rng) for at in places), b"x" * len(whole)):
            path.write_bytes(damaged)
            again = load()
            assert (again.more(5), hits(again.more)) == (16, 0)
            again = load()
            assert (again.more(5), hits(again.more)) == (16, 1)
        path.unlink()
        path.mkdir()
        assert load().more(5) == 16
        path.rmdir()


def test_code_for_other_arguments_is_not_taken(
    load: Callable[[], ModuleType], tmp_path: Path
) -> None:
    """Two processes that save at once may leave the code of one under the other's name."""
    first = load()
    assert first.more(5) == 16 and first.more(np.float64(0.5)) == 2.5
    whole, half = (path for path in kept(tmp_path) if path.suffix == ".nbc")
    swapped = half.read_bytes(), whole.read_bytes()
    for path, data in zip((whole, half), swapped, strict=True):
        path.write_bytes(data)
    again = load()
    assert again.more(5) == 16 and again.more(np.float64(0.5)) == 2.5
    assert hits(again.more) == 0


def test_a_cache_that_cannot_be_written_is_done_without(
    load: Callable[[], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load()

    def full(old: object, new: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert module.more(5) == 16


@pytest.mark.nightly
def test_commands_heal_all_that_is_damaged_in_the_caches(folder: Path, tmp_path: Path) -> None:
    """Every file of compiled code that a command has, also the package's own ones."""
    site, cache = tmp_path / "site", tmp_path / "cache"
    package = Path(atomic.__file__).parents[1]
    shutil.copytree(package, site / "h2osim", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(site)}
    environment.pop("NUMBA_CACHE_DIR", None)
    commands = (("compare", "-p", "tova,h2o", "-b", "5,9"), ("optimum", "-b", "5"))

    def out() -> list[str]:
        found = []
        for name, *words in commands:
            ended = subprocess.run(
                [sys.executable, "-m", "h2osim", name, str(folder), *words, "-f", "json"],
                capture_output=True, text=True, env=environment, cwd=tmp_path,
            )  # fmt: skip
            assert (ended.returncode, ended.stderr) == (0, "")
            found.append(ended.stdout)
        return found

    expected = out()
    rng = random.Random(2)
    for how in ("flip", "cut", "swap"):
        files = [path for top in (site, cache) for path in sorted(top.rglob("*.nb?"))]
        assert len(files) > 10
        contents = [path.read_bytes() for path in files]
        for i, (path, whole) in enumerate(zip(files, contents, strict=True)):
            at = rng.randrange(len(whole))
            flipped = flip(whole, at, rng)
            path.write_bytes({"flip": flipped, "cut": whole[:at], "swap": contents[i - 1]}[how])
        assert out() == expected
