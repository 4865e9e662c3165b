"""What commands write: places are tried before the work, links kept, others' files left alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import xarray
from commands import Run, fails

import h2osim
from h2osim import UserError
from h2osim.report.files import json_text, save_results
from h2osim.support import atomic
from h2osim.traces.writer import TraceWriter

OUTPUTS = [
    ("compare", "--output", ".nc"), ("compare", "--output", ".json"), ("compare", "--plot", ".png"),
    ("optimum", "--output", ".nc"), ("optimum", "--certificate", ""), ("optimum", "--plot", ".png"),
    ("allocate", "--output", ".nc"), ("sweep", "--plot", ".png"), ("info", "--plot", ".png"),
    ("verify", "--plot", ".png"),
]  # fmt: skip
MORE = {"sweep": ("-p", "h2o:recent=1..3"), "allocate": ("--slots", "8")}


@pytest.mark.parametrize(("command", "option", "suffix"), OUTPUTS, ids=" ".join)
@pytest.mark.parametrize("why", ["long", "folder", "device", "missing", "full", "unwritable"])
def test_a_place_is_tried_before_the_work(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    command: str, option: str, suffix: str, why: str,
) -> None:  # fmt: skip
    """Found: certificates, names longer than 255 bytes and full disks failed after the work."""
    target = tmp_path / f"out{suffix}"
    match why:
        case "long":
            target = tmp_path / ("x" * 260 + suffix)
        case "folder":
            target.mkdir()
        case "device":  # to rename a file over it would take it away
            target.symlink_to("/dev/null")
        case "missing":
            target = tmp_path / "none" / target.name
        case "full":
            target.symlink_to(f"/dev/full{suffix}")

            def full(descriptor: int) -> None:
                raise OSError(28, "No space left on device")

            target.unlink()
            monkeypatch.setattr(os, "fsync", full)
        case "unwritable":
            target = Path("/proc") / target.name
    monkeypatch.setattr("h2osim.traces.trace.Trace.verify", lambda _: pytest.fail("began to work"))
    before = sorted(tmp_path.iterdir())
    fails(run(command, folder, *MORE.get(command, ()), option, target), option, str(target))
    assert sorted(tmp_path.iterdir()) == before


def test_a_link_is_written_through(run: Run, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("r.nc", "r.json", "r.csv"):
        link, real = tmp_path / name, tmp_path / "there" / f"real-{name}"
        link.symlink_to(real)
        assert run("compare", folder, "-p", "tova", "-o", link).code == 0
        assert link.is_symlink() and real.stat().st_size > 0
    link = tmp_path / "trace"
    link.symlink_to(tmp_path / "there" / "t")
    for _ in range(2):
        assert run("synth", "powerlaw", "-n", 8, "-o", link, "--overwrite").code == 0
        assert link.is_symlink() and h2osim.open_trace(link).n == 8
    assert len(list((tmp_path / "there").iterdir())) == 4


@pytest.mark.parametrize("ending", [".NC", ".Nc", ".JSON", ".CSV"])
def test_endings_in_capitals(run: Run, folder: Path, tmp_path: Path, ending: str) -> None:
    """Found: `.NC` was written without the evictions that `.nc` has."""
    for out in (tmp_path / f"a{ending}", tmp_path / f"a{ending.lower()}"):
        assert run("compare", folder, "-p", "tova", "-b", 5, "-o", out).code == 0
    if ending.lower() == ".nc":
        found, expected = (xarray.open_dataset(tmp_path / f"a{e}") for e in (ending, ".nc"))
        assert "evicted_at" in found
        xarray.testing.assert_equal(found, expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, path: h2osim.optimum(h2osim.open_trace(folder), [4, 9]),
        lambda folder, path: h2osim.optimum(h2osim.open_trace(folder), "all"),
        lambda folder, path: h2osim.allocate(h2osim.open_trace(folder), 12, policies=["tova"]),
        lambda folder, path: h2osim.sweep(folder, "h2o:recent=1|2,tova", [4, 0.5]),
        lambda folder, path: h2osim.sweep(folder, "h2o:recent=1|2,tova", "all", path / "s"),
        lambda folder, path: h2osim.replay(h2osim.open_trace(folder), ["tova"], [4]),
    ],
)
def test_every_result_saves_as_netcdf(
    folder: Path, tmp_path: Path, make: Callable[[Path, Path], xarray.Dataset]
) -> None:
    """Found: int64 in NetCDF 3, texts and lazy arrays of a sweep: tracebacks."""
    result = make(folder, tmp_path)
    again = xarray.load_dataset(save_results(result, tmp_path / "r.nc"))
    assert set(again.variables) == set(result.variables)
    for name in result.data_vars:
        np.testing.assert_array_equal(again[name].values, result[name].values)
        assert again[name].dtype == result[name].dtype


def test_a_missing_library_is_told_before_the_work(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "h5netcdf" else find(name, *a)
    )
    monkeypatch.setattr("h2osim.traces.trace.Trace.verify", lambda _: pytest.fail("began to work"))
    for command in ("compare", "optimum"):
        fails(run(command, folder, "-o", tmp_path / "r.nc"), "needs h5netcdf", "pip install")


def no_constants(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "chat", "-p", "tova", "-b", "0.1,1.0", "--layers", "2", "--optimum"),
        ("compare", "ONE", "-b", "1"), ("optimum", "ONE", "-b", "1"), ("info", "ONE"),
        ("allocate", "ONE", "--slots", "1"), ("sweep", "ONE", "-p", "tova,h2o", "-b", "1"),
        ("compare", "ONE", "-b", "1", "--optimum"), ("verify", "ONE", "-b", "1"),
        ("compare", "ONE", "--target-recall", "0.9"), ("traces",), ("policies",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_json_has_null_for_what_is_no_number(
    run: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Found: a traceback where a regret is 0/0. ONE: a trace of one token, where all is 0/0."""
    one = h2osim.Trace.from_scores(np.ones((1, 1))).save(tmp_path / "one")
    ended = run(*(one if word == "ONE" else word for word in words), "-f" if words[0] not in (
        "traces", "policies") else "--format", "json")  # fmt: skip
    assert ended.code == 0, ended.err
    json.loads(ended.out, parse_constant=no_constants)
    if words[0] == "compare" and "--target-recall" not in words:
        result = h2osim.replay(h2osim.open_trace(one), ["tova"], [1])
        text = save_results(result, tmp_path / "r.json").read_text()
        json.loads(text, parse_constant=no_constants)


