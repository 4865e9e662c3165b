"""What a sweep shows: the best settings, the heat map, the command."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import on_terminal
from sweep_cases import GRID, SMALL
from trace_cases import random_trace

from h2osim import cli
from h2osim.policies.text import parse
from h2osim.report.best import best_records, columns_of, summarise
from h2osim.report.figures.sweep import sweep_figure
from h2osim.report.files import save_figure
from h2osim.sweeps.sweeping import open_sweep, sweep
from h2osim.traces.trace import Trace


def test_the_best_settings_are_those_of_the_means() -> None:
    found = sweep(SMALL, GRID + ",topk,full,snapkv:window=2", [3, 8], prompt_len=4)
    summary = summarise(found)
    records = best_records(summary, 2)
    assert [(one["budget"], one["rank"]) for one in records] == [(3, 1), (3, 2), (8, 1), (8, 2)]
    compete = [i for i, rule in enumerate(found.rule.values) if rule in ("h2o", "decay", "tova")]
    for b, k in enumerate((3, 8)):
        means = found.recall[:, :, b].mean("unit").values
        order = sorted(compete, key=lambda i: -means[i])
        got = [one for one in records if one["budget"] == k]
        assert [one["policy"] for one in got] == [found.policy.values[i] for i in order[:2]]
        units = found.recall[order[0], :, b]
        # the mean of two numbers, added chunk by chunk
        assert got[0]["recall"] == pytest.approx(float(means[order[0]]), abs=1e-15)
        assert (got[0]["least"], got[0]["greatest"]) == (float(units.min()), float(units.max()))


def test_a_window_that_fills_the_budget_does_not_compete() -> None:
    found = sweep(SMALL, "h2o:recent=2|3,recency", [3, 4], prompt_len=4)
    ranked = summarise(found).ranked
    assert ranked.tolist() == [[True, True], [False, True], [True, True]]


def test_where_none_competes_all_do() -> None:
    over = summarise(sweep(SMALL, "snapkv:window=1|2", [3], prompt_len=4))
    assert len(best_records(over, 5)) == 2
    assert len(best_records(summarise(sweep(SMALL, "topk", [3])), 5)) == 1
    assert best_records(summarise(sweep(Trace.from_scores(np.ones((1, 1))), "tova", 1)), 5) == []


def test_many_budgets_are_shown_by_shares() -> None:
    one = columns_of(sweep(random_trace(100, 1, 1), "tova", "all"))
    assert [column.budget for column in one] == [1, 2, 5, 10, 20, 50]
    two = columns_of(sweep([random_trace(100, 1, 1), random_trace(40, 1, 1)], "tova", "all"))
    assert [column.label for column in two] == ["1", "2 %", "5 %", "10 %", "20 %", "50 %"]
    assert two[-1].at.tolist() == [49, 19]


@pytest.mark.parametrize(
    "text",
    [
        GRID,
        "h2o:recent=0..6,scores=full|cached,sinks=0..2",
        "decay:gamma=0..1:0.1",
    ],
)
def test_the_heat_map_is_drawn(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'h2osim[plot]'")
    summary = summarise(sweep(SMALL, text, [2, 4, 8, 12, 20]))
    path = save_figure(sweep_figure(summary, "a title"), tmp_path / "map.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["map.png"]


# --- the command ----------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(["sweep", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_the_command_prints_plots_and_continues(run: Any, small: Path, tmp_path: Path) -> None:
    store, picture = tmp_path / "s.zarr", tmp_path / "s.svg"
    words = (small, "-p", GRID, "--budgets", "3,50%", "-o", store, "--plot", picture)
    code, out, err = run(*words)
    assert code == 0
    assert "10 settings × 4 units × 2 budgets" in out
    assert "12 (50 %)" in out
    assert "chunks to do" in err and f"wrote {store}" in err and f"wrote {picture}" in err
    assert b"<svg" in picture.read_bytes()
    code, out, err = run(*words, "--format", "json", "--best", 2)
    assert code == 0 and "0 of" in err
    records = json.loads(out)
    assert [(one["budget"], one["rank"]) for one in records] == [(3, 1), (3, 2), (12, 1), (12, 2)]
    assert records[0]["params"] == parse(records[0]["policy"]).values
    code, csv, _ = run(*words, "--format", "csv", "--best", 2)
    assert code == 0
    assert csv.splitlines()[0] == "budget,rank,policy,params,recall,least,greatest"
    assert len(csv.splitlines()) == 5
    # a finished sweep may be moved
    shutil.move(store, tmp_path / "moved")
    assert open_sweep(tmp_path / "moved").recall.shape == (10, 4, 2)


def test_on_a_terminal_a_bar_shows_rate_and_estimate(small: Path) -> None:
    words = [sys.executable, "-m", "h2osim", "sweep", str(small), "-p", GRID, "-b", "3,50%"]
    code, shown = on_terminal(words)
    assert code == 0
    assert b"sweeping" in shown
    assert b"runs/s" in shown
    assert re.search(rb"left.{0,20}\d:\d\d:\d\d", shown)


def test_the_command_says_which_settings_take_one_pass(run: Any, small: Path) -> None:
    code, _, err = run(small, "-p", GRID, "-b", "all", "--engine", "numba")
    assert code == 0
    assert "7 in one pass over all budgets, 3 budget by budget" in err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("-p", "h2o:recent=0..128:16,decay=0.9..1.0:0.03"), "reach 0.99 and not 1"),
        (("-p", "tova", "-b", "0"), "--budgets"),
        (("-p", "tova", "--plot", "x.png"), "several values"),
        (("-p", "h2o:recent=0..2", "--plot", "x.txt"), ".png"),
        (("-p", "tova", "--layers", "7"), "layer 7"),
        (("-p", "tova", "--engine", "fast"), "'fast' is not one of"),
        (("-p", "tova", "--dask", "tcp://127.0.0.1:1"), "give a store"),
        (("-p", "tova", "-o", "file"), "something else"),
        ((), "--policies"),
    ],
)
def test_mistakes_are_one_line(
    run: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    code, out, err = run(small, *words)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("h2osim: error:") and part in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
