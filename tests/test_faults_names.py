"""Names of files that are no UTF-8, terminals of another encoding, and two commands at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import h2osim
from h2osim import UserError

COMMAND = (sys.executable, "-m", "h2osim")
linux = pytest.mark.skipif(sys.platform != "linux", reason="names that are any bytes")


def ended(*words: object, **more: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(os.fsencode, map(str, words))],
        capture_output=True,
        env=os.environ | more,
    )


@linux
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Found: 50 lines of traceback, for the command is written into what it makes."""
    made = ended("synth", "powerlaw", "-n", "8", "-o", tmp_path / "t\udcff")
    assert (made.returncode, made.stderr.count(b"\n")) == (0, 1)
    opened = h2osim.open_trace(tmp_path / "t\udcff")
    assert str(opened.manifest["command"]).endswith("/t\\udcff'")
    opened.save(tmp_path / "u\udcfe")
    assert h2osim.open_trace(tmp_path / "u\udcfe").n == 8


@linux
@pytest.mark.nightly
def test_odd_names_everywhere(tmp_path: Path) -> None:
    for name in ("t\udcff", "new\nline", "-dash", "a*b?[c]"):
        trace = tmp_path / name
        made = ended("synth", "powerlaw", "-n", "8", "-o", trace)
        assert (made.returncode, made.stderr.count(b"\n")) == (0, 1 + name.count("\n"))
        for words in (
            ("compare", trace, "-p", "tova", "-b", "3", "-o", f"{trace}.nc"),
            ("optimum", trace, "-b", "3", "--certificate", f"{trace}.c"),
            ("certify", f"{trace}.c", trace),
        ):
            done = ended(*words)
            assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_of_another_encoding(folder: Path, encoding: str) -> None:
    """Found: a table's frame ended the command with a traceback."""
    done = ended("compare", folder, "-p", "tova,h2o", "-b", "3,9", PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert b"tova" in done.stdout
    wrong = ended("info", "näh", PYTHONIOENCODING=encoding)
    assert wrong.returncode == 2 and wrong.stderr.count(b"\n") == 1


@linux
@pytest.mark.nightly
def test_commands_that_write_the_same_at_a_time(folder: Path, tmp_path: Path) -> None:
    """Whoever is last has it; at any time it is one of them, whole."""
    wanted = [
        h2osim.replay(h2osim.open_trace(folder), "tova", budget)["recall"].values.ravel()
        for budget in (3, 9)
    ]
    jobs: list[tuple[object, ...]] = []
    for budget, n in ((3, 30), (9, 31)):
        jobs += [
            ("compare", folder, "-p", "tova", "-b", budget, "-o", tmp_path / "r.nc"),
            ("synth", "powerlaw", "-n", n, "-o", tmp_path / "t", "--overwrite"),
            ("sweep", folder, "-p", "tova", "-b", "3,9", "-o", tmp_path / "s.zarr"),
        ]
    running = [
        subprocess.Popen([*COMMAND, *map(str, words)], stderr=subprocess.PIPE, text=True,
                         stdout=subprocess.DEVNULL)
        for words in jobs
    ]  # fmt: skip
    while any(one.poll() is None for one in running):
        if (tmp_path / "t").exists():
            with suppress(UserError):  # the other one came while it was read: no mixture is let in
                trace = h2osim.open_trace(tmp_path / "t")
                trace.verify()
                assert trace.name == f"powerlaw-n{trace.n}-seed0"
    for words, one in zip(jobs, running, strict=True):
        said = one.communicate()[1].splitlines()
        assert "Traceback" not in "".join(said)
        if one.returncode:  # of two who make what was not there, one comes first
            assert words[0] != "compare" and one.returncode == 2, said
            assert said[-1].startswith("h2osim: error: ")
    found = h2osim.open_sweep(tmp_path / "s.zarr")["recall"].values
    np.testing.assert_array_equal(found, np.stack(wanted, -1)[None])
    import xarray

    with xarray.open_dataset(tmp_path / "r.nc") as result:
        assert any(np.array_equal(result["recall"].values.ravel(), one) for one in wanted)
    assert not list(tmp_path.glob(".*"))
