"""The commands policies, info, traces, synth and record."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from commands import Run, fails

import h2osim
from h2osim.policies.registry import all_policies


def test_policies_lists_all(run: Run) -> None:
    records = json.loads(run("policies", "--format", "json").out)
    assert [record["name"] for record in records] == list(all_policies())
    table = run("policies").out
    rows = list(csv.DictReader(io.StringIO(run("policies", "--format", "csv").out)))
    assert [row["name"] for row in rows] == list(all_policies())
    for name in all_policies():
        assert name in table


@pytest.mark.parametrize("name", all_policies())
def test_policies_shows_one(run: Run, name: str) -> None:
    ended = run("policies", name)
    assert (ended.code, ended.err) == (0, "")
    policy = all_policies()[name]
    assert ended.out.startswith(name)
    for param in policy.params:
        assert param.name in ended.out
        assert str(param.default) in ended.out


def test_an_unknown_policy_names_the_near_ones(run: Run) -> None:
    fails(run("policies", "tovva"), "tova")


def test_info_shows_what_is_in_a_trace(run: Run, folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "attention.png"
    ended = run("info", folder, "--plot", picture)
    assert (ended.code, ended.err) == (0, f"wrote {picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")
    for text in ("small", "40 (no prompt of its own)", "2 layers", "sinks", "exponent"):
        assert text in ended.out
    record = json.loads(run("info", folder, "--format", "json").out)
    assert (record["n"], record["heads"]) == (40, 2)
    for layer in record["layers"]:
        shares = [layer[name] for name in ("sinks", "recent", "heavy", "rest")]
        assert sum(shares) == pytest.approx(1)  # four quotients, each rounded
    rows = list(csv.DictReader(io.StringIO(run("info", folder, "-f", "csv", "--layers", "1").out)))
    assert [row["layer"] for row in rows] == ["1"]
    fails(run("info", folder, "--layers", "5"), "5")
    fails(run("info", tmp_path), "trace.json")


def test_traces_lists_the_bundled_ones(run: Run) -> None:
    from h2osim.traces.catalogue import bundled_traces

    records = json.loads(run("traces", "--format", "json").out)
    assert [record["name"] for record in records] == list(bundled_traces())
    table = run("traces").out
    for record in records:
        assert record["name"] in table
        assert record["license"]


# --- synth and record -----------------------------------------------------------------------


def test_synth_makes_a_trace_that_compare_reads(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "made"
    words = ("synth", "powerlaw", "--n", 48, "--seed", 3, "--heads", 4, "--group-size", 2)
    ended = run(*words, "--param", "exponent=1.5", "--param", "sink=0", "-o", path)
    assert (ended.code, ended.out, ended.err) == (0, "", f"wrote {path}\n")
    trace = h2osim.open_trace(path)
    made = h2osim.synth("powerlaw", 48, seed=3, heads=4, group_size=2, exponent=1.5, sink=0)
    assert (trace.n, trace.group_size, len(trace.heads)) == (48, 2, 4)
    assert np.array_equal(trace.tensor(0, "scores"), made.tensor(0, "scores"))
    assert trace.manifest["command"].startswith("h2osim synth powerlaw --n 48 --seed 3")
    assert run("compare", path).code == 0
    # An existing folder stays as it is, unless it is a trace and --overwrite says so.
    fails(run(*words, "-o", path), str(path))
    assert run(*words, "-o", path, "--overwrite").code == 0


def test_synth_without_a_name_lists_the_generators(run: Run) -> None:
    ended = run("synth")
    assert ended.code == 0
    for name in ("powerlaw", "drift", "needle", "freeze", "trap", "coverage", "exponent"):
        assert name in ended.out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("powerlow", "--n", "8", "-o", "x"), ("'powerlow'", "powerlaw")),
        (("trap", "-o", "x"), ("--n",)),
        (("trap", "--n", "8"), ("--output",)),
        (("trap", "--n", "8", "-o", "x", "--param", "d"), ("'d'", "NAME=VALUE")),
        (("trap", "--n", "8", "-o", "x", "--param", "e=1"), ("e", "d")),
        (("trap", "--n", "8", "-o", "x", "--param", "d=2"), ("d=2", "0 to 1")),
    ],
)
def test_mistakes_in_synth_are_one_line(
    run: Run,
    words: tuple[str, ...],
    parts: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    fails(run("synth", *words), *parts)
    assert not list(tmp_path.iterdir())


def test_mistakes_in_record_are_found_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    out = tmp_path / "out"
    fails(run("record", "smollm2", "--text", tmp_path / "none.txt", "-o", out), "none.txt")
    fails(run("record", "smollm2", "--text", binary, "-o", out), "UTF-8")
    fails(run("record", "smollm2", "--text", binary, "-o", out, "--layers", "x"), "--layers")
    fails(run("record", "smollm2", "-o", out), "--text")
    assert not out.exists()
