"""Several traces at once: results with a dimension for them, and statistics over them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails

import h2osim
from h2osim import Trace, UserError, replay, sweep, synth
from h2osim.replays.results import check
from h2osim.report import best, comparison, goals
from h2osim.report.frames import with_optimum
from h2osim.report.statistics import mean_interval, ties_with_best
from h2osim.traces.catalogue import open_traces

POLICIES = ["h2o", "topk", "streaming:sinks=1"]


def made(n: int, seed: int, **more: Any) -> Trace:
    sizes = {"heads": 4, "group_size": 2, "layers": 2} | more
    return synth("powerlaw", n, seed=seed, **sizes)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight traces of one shape, of several lengths, in one folder."""
    root = tmp_path_factory.mktemp("corpus")
    for seed in range(8):
        trace = made(40 + 4 * (seed % 3), seed)
        trace.manifest["name"] = f"text{seed}"
        trace.save(root / f"text{seed}")
    return root


# --- results --------------------------------------------------------------------------------


@pytest.mark.parametrize("budgets", [[0.1, 0.5], [4, 8], "all", [4, 0.5], [0.03, 0.04]])
def test_several_traces_are_each_alone(budgets: Any) -> None:
    traces = [made(40, 1), made(25, 2)]
    few = not isinstance(budgets, str)
    options: dict[str, Any] = {"prompt_len": 3, "measure": "attention-error", "step_recall": few}
    found = replay(traces, POLICIES, budgets, **options)
    check(found)
    assert found.trace.values.tolist() == [one.name for one in traces]
    for i, trace in enumerate(traces):
        for j, k in enumerate(found.tokens.values[i].tolist()):
            here = found.isel(trace=i, budget=j)
            if not k:
                assert (here.kept == -1).all() and here.recall.isnull().all()
                assert not here.held.any() and here.attention_error.isnull().all()
                continue
            alone = replay(trace, POLICIES, k, **options).isel(budget=0)
            for name in ("recall", "kept", "held", "mass"):
                np.testing.assert_array_equal(here[name], alone[name])
            # One pass adds up in another order than a run for one budget.
            np.testing.assert_allclose(here.attention_error, alone.attention_error, rtol=1e-12)
            if few:
                n = trace.n
                np.testing.assert_array_equal(here.evicted_at[..., :n], alone.evicted_at)
                assert (here.evicted_at[..., n:] == -1).all()
                np.testing.assert_array_equal(here.step_recall[..., : n - 3], alone.step_recall)
                assert here.step_recall[..., n - 3 :].isnull().all()
    assert found.n.values.tolist() == [40, 25]
    np.testing.assert_array_equal(found.fraction, found.tokens / found.n)


def test_optima_and_targets_of_several_traces_are_each_alone() -> None:
    traces = [made(30, 1), made(20, 2)]
    found = h2osim.optimum(traces, [0.1, 0.5])
    reached = h2osim.budget_for_recall(replay(traces, POLICIES, "all"), 0.8)
    for i, trace in enumerate(traces):
        alone = h2osim.optimum(trace, [0.1, 0.5])
        for name in ("kept", "bound", "recall"):
            np.testing.assert_array_equal(found[name][i], alone[name])
        np.testing.assert_array_equal(found.price_fixed[i, ..., : trace.n], alone.price_fixed)
        least = h2osim.budget_for_recall(replay(trace, POLICIES, "all"), 0.8)
        for name in ("least_budget", "least_budget_overall"):
            np.testing.assert_array_equal(reached[name][i], least[name])


def test_unlike_traces_are_refused_before_any_work() -> None:
    one = made(20, 1)
    for other in (made(20, 2, layers=3), made(20, 2, heads=6)):
        with pytest.raises(UserError, match="expected the same layers and units"):
            replay([one, other], "h2o", 4)
    assert replay([one, made(20, 2, layers=3)], "h2o", 4, layers=[0]).sizes["trace"] == 2
    with pytest.raises(UserError, match="no trace given"):
        replay([], "h2o", 4)
    with pytest.raises(UserError, match="budget 15: expected 1 to 10"):
        replay([one, made(10, 2)], "h2o", 15)
    with pytest.raises(UserError, match="prompt length 15"):
        h2osim.optimum([one, made(10, 2)], 4, prompt_len=15)


def test_a_folder_of_traces_stands_for_them(corpus: Path, tmp_path: Path) -> None:
    names = [f"text{i}" for i in range(8)]
    assert [one.name for one in open_traces([corpus])] == names
    assert [one.name for one in open_traces([corpus / "text3", "chat"])] == ["text3", "chat"]
    with pytest.raises(UserError, match=r"trace\.json"):
        open_traces([tmp_path])