def test_json_has_null_at_any_depth() -> None:
    nan, inf = float("nan"), float("inf")
    given = [{"a": nan, "b": [inf, {"c": -inf}]}, {"a": (nan, 1.5)}]
    found = json.loads(json_text(given), parse_constant=no_constants)
    assert found == [{"a": None, "b": [None, {"c": None}]}, {"a": [None, 1.5]}]


def test_overwriting_a_trace_spares_what_is_not_its_own(run: Run, tmp_path: Path) -> None:
    words = ("synth", "powerlaw", "-n", 8, "-o", tmp_path / "t")
    assert run(*words).code == 0
    for name in ("notes.txt", ".hidden", "layer-999.safetensors", "folder/x"):
        mine = tmp_path / "t" / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text("mine")
        fails(run(*words, "--overwrite"), mine.relative_to(tmp_path / "t").parts[0])
        assert mine.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
        mine.unlink()
        shutil.rmtree(tmp_path / "t" / "folder", ignore_errors=True)
    writer = TraceWriter(tmp_path / "t", overwrite=True, stores=["scores"], group_size=1)
    with pytest.raises(UserError, match="holds late"), writer:
        (tmp_path / "t" / "late").write_text("mine")
        with writer.layer(0, 3, 1, 1, tensors=["scores", "row_sum"]):
            pass
    assert (tmp_path / "t" / "late").read_text() == "mine"
    assert h2osim.open_trace(tmp_path / "t").n == 8


