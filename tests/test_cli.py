"""The command line through its real entry point, and the command compare."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import Run, fails, on_terminal

import h2osim
from h2osim.policies.registry import all_policies
from h2osim.policies.text import split_policies


def command(*words: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "h2osim", *words], capture_output=True, text=True, timeout=120
    )


def test_version_of_the_real_command() -> None:
    ended = command("--version")
    assert (ended.returncode, ended.stdout) == (0, f"h2osim {h2osim.__version__}\n")


def test_a_mistake_in_the_real_command_is_one_line() -> None:
    ended = command("compare", "no-such-trace")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith("h2osim: error: ")
    assert ended.stderr.count("\n") == 1


SLOW_POLICY = """
import pathlib, time
from h2osim.policies.declaration import Policy

def rank(pos):
    pathlib.Path({marker!r}).touch()
    time.sleep(0.005)
    return float(pos)

POLICY = Policy(name="slow", summary="takes its time", source="this test", rank=rank)
"""


def test_ctrl_c_is_130_and_leaves_no_traceback(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "started"
    policy = tmp_path / "slow.py"
    policy.write_text(SLOW_POLICY.format(marker=str(marker)), encoding="utf-8")
    words = [str(folder), "--engine", "naive", "--policies", str(policy), "--budgets", "8"]
    saving = ["--plot", str(tmp_path / "recall.png"), "-o", str(tmp_path / "results.csv")]
    process = subprocess.Popen(
        [sys.executable, "-m", "h2osim", "compare", *words, *saving],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not marker.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "h2osim: error: interrupted\n")
    left = {path.name for path in tmp_path.iterdir()} - {"__pycache__"}
    assert left == {"slow.py", "started"}


def test_a_closed_pipe_is_no_error() -> None:
    shell = f"{sys.executable} -m h2osim policies | head -n 1"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0
    assert ended.stderr == ""


def test_colours_and_progress_on_a_terminal_only(folder: Path) -> None:
    words = [sys.executable, "-m", "h2osim", "compare", str(folder), "-p", "recency", "-b", "4"]
    piped = subprocess.run(words, capture_output=True, timeout=120)
    assert (piped.returncode, piped.stderr) == (0, b"")
    assert b"\x1b" not in piped.stdout

    code, shown = on_terminal(words)
    assert code == 0
    assert b"replaying" in shown
    assert b"\x1b[" in shown
    assert b"recency" in shown


def test_help_names_every_command(run: Run) -> None:
    for words in ((), ("--help",), ("-h",)):
        ended = run(*words)
        assert ended.code == 0
        for name in ("record", "synth", "info", "policies", "traces", "compare"):
            assert name in ended.out
    for name in ("record", "synth", "info", "policies", "traces", "compare"):
        assert run(name, "--help").code == 0


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("compar", "x"), ("compar", "compare")),
        (("compare",), ("TRACE", "h2osim compare --help")),
        (("compare", "x", "--buget", "1"), ("--buget", "--budgets")),
        (("compare", "x", "--engine", "fast"), ("fast", "naive")),
        (("compare", "x", "--prompt-len", "0"), ("--prompt-len",)),
    ],
)
def test_usage_errors_are_one_line(
    run: Run, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    fails(run(*words), *parts)


# --- compare --------------------------------------------------------------------------------


POLICIES = "h2o,streaming:sinks=2,tova,h2o:recent=4,scores=full"


def test_a_wrong_choice_is_told_in_the_words_of_the_option(run: Run) -> None:
    """Recent releases of typer put "Value error," in front of it."""
    ended = run("compare", "x", "--engine", "fast")
    assert ended.err == (
        "h2osim: error: Invalid value for '--engine': 'fast' is not one of 'auto', 'naive', "
        "'numba', 'cuda' (see `h2osim compare --help`)\n"
    )


def test_compare_prints_a_ranked_table(run: Run, folder: Path) -> None:
    ended = run("compare", folder, "--policies", f"{POLICIES},topk", "--budgets", "0.1,8,50%")
    assert (ended.code, ended.err) == (0, "")
    assert "small: 40 tokens" in ended.out
    for text in ("4 (10 %)", "8 (20 %)", "20 (50 %)", "h2o:recent=4,scores=full", "bound"):
        assert text in ended.out
    lines = ended.out.splitlines()
    ranks = [line.split("│")[1].strip() for line in lines if line.startswith("│")]
    # The bound comes first, without a number. A window of 4 fills the budget of 4: it has none.
    assert [rank for rank in ranks if rank] == ["–", "1", "2", "3", "–"]


def test_a_narrow_screen_gets_the_spread_on_its_own_line(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("compare", folder, "-p", "recency,full", "-b", "4,8,16,20")
    assert "4 (10 %)" in run(*words).out
    monkeypatch.setenv("COLUMNS", "100")
    narrow = run(*words).out
    assert "4 (10 %)" not in narrow
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 100
    assert "then least–greatest" in narrow
    monkeypatch.setenv("COLUMNS", "60")
    assert "a wider screen shows the spread" in " ".join(run(*words).out.split())


def test_compare_agrees_with_the_api(run: Run, folder: Path) -> None:
    ended = run(
        "compare", folder, "-p", POLICIES, "-b", "4,0.5", "--prompt-len", 8, "--share", "head",
        "--layers", "1", "--format", "json",
    )  # fmt: skip
    assert (ended.code, ended.err) == (0, "")
    records = json.loads(ended.out)
    assert list(records[0]) == ["policy", "params", "layer", "unit", "budget", "recall"]
    texts = split_policies(POLICIES)
    results = h2osim.replay(
        h2osim.open_trace(folder), texts, [4, 0.5], prompt_len=8, share="head", layers=[1]
    )
    assert len(records) == results["recall"].size == 4 * 1 * 2 * 2
    for record in records:
        where = {name: record[name] for name in ("policy", "layer", "unit", "budget")}
        assert record["recall"] == results["recall"].sel(where).item()
    by_policy = {record["policy"]: record["params"] for record in records}
    assert by_policy["streaming:sinks=2"] == {"sinks": 2}
    # Defaults are spelled out.
    assert by_policy["h2o"] == all_policies()["h2o"].with_params().values
    assert by_policy["h2o:recent=4,scores=full"] == {
        **by_policy["h2o"],
        "recent": 4,
        "scores": "full",
    }


def test_compare_csv_holds_the_same_records(run: Run, folder: Path) -> None:
    words = ("compare", folder, "-p", POLICIES, "-b", "4,8")
    rows = list(csv.DictReader(io.StringIO(run(*words, "-f", "csv").out)))
    records = json.loads(run(*words, "-f", "json").out)
    assert len(rows) == len(records)
    for row, record in zip(rows, records, strict=True):
        assert float(row["recall"]) == record["recall"]
        assert row["policy"] == record["policy"]
        assert row["params"] == ",".join(f"{k}={v}" for k, v in record["params"].items())


@pytest.mark.parametrize("engine", ["naive", "numba", "auto"])
def test_every_engine_prints_the_same(run: Run, folder: Path, engine: str) -> None:
    words = ("compare", folder, "-p", POLICIES, "-b", "4,8", "-f", "json")
    assert run(*words, "--engine", engine).out == run(*words, "--engine", "naive").out


def test_a_policy_that_holds_more_than_its_budget_says_so(run: Run, folder: Path) -> None:
    ended = run("compare", folder, "-p", "full,recency", "-b", "4")
    assert "holds up to 39 of 4" in ended.out


def test_compare_draws_and_saves(run: Run, folder: Path, tmp_path: Path) -> None:
    import pandas as pd
    import xarray as xr

    words = ("compare", folder, "-p", POLICIES, "-b", "4,8,16", "--format", "json")
    plain = run(*words)
    records = json.loads(plain.out)
    for ending in ("nc", "parquet", "csv", "json"):
        path = tmp_path / f"results.{ending}"
        ended = run(*words, "-o", path)
        assert (ended.code, ended.out, ended.err) == (0, plain.out, f"wrote {path}\n")
    expected = [record["recall"] for record in records]
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [row["recall"] for row in saved] == expected
    assert list(pd.read_csv(tmp_path / "results.csv")["recall"]) == expected
    assert list(pd.read_parquet(tmp_path / "results.parquet")["recall"]) == expected
    with xr.open_dataset(tmp_path / "results.nc") as dataset:
        whole = h2osim.replay(h2osim.open_trace(folder), list(dataset["policy"].values), [4, 8, 16])
        xr.testing.assert_equal(dataset.load(), whole)

    for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")):
        path = tmp_path / f"recall.{ending}"
        ended = run(*words, "--plot", path)
        assert (ended.code, ended.out) == (0, plain.out)
        assert path.read_bytes().startswith(start)
    # Nothing temporary is left.
    assert sorted(p.suffix for p in tmp_path.iterdir()) == sorted(
        [".nc", ".parquet", ".csv", ".json", ".png", ".pdf", ".svg"]
    )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--policies", "h20"), ("'h20'", "h2o")),
        (("--policies", "h2o:resent=3"), ("'resent'", "recent")),
        (("--policies", "h2o:recent=x"), ("recent=x",)),
        (("--policies", ","), ("--policies",)),
        (("--budgets", "0.1,zwei"), ("'zwei'", "--budgets")),
        (("--budgets", "0"), ("'0'",)),
        (("--budgets", "1.5"), ("'1.5'",)),
        (("--budgets", "nan"), ("'nan'",)),
        (("--budgets", "-3"), ("'-3'",)),
        (("--budgets", "41"), ("41", "40")),
        (("--prompt-len", "41"), ("41", "40")),
        (("--layers", "7"), ("7",)),
        (("--layers", "one"), ("'one'", "--layers")),
        (("--plot", "recall.bmp"), ("recall.bmp", ".png")),
        (("--plot", "no/such/folder/recall.png"), ("no/such/folder",)),
        (("-o", "results.xls"), ("results.xls", ".parquet")),
    ],
)
def test_mistakes_are_one_line(
    run: Run, folder: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    fails(run("compare", folder, *words), *parts)


def test_a_broken_trace_is_refused(run: Run, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "broken"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    layer = sorted(copy.glob("*.safetensors"))[0]
    data = bytearray(layer.read_bytes())
    data[-1] ^= 1
    layer.write_bytes(data)
    fails(run("compare", copy), layer.name)


def test_an_unwritable_place_is_one_line(run: Run, folder: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        place = Path("/proc/recall.png")  # nothing can be created here, not even by root
    else:
        tmp_path.chmod(0o500)
        place = tmp_path / "recall.png"
    fails(run("compare", folder, "-p", "full", "--plot", place), str(place.parent))