# --- tables ---------------------------------------------------------------------------------


def rows_of(table: Any) -> list[list[str]]:
    columns = [list(map(str, column.cells)) for column in table.columns]
    return [list(row) for row in zip(*columns, strict=True)]


def test_a_cell_is_the_mean_over_traces_with_its_interval(corpus: Path) -> None:
    found = replay(open_traces([corpus]), POLICIES, [0.1, 0.3], measure="attention-error")
    for measure, geometric in (("recall", False), ("attention_error", True)):
        means = found[measure].mean(("layer", "unit")).transpose("policy", "budget", "trace").values
        online = [True, False, True]
        got = comparison.cells(found[measure], online, measure)
        for i in range(3):
            for b in range(2):
                wanted = mean_interval(means[i, b], geometric=geometric)
                one = got[i][b]
                assert (one.mean, one.low, one.high) == (wanted.mean, wanted.low, wanted.high)
                losses = {str(p): means[p, b] for p in (0, 2)}
                ties = ties_with_best(losses, geometric=geometric, largest=not geometric)
                assert one.best == (None if i == 1 else str(i) in ties)
    table = comparison.comparison_table(found)
    assert "95 % intervals over traces; * cannot be told from the best" in str(table.caption)
    first = rows_of(table)[1]  # after the bound
    assert first[0] == "1" and "*  [" in first[2]


def test_groups_are_means_over_all_else(corpus: Path) -> None:
    traces = open_traces([corpus])
    found = replay(traces, POLICIES, [4, 8], step_recall=True)
    per = {"layer": 2, "unit": 4, "trace": 8, "step": 10}
    for by, count in per.items():
        records = comparison.by_records(found, by, "recall")
        assert len(records) == count * 3 * 2
    layer = comparison.by_records(found, "layer", "recall")[0]
    # a mean of the same numbers, added in another order, here and below
    assert layer["recall"] == pytest.approx(float(found.recall[:, 0, 0, :, 0].mean()), abs=1e-12)
    unit = comparison.by_records(found, "unit", "recall")[6]
    assert unit["unit"] == "layer 0, unit 1"
    assert unit["recall"] == pytest.approx(float(found.recall[:, 0, 0, 1, 0].mean()), abs=1e-12)
    trace = comparison.by_records(found, "trace", "recall")[6]
    alone = replay(traces[1], "h2o", 4).recall
    assert trace["trace"] == "text1"
    assert (trace["low"], trace["high"]) == (float(alone.min()), float(alone.max()))
    steps = comparison.by_records(found, "step", "recall")
    assert steps[0]["step"] == "1–5" and steps[-1]["step"] == "44–47"
    wanted = found.step_recall[:, 0, :, :, 0, :5].mean()
    assert steps[0]["recall"] == pytest.approx(float(wanted), abs=1e-12)


def test_the_gap_closed_is_a_ratio_of_means() -> None:
    """Unit 0 has a gap of .9, unit 1 of .1: the mean of ratios would put b above a."""
    trace = made(20, 1, layers=1)
    found = replay(trace, ["h2o", "tova"], 4)
    a, b = [0.9, 0.9], [0.85, 1.0]
    found["recall"].values[:, 0, :, 0] = [a, b]
    best_, base = h2osim.optimum(trace, 4), replay(trace, "streaming", 4)["recall"].isel(policy=0)
    best_["recall"].values[0, :, 0], base.values[0, :, 0] = [1.0, 1.0], [0.1, 0.9]
    rows = rows_of(goals.regret_table(with_optimum(found, best_, base)))
    assert rows == [["tova", "0.075 (85 %)"], ["h2o", "0.100 (80 %)"]]


def test_what_does_not_compete_has_no_rank_and_a_note_says_why() -> None:
    names = ["h2o:recent=8", "h2o:recent=.5", "snapkv:window=8", "h2o:when=prompt", "tova"]
    found = replay(made(40, 1), [*names, "scissorhands:window=8,recent=2", "topk"], [4, 8, 16])
    table = {row[1]: row for row in rows_of(comparison.comparison_table(found))}
    notes = {name: row[-1] for name, row in table.items()}
    assert notes["h2o:recent=8"] == "recent=8 fills a budget of 4, 8"
    assert notes["h2o:recent=.5"] == notes["scissorhands:window=8,recent=2"] == ""
    assert "holds up to 39 of 4, " in notes["snapkv:window=8"]
    assert "window=8 fills a budget of 4, 8" in notes["snapkv:window=8"]
    assert notes["h2o:when=prompt"] == "holds up to 39 of 4, a prompt of 1 has nothing to evict"
    assert notes["topk"] == "bound" and notes["tova"] == "not as published: share=layer"
    ranks = sorted(row[0] for row in table.values() if row[0] != "–")
    assert {name for name, row in table.items() if row[0] != "–"} == {
        "h2o:recent=.5", "tova", "scissorhands:window=8,recent=2"
    }  # fmt: skip
    assert ranks == ["1", "2", "3"]
    whole = replay(made(40, 1), ["tova", "h2o:recent=4"], [5, 6], share="layer")
    assert [row[:2] for row in rows_of(comparison.comparison_table(whole))] and not any(
        row[-1].startswith("not as") for row in rows_of(comparison.comparison_table(whole))
    )