@pytest.mark.parametrize("name", ["x" * 255, "x" * 240, "é" * 120])
def test_a_trace_of_a_long_name(tmp_path: Path, name: str) -> None:
    """Found: a name that fits did not, with what its temporary name had more."""
    with pytest.raises(UserError, match="cannot be made: File name too long"):
        h2osim.synth("powerlaw", 4).save(tmp_path / (name + "x" * 20))
    h2osim.synth("powerlaw", 4).save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_a_kill_leaves_beside_a_trace_is_swept_by_the_next(tmp_path: Path) -> None:
    """But not what another process is writing now, nor what is no trace of ours."""
    code = (
        "import sys, time; from h2osim.traces.writer import TraceWriter\n"
        "with TraceWriter(sys.argv[1], stores=['scores'], group_size=1) as w:\n"
        "    with w.layer(0, 3, 1, 1, tensors=['scores', 'row_sum']) as f:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "t")]
    mine = tmp_path / ".mine.partial"
    mine.mkdir()
    children = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(2)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    children[0].kill()
    children[0].wait()
    assert len(list(tmp_path.glob(atomic.LEFTOVERS))) == 2
    atomic._sweep_once.cache_clear()
    h2osim.synth("powerlaw", 4).save(tmp_path / "other")
    assert len(list(tmp_path.glob(atomic.LEFTOVERS))) == 1
    children[1].send_signal(signal.SIGINT)
    assert children[1].wait(timeout=30) != 0
    assert {path.name for path in tmp_path.iterdir()} == {"other", mine.name}


def test_a_process_that_ends_at_once_takes_its_halves_along(tmp_path: Path) -> None:
    (tmp_path / "whole").touch()
    with suppress(FileNotFoundError), atomic.replacing(tmp_path / "file") as temporary:
        temporary.write_text("half")
        atomic.discard_all()
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]


# --- where nothing can be written ------------------------------------------------------------


@pytest.fixture
def unprivileged() -> list[str]:
    """Words before a command that may write only where the modes of files let it.

    Root may write anywhere; without its capabilities it is a user like others. (`nobody` will not
    do: it may not even read a Python below /root.)
    """
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux), since root may write anywhere")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


@pytest.mark.nightly
@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes of files")
def test_an_installation_that_cannot_be_written_to_works(
    tmp_path: Path, unprivileged: list[str]
) -> None:
    """Found: every command died, for numba found no place for its compiled code."""
    package = Path(h2osim.__file__).parent
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    copy = shutil.copytree(
        package, site / "h2osim", ignore=shutil.ignore_patterns("__pycache__", "_carried")
    )
    shutil.copytree(package.parent / "traces", copy / "_carried" / "traces")
    (site / "home").mkdir()
    for place in [site, *site.rglob("*")]:
        place.chmod(0o555 if place.is_dir() else 0o444)
    for place in (copy, copy / "engines", site / "home"):
        tried = subprocess.run([*unprivileged, "touch", place / "x"], capture_output=True)
        assert b"Permission denied" in tried.stderr
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "NUMBA_"))}
    environment |= {"HOME": str(site / "home"), "TMPDIR": str(work), "PYTHONPATH": str(site)}
    for words in (
        "compare chat -p tova --layers 2 --plot r.png", "info chat", "policies h2o", "traces",
        "sweep chat -p h2o:recent=1..3 -b 0.1 --layers 2 -o s.zarr", "synth powerlaw -n 50 -o t",
        "optimum t -b 5 --certificate c", "certify c t", "verify t -b 5",
    ):  # fmt: skip
        ended = subprocess.run(
            [*unprivileged, sys.executable, "-m", "h2osim", *words.split()],
            capture_output=True, text=True, env=environment, cwd=work,
        )  # fmt: skip
        assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stderr
        assert not re.search("error|arning|atplotlib", ended.stderr), ended.stderr
    for place in [site, *site.rglob("*")]:  # for whoever tidies up
        place.chmod(0o755)


@pytest.mark.nightly
def test_a_damaged_loop_heals(folder: Path, tmp_path: Path) -> None:
    """The text that h2osim writes for a policy is run: it must be as it was written."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    words = [sys.executable, "-m", "h2osim", "compare", str(folder), "-p", "tova", "-f", "json"]

    def out() -> str:
        ended = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    expected = out()
    (loop,) = (tmp_path / "h2osim" / "loops").glob("*.py")
    for damaged in ("", "raise SystemError", loop.read_text()[:-200]):
        loop.write_text(damaged)
        assert out() == expected
