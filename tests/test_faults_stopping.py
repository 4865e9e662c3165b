"""Whatever stops a command, it ends soon, in one line, and what is on the disk stays whole."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import h2osim

COMMAND = (sys.executable, "-m", "h2osim")
dask = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None,
    reason="needs Dask: pip install 'h2osim[dask]'",
)


def start(words: Sequence[object], **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a Dask scheduler with two workers, and the scheduler's process."""
    file = folder / "scheduler.json"
    python = [sys.executable, "-m"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*python, "distributed.cli.dask_scheduler", "--port", "0", "--no-dashboard",
         "--host", "127.0.0.1", "--scheduler-file", str(file)], text=True, **quiet,
    )  # fmt: skip
    worker = subprocess.Popen(
        [*python, "distributed.cli.dask_worker", "--scheduler-file", str(file), "--nworkers", "2",
         "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder)], **quiet,
    )  # fmt: skip
    try:
        address = ""
        while not address:
            time.sleep(0.1)
            assert scheduler.poll() is None
            if file.exists() and file.read_text():
                address = json.loads(file.read_text())["address"]
        yield address, scheduler
    finally:
        for process in (worker, scheduler):
            process.terminate()
            process.wait(timeout=30)


def log(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in (path / ".h2osim/log.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return []


def begun(path: Path, chunks: int = 1) -> None:
    """Wait until so many chunks of a store are begun."""
    deadline = time.monotonic() + 60
    while sum("start" in event for event in log(path)) < chunks:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@dask
@pytest.mark.nightly
def test_a_dead_scheduler_is_one_line_and_a_dead_driver_repeats_no_chunk(tmp_path: Path) -> None:
    """Found: 94 lines of traceback; two workers on one chunk, one of them of the killed driver."""
    h2osim.synth("powerlaw", 500, seed=1).save(tmp_path / "trace")
    store = tmp_path / "s.zarr"
    words = ("sweep", tmp_path / "trace", "-p", "h2o:recent=1..12", "-b", "40,50", "--engine",
             "naive", "-o", store, "--dask")  # fmt: skip
    with cluster(tmp_path) as (address, scheduler):
        driver = start((*words, address))
        begun(store)
        driver.kill()
        driver.communicate()
        driver = start((*words, address))
        begun(store, 4)
        at_work: dict[int, int] = {}
        for event in log(store):
            if "start" in event:
                assert at_work.setdefault(event["start"], event["pid"]) == event["pid"]
            else:
                del at_work[event["done"]]
        scheduler.kill()
        out, err = driver.communicate(timeout=60)
    assert (driver.returncode, out) == (2, ""), err
    assert re.fullmatch(r"(\d+ settings.*\n)?h2osim: error: --dask: lost the cluster.*\n", err), err
    ended = [event["done"] for event in log(store) if "done" in event]
    assert len(ended) == len(set(ended))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return h2osim.synth("powerlaw", 4096, seed=1).save(tmp_path_factory.mktemp("long") / "trace")


@pytest.mark.nightly
@pytest.mark.parametrize(
    "words",
    [
        ("compare", "LONG", "-p", "h2o", "-b", "200", "--engine", "naive"),
        ("compare", "LONG", "-p", "h2o", "-b", "all"),
        ("optimum", "LONG", "--method", "exact", "-b", "all"),
        ("optimum", "LONG", "-b", ",".join(map(str, range(50, 2500, 25))), "--certificate", "OUT"),
        ("allocate", "LONG", "--slots", "800"),
        ("verify", "LONG"),
        ("sweep", "LONG", "-p", "h2o:recent=1..999", "-b", "50,60", "-o", "OUT"),
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_ctrl_c_ends_compiled_loops_and_threads(
    long: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Found: 32 s until the exact solver's loop was through, and as long as threads took."""
    places: dict[str, object] = {"LONG": long, "OUT": tmp_path / "out"}
    process = start([places.get(word, word) for word in words])
    time.sleep(3.5)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    sent = time.monotonic()
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - sent < 2
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1] == "h2osim: error: interrupted" and err.count("error") == 1
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} <= ({"out"} if words[0] == "sweep" else set())


@pytest.mark.parametrize("taken", [0, 1000])
@pytest.mark.parametrize(
    "words",
    [
        ("compare", "chat", "-p", "recency,streaming", "-b", "all"),
        ("compare", "chat", "-p", "recency,streaming", "-b", "all", "-f", "json"),
        ("compare", "chat", "-p", "recency", "-b", "all", "-f", "csv"),
        ("--help",),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_closed_pipe_is_the_readers_will(words: tuple[str, ...], taken: int) -> None:
    """Found: tables and JSON that are larger than a pipe's buffer ended with another code."""
    process = subprocess.Popen([*COMMAND, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    os.read(process.stdout.fileno(), taken)
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert b"error" not in err and b"Traceback" not in err and err.count(b"\n") <= 1


def test_output_that_was_closed_from_the_start() -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        ended = subprocess.run(
            ["bash", "-c", f'"$0" -m h2osim traces {closed}', sys.executable],
            capture_output=True, text=True,
        )  # fmt: skip
        assert ended.returncode == 0 and "Traceback" not in ended.stderr
