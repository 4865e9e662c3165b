"""The commands of the theory: optimum, certify, allocate, verify, whole curves, bench."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from commands import Run, fails

import h2osim
from h2osim.bench import Measurement
from h2osim.cli.bench import show
from h2osim.traces.synthetic import synth


@pytest.fixture(scope="module")
def trap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """C2 with 50 tokens."""
    return synth("trap", 50, d=1e-3).save(tmp_path_factory.mktemp("traces") / "trap")


def test_compare_with_the_optimum_gives_regret_and_the_gap_closed(run: Run, folder: Path) -> None:
    words = ("compare", folder, "-p", "h2o,streaming,topk", "-b", "6,12", "--optimum")
    records = json.loads(run(*words, "--format", "json").out)
    trace = h2osim.open_trace(folder)
    best = h2osim.optimum(trace, [6, 12])
    assert len(records) == 3 * 2 * 2 * 2
    for record in records:
        place = {name: record[name] for name in ("layer", "unit", "budget")}
        assert record["optimum"] == float(best.recall.sel(place))
        assert record["regret"] == record["optimum"] - record["recall"]
        if record["policy"] == "streaming":
            assert record["closed"] == 0
        if record["policy"] != "topk":
            assert record["regret"] >= 0 and record["closed"] <= 1
    table = run(*words).out
    assert "optimum" in table and "offline" in table and "below the offline optimum" in table


def test_the_gap_is_measured_from_streaming_even_if_it_was_not_asked_for(
    run: Run, folder: Path
) -> None:
    words = ("-b", "6", "--optimum", "--format", "json")
    alone = json.loads(run("compare", folder, "-p", "h2o", *words).out)
    beside = json.loads(run("compare", folder, "-p", "h2o,streaming", *words).out)
    assert alone == [record for record in beside if record["policy"] == "h2o"]


def test_a_certificate_is_saved_checked_and_refused_for_another_trace(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "best.safetensors"
    ended = run("optimum", folder, "-b", "6,0.3", "--certificate", file, "--format", "json")
    found = json.loads(ended.out)
    assert all(record["gap"] == 0 and record["lower"] == record["upper"] for record in found)
    checked = json.loads(run("certify", file, folder, "--format", "json").out)
    assert checked == found
    other = synth("drift", 40, layers=2, heads=2, seed=3).save(tmp_path / "other")
    fails(run("certify", file, other), "certificate")
    file.write_bytes(file.read_bytes()[:-8])
    fails(run("certify", file, folder), "best.safetensors")


def test_a_bracket_holds_the_exact_optimum(run: Run, folder: Path) -> None:
    words = ("optimum", folder, "-b", "8", "--format", "json")
    exact = json.loads(run(*words).out)
    near = json.loads(run(*words, "--method", "bracket", "--gap", "0.01").out)
    for one, other in zip(exact, near, strict=True):
        assert other["lower"] <= one["recall"] <= other["upper"]
        assert other["gap"] <= 0.01


@pytest.mark.parametrize("words", [("optimum", "-b", "6,12")])
def test_optimum_and_allocate_save_what_compare_saves(
    run: Run, folder: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    import pandas as pd
    import xarray as xr

    command, *rest = words
    for ending in ("nc", "parquet", "csv", "json"):
        assert run(command, folder, *rest, "-o", tmp_path / f"found.{ending}").code == 0
    with xr.open_dataset(tmp_path / "found.nc") as dataset:
        expected = dataset["recall"].values.ravel().tolist()
    for table in (
        pd.read_parquet(tmp_path / "found.parquet"),
        pd.read_csv(tmp_path / "found.csv"),
        pd.DataFrame(json.loads((tmp_path / "found.json").read_text())),
    ):
        assert table["recall"].tolist() == expected
        assert set(table["trace"]) == {h2osim.open_trace(folder).name}
    fails(run(command, folder, *rest, "-o", tmp_path / "found.xls"), "found.xls", ".parquet")


def test_optimum_of_every_budget_and_what_it_refuses(
    run: Run, folder: Path, tmp_path: Path
) -> None:
    found = json.loads(run("optimum", folder, "-b", "all", "--format", "json").out)
    assert len(found) == 2 * 2 * 40
    plot = tmp_path / "price.png"
    assert run("optimum", folder, "-b", "4,8", "--plot", plot).code == 0 and plot.stat().st_size
    fails(run("optimum", folder, "-b", "all", "--plot", plot), "--plot", "budgets")
    fails(run("optimum", folder, "--gap", "2"), "gap 2")


def test_allocate_splits_exactly_the_slots(run: Run, folder: Path, tmp_path: Path) -> None:
    plot = tmp_path / "slots.png"
    words = ("allocate", folder, "--slots", "30", "-p", "optimum,recency", "--share", "head")
    records = json.loads(run(*words, "--format", "json", "--plot", plot).out)
    assert plot.stat().st_size
    overall = {}
    for policy in ("optimum", "recency"):
        for rule in ("best", "equal", "pyramid", "reverse-pyramid", "adakv"):
            rows = [r for r in records if (r["policy"], r["split"]) == (policy, rule)]
            assert sum(row["slots"] for row in rows) == 30
            overall[policy, rule] = rows[0]["overall"]
        assert overall[policy, "best"] == min(overall[policy, r] for _, r in overall)
    assert "best" in run(*words).out
    fails(run("allocate", folder, "--total", "1"), "total 1", "expected")


def test_allocate_writes_budgets_that_the_other_commands_take(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = tmp_path / "b.json"
    words = ("allocate", folder, "--total", "20%,40%", "-p", "tova")
    ended = run(*words, "-o", path)
    assert ended.code == 0 and f"wrote {path}: best, 2 totals" in ended.err
    assert max(map(len, ended.out.splitlines())) <= 80
    written = h2osim.read_budgets(path)
    assert [one.mean for one in written] == [0.2, 0.4]
    records = [r for r in json.loads(run(*words, "-f", "json").out) if r["split"] == "best"]
    rows = json.loads(run("compare", folder, "-p", "tova", "-b", f"@{path}", "-f", "json").out)
    assert sorted(r["slots"] for r in rows) == sorted(r["slots"] for r in records)
    lost = {(r["layer"], r["unit"], r["slots"]): r["loss"] for r in records}
    for row in rows:
        assert lost[row["layer"], row["unit"], row["slots"]] == 1 - row["recall"]
    assert run(*words, "--split", "equal", "-o", path).code == 0
    assert all(len(set(one.budgets.ravel())) == 1 for one in h2osim.read_budgets(path))
    fails(run("allocate", folder, "-p", "tova,h2o", "-o", path), "found 2 policies, expected one")
    fails(run("allocate", folder, "--total", "x"), "--total", "is no budget")
    fails(run("allocate", folder, "--by", "error"), "values")


def test_verify_shows_the_trap_and_finds_nothing_violated(
    run: Run, trap: Path, tmp_path: Path
) -> None:
    words = ("verify", trap, "-p", "h2o:recent=0,scores=full", "-b", "1")
    plot = tmp_path / "ratio.png"
    ended = run(*words, "--format", "json", "--plot", plot)
    assert ended.code == 0 and plot.stat().st_size
    lines = json.loads(ended.out)
    assert {line["verdict"] for line in lines} <= {"holds", "holds vacuously", "does not apply"}
    ratio = {line["guarantee"]: line["ratio"] for line in lines if line.get("ratio")}
    assert round(ratio["paper-theorem"], 3) == 0.034
    assert "does not apply" in run(*words).out
    assert run(*words, "--format", "csv").out.startswith("policy,")
    fails(run("verify", trap, "-b", "all"), "--budgets")


def test_verify_sums_up_in_one_screen(run: Run, folder: Path) -> None:
    """One line a policy and statement, no line beyond 80 columns, a closing count."""
    ended = run("verify", folder, "-b", "6,12")
    shown = ended.out.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in shown)
    assert len(shown) <= 40
    rows = [line.split()[0] for line in shown if line.startswith("  ")]
    assert rows.count("T6") == 4  # three policies and the optimum itself
    records = json.loads(run("verify", folder, "-b", "6,12", "--format", "json").out)
    verdicts = [record["verdict"] for record in records]
    hold, outside, broken = (int(part.split()[0]) for part in shown[-1].split(", "))
    assert hold == sum(word.startswith("holds") for word in verdicts)
    assert outside == verdicts.count("does not apply")
    assert (broken, hold + outside) == (0, len(records))
    each = run("verify", folder, "-b", "6,12", "--details").out.splitlines()
    assert all(len(line.rstrip()) <= 80 for line in each)
    assert len(each) > len(shown)
    assert each[-1] == shown[-1]


def test_whole_curves_say_how_they_were_made(run: Run, folder: Path, tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    words = ("-p", "streaming,h2o", "-b", "all", "--format", "json", "--plot", plot)
    ended = run("compare", folder, *words)
    assert len(json.loads(ended.out)) == 2 * 2 * 2 * 40
    assert "all budgets in one pass: streaming; budget by budget: h2o" in ended.err
    assert plot.stat().st_size


def test_target_recall_is_the_first_budget_that_reaches_it(run: Run, folder: Path) -> None:
    words = ("compare", folder, "-p", "streaming,h2o", "--target-recall", "0.8")
    records = json.loads(run(*words, "--format", "json").out)
    curves = h2osim.replay(h2osim.open_trace(folder), ["streaming", "h2o"], "all")
    for record in records:
        one = curves.recall.sel(policy=record["policy"])
        if record["layer"] is None:
            one = one.mean(("layer", "unit"))
        else:
            one = one.sel(layer=record["layer"], unit=record["unit"])
        assert record["budget"] == int(np.argmax(one.values >= 0.8)) + 1
    assert "overall" in run(*words).out
    never = run("compare", folder, "-p", "recency", "-b", "1,2", "--target-recall", "1")
    assert "never" in never.out
    fails(run("compare", folder, "--target-recall", "1.5"), "--target-recall")


def test_without_a_gpu_cuda_is_refused_in_one_line(run: Run, folder: Path) -> None:
    from h2osim import cuda

    if cuda.available():
        assert run("compare", folder, "--engine", "cuda").code == 0
    else:
        fails(run("compare", folder, "--engine", "cuda"), "engine=cuda")
        fails(run("optimum", folder, "--engine", "cuda"), "engine=cuda")
    fails(run("optimum", folder, "--engine", "cuda", "-b", "all"), "engine=cuda", "listed budgets")


def test_bench_measures_the_layer_that_is_asked_for(run: Run) -> None:
    ended = run("bench", "curve", "chat", "--layer", "16", "--json")
    assert ended.code in (0, 1) and "measuring on chat, layer 16" in ended.err
    fails(run("bench", "curve", "chat", "--layer", "3"), "no layer 3")


def test_bench_checks_and_prints_ratios(run: Run) -> None:
    ended = run("bench", "curve", "--n", "256", "--json")
    found = json.loads(ended.out)
    assert {"what", "value", "unit", "goal", "at_least", "met"} == set(found[0])
    assert all(record["value"] > 0 for record in found)
    # So short a trace says nothing about speed, only that the goals decide the exit code.
    assert ended.code == (1 if any(record["met"] is False for record in found) else 0)


def test_a_missed_goal_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    show([Measurement("slow", 1.0, "times", 2.0, False)], as_json=False)
    with pytest.raises(typer.Exit):
        show([Measurement("slow", 1.0, "times", 2.0)], as_json=False)
    assert "MISSED" in capsys.readouterr().out