def test_a_prompt_that_was_cut_is_not_said_to_be_short() -> None:
    found = replay(made(40, 1), "h2o:when=prompt", [6], prompt_len=20)
    assert rows_of(comparison.comparison_table(found))[0][-1] == "holds up to 25 of 6"


# --- the commands ---------------------------------------------------------------------------


def test_compare_and_sweep_take_a_folder(run: Run, corpus: Path, tmp_path: Path) -> None:
    words = ("-p", "h2o", "-p", "tova,streaming", "-b", "10%,30%")
    saved = [tmp_path / "a.nc", tmp_path / "b.csv"]
    plot = tmp_path / "p.svg"
    ended = run("compare", corpus, *words, "-o", saved[0], "-o", saved[1], "--plot", plot)
    assert ended.code == 0 and all(path.stat().st_size for path in (*saved, plot))
    assert "8 traces: 40–48 tokens" in ended.out and "intervals over traces" in " ".join(
        ended.out.split()
    )
    by = run("compare", corpus, *words, "--by", "trace").out
    assert by.count("text") == 16 and "intervals" not in by
    records = json.loads(run("compare", corpus, *words, "--by", "step", "-f", "json").out)
    assert len(records) == 10 * 3 * 2
    target = ("compare", corpus, "-p", "h2o,tova", "--target-recall", ".8")
    assert "share of each trace" in run(*target).out
    assert "layer 1" in run(*target, "--by", "layer").out
    swept = run("sweep", corpus, *words)
    assert "interval" in swept.out and "3 settings × 32 units" in swept.out
    assert run("sweep", corpus, *words, "--by", "trace", "--best", "1").out.count("text") == 16
    fails(run("compare", corpus / "text0", *words, "--by", "trace"), "found one trace, text0")
    fails(run("compare", corpus, "-b", "all", "--by", "step"), "name a few budgets")


def test_one_trace_has_no_interval_and_says_why(run: Run, corpus: Path) -> None:
    for command in ("compare", "sweep"):
        out = " ".join(run(command, corpus / "text0", "-p", "h2o", "-b", "4").out.split())
        assert "one trace, so no interval and no test" in out and "[" not in out


def test_both_does_without_values_and_says_so(run: Run, corpus: Path) -> None:
    ended = run("compare", corpus / "text0", corpus / "text1", "-b", "8", "--measure", "both")
    assert ended.code == 0 and "text0, text1: no values recorded" in ended.err
    assert "attention error" in ended.out and "recall of the attention mass" in ended.out
    fails(run("compare", corpus, "-b", "8", "--measure", "error"), "has no values", "--values")


def test_a_sweep_sums_up_over_traces(corpus: Path) -> None:
    traces = open_traces([corpus])
    summary = best.summarise(sweep(traces, "decay:gamma=.8..1:.1,tova", [0.1, 0.3]))
    one = best.best_records(summary, 1)[0]
    each = [float(replay(t, one["policy"], 0.1).recall.mean()) for t in traces]
    wanted = mean_interval(np.array(each))
    # as above
    assert one["recall"] == pytest.approx(np.mean(each), abs=1e-12)
    assert one["low"] == pytest.approx(wanted.low) and one["high"] == pytest.approx(wanted.high)
    assert one["best"] is True
    rows = best.best_records(summary, 1, by_trace=True)[:8]
    assert [row["recall"] for row in rows] == pytest.approx(each, abs=1e-12)
    lengths = [made(20, 1), made(40, 2)]
    all_ = best.summarise(sweep(lengths, "decay:gamma=.9..1:.1", "all", measure="attention-error"))
    geometric = np.exp(np.log(all_.of_traces[:, 0]).mean(axis=-1))
    # as above, of logarithms
    np.testing.assert_allclose(all_.mean[:, 0], geometric)


def test_notes_of_several_traces_name_the_shortest_prompt() -> None:
    found = replay([made(40, 1), made(30, 2)], "h2o:when=prompt", [4])
    (note,) = (row[-1] for row in rows_of(comparison.comparison_table(found)))
    assert note.endswith("a prompt of 1 has nothing to evict")
