"""`verify`: every statement held against traces and replays, and the counterexample it writes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import configured, traces_for
from hypothesis import given
from hypothesis import strategies as st
from statements.simulating import simulate
from strategies import examples, qk_traces, traces

from h2osim.guarantees import GUARANTEES, Verdict
from h2osim.guarantees.findings import against, outside_setting
from h2osim.guarantees.history import Rows, Schedule, follow
from h2osim.guarantees.verify import (
    OFFLINE,
    POLICIES,
    Line,
    counts,
    over_time,
    verify,
    violations,
    write_counterexample,
)
from h2osim.optima.solving import optimum
from h2osim.policies.declaration import Configured
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.traces.catalogue import open_trace
from h2osim.traces.synthetic import synth
from h2osim.traces.trace import Trace

OTHERS = ("h2o:recent=3,scores=full", "h2o:recent=0,sinks=1", "tova", "streaming", "decay", "topk")


@examples(12)
@given(traces(min_n=2, max_n=14), st.data())
def test_nothing_proved_is_violated(trace: Trace, data: st.DataObject) -> None:
    budgets = sorted(data.draw(st.sets(st.integers(1, trace.n), min_size=1, max_size=3)))
    lines = verify(trace, [*POLICIES, *OTHERS], budgets, engine="naive")
    assert violations(lines) == []
    assert {line.result.guarantee for line in lines} <= set(GUARANTEES)
    plain = [line for line in lines if line.policy == POLICIES[0]]
    assert all(
        line.result.verdict in (Verdict.HOLDS, Verdict.VACUOUS)
        for line in plain
        if line.result.guarantee in ("T2", "T4", "T7")
    )
    offline = [line.result for line in lines if line.policy == OFFLINE]
    assert all(result.numbers["gap"] == 0 for result in offline if result.guarantee == "T6c")
    cached = [line for line in lines if line.policy == POLICIES[1]]
    assert all(
        line.result.verdict in (Verdict.HOLDS, Verdict.VACUOUS)
        for line in cached
        if line.result.guarantee == "T3"
    )


def test_a_policy_object_that_no_registry_knows() -> None:
    own = dataclasses.replace(all_policies()["h2o"], name="mine")
    trace = synth("powerlaw", 24, seed=3)
    lines = verify(trace, [own, own.with_params(recent=0)], [4, 8], engine="naive")
    assert list(dict.fromkeys(line.policy for line in lines)) == ["mine", "mine:recent=0", OFFLINE]
    first = next(line.result for line in lines if line.result.guarantee == "T1")
    assert (first.verdict, first.note) == (Verdict.FAILS, "mine ranks otherwise")
    series = over_time(trace, own, 8, engine="naive", proved=True)
    assert "ratio" in series and "t2" not in series
    alone = verify(trace, own, 4, engine="naive", offline=False)
    assert {line.policy for line in alone} == {"mine"}


@pytest.mark.parametrize("name", sorted(all_policies()))
def test_no_policy_of_the_library_violates_anything(name: str) -> None:
    """Rules that hold more than the budget, look ahead or re-admit are outside, never wrong."""
    policy = all_policies()[name]

    @examples(6)
    @given(traces_for(policy, min_n=2, max_n=14), configured(policy), st.data())
    def check(trace: Trace, one: Configured, data: st.DataObject) -> None:
        p = data.draw(st.integers(1, trace.n - 1))
        budgets = sorted(data.draw(st.sets(st.integers(1, trace.n), min_size=1, max_size=2)))
        lines = verify(trace, one.text, budgets, prompt_len=p, engine="naive")
        assert violations(lines) == []
        for line in lines:
            if line.result.verdict in (Verdict.HOLDS, Verdict.VACUOUS):
                slack = line.slack
                # CLOSE of guarantees/results.py, times the norm of values in T5
                assert slack is None or slack >= -1e-8, line

    check()


def test_runs_that_hold_more_than_the_budget_are_outside() -> None:
    policies = ["snapkv:window=8", "full"]
    lines = verify(open_trace("code"), policies, 0.1, prompt_len=300, layers=[16])
    runs = [line for line in lines if line.policy != OFFLINE]
    for name in ("paper-theorem", "T4", "T6"):
        found = [x.result for x in runs if x.result.guarantee == name]
        assert {(x.verdict, x.note) for x in found} == {
            (Verdict.FAILS, "holds more than the budget")
        }
    assert violations(lines) == []
    assert any(x.result.numbers["ratio"] > 1 for x in runs if x.result.guarantee == "T6")


def test_a_run_is_held_to_the_bound_of_the_optimum() -> None:
    """T6: exactly the bound is fine, one unit more is a violation."""
    trace = synth("drift", 40)
    unit = trace.units()[0]
    best = optimum(trace, [6]).sel(layer=unit.layer, unit=unit.index, budget=6)
    run = Schedule(best.evicted_at.values.astype(np.int64), 6, 1)
    history = follow(Rows.of_unit(unit), run)
    assert against(best, history).verdict == Verdict.HOLDS
    assert against(best, history).numbers["ratio"] == 1
    assert against(best.assign(bound=best.bound - 1), history).verdict == Verdict.VIOLATED


def test_counts_and_slack() -> None:
    lines = verify(synth("powerlaw", 40), POLICIES[0], [4, 8])
    found = counts(lines)
    assert sum(found.values()) == len(lines)
    assert list(found) == ["hold", "do not apply", "violated"]
    assert found["violated"] == 0 < found["hold"]
    for line in lines:
        numbers = line.result.numbers
        if line.result.guarantee == "T2":
            assert line.slack == numbers["ratio"] - numbers["bound"] >= 0
        if line.result.guarantee == "T1":
            assert line.slack is None


def test_where_nothing_is_decoded_no_output_is_compared() -> None:
    scores = np.tril(np.ones((1, 1, 2, 2))) / np.array([1, 2])[:, None]
    trace = Trace.from_scores(scores, prompt_len=2, v=np.ones((1, 1, 2, 1)))
    found = [line.result for line in verify(trace, "h2o", 1) if line.result.guarantee == "T5"]
    assert [one.verdict for one in found] == [Verdict.VACUOUS]


@examples(15)
@given(qk_traces(min_n=2, max_n=12, values=True), st.integers(1, 6))
def test_output_errors_where_values_are_recorded(trace: Trace, k: int) -> None:
    lines = verify(trace, "h2o", min(k, trace.n), engine="naive")
    found = [line.result for line in lines if line.result.guarantee == "T5"]
    assert len(found) == len(trace.units())
    for result in found:
        assert result.verdict in (Verdict.HOLDS, Verdict.VACUOUS)
        if result.numbers:
            # CLOSE times the norm of values, a few units; a quotient of small numbers is looser
            assert result.numbers["error"] <= result.numbers["bound"] + 1e-8
            assert 0 <= result.numbers["used"] <= 1 + 1e-5


@examples(15)
@given(traces(min_n=2, max_n=14, max_layers=1), st.integers(1, 8))
def test_replay_and_the_independent_simulation_agree(trace: Trace, k: int) -> None:
    k = min(k, trace.n)
    p = trace.prompt_len or 1
    if p >= trace.n:
        return
    found = replay(trace, ["h2o:recent=0,scores=full"], k, engine="naive")
    for i, unit in enumerate(trace.units()):
        run = simulate(Rows.of_unit(unit), k, p)
        assert found.evicted_at.values[0, 0, i, 0].tolist() == run.evicted_at.tolist()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("h2o:recent=0,scores=full", ""),
        ("h2o:recent=0", "cached scores"),
        ("h2o:recent=0.5,scores=full", "newest 5 protected"),
        ("h2o:recent=0,sinks=2", "2 sinks protected"),
        ("h2o:recent=0,when=prompt", "does not evict in every step"),
        ("h2o:recent=0,heads=max", "ranks by the largest head"),
        ("tova", "tova ranks otherwise"),
    ],
)
def test_outside_setting(text: str, reason: str) -> None:
    assert outside_setting(parse(text), 10) == reason


def test_lines_are_ordered_and_flat() -> None:
    trace = synth("powerlaw", 40, heads=2, layers=2)
    lines = verify(trace, POLICIES[:2], [0.1, 0.3])
    order = [*POLICIES[:2], OFFLINE]
    key = [(order.index(x.policy), x.layer, x.unit) for x in lines]
    assert key == sorted(key)
    names = [x.result.guarantee for x in lines if x.policy == POLICIES[0] and x.layer == 0]
    each = ["paper-theorem", "T1", "T2", "T4", "M7", "T6"]
    assert names == [*each, *each, "T7"] * 2
    names = [x.result.guarantee for x in lines if x.policy == OFFLINE and x.layer == 0]
    assert names == ["T6", "T6c", "T6", "T6c", "T6b"] * 2
    for line in lines:
        record = line.record()
        assert all(isinstance(v, str | int | float | None) for v in record.values())
        assert (record["budget"] is None) == (record["guarantee"] in ("T7", "T6b"))


def test_the_trap_and_the_theorem() -> None:
    lines = verify(synth("trap", 50, d=1e-3), POLICIES[0], 1)
    by_name = {line.result.guarantee: line.result for line in lines}
    theorem = by_name["paper-theorem"]
    # three digits, and entries rounded to float16
    assert theorem.numbers["ratio"] == pytest.approx(0.0336, rel=1e-2)
    assert theorem.verdict == Verdict.FAILS
    assert theorem.numbers["alpha"] > 1
    assert theorem.numbers["theta"] == 0
    assert by_name["T1"].verdict == Verdict.FAILS
    # a product of rounded ratios that telescopes
    assert by_name["T4"].numbers["bound"] == pytest.approx(theorem.numbers["ratio"])


def test_the_optimum_is_held_to_its_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schedule that keeps less than claimed, or prices that do not prove it, are found out."""
    trace, real = synth("drift", 40), optimum

    def boasting(*args: Any, **how: Any) -> Any:
        return real(*args, **how).assign(kept=lambda x: x.kept + 1)

    def careless(*args: Any, **how: Any) -> Any:
        return real(*args, **how).assign(price_fixed=lambda x: x.price_fixed * 0)

    monkeypatch.setattr("h2osim.guarantees.verify.optimum", boasting)
    found = {x.result.guarantee for x in violations(verify(trace, POLICIES[0], [4, 8]))}
    assert found == {"T6"}
    monkeypatch.setattr("h2osim.guarantees.verify.optimum", careless)
    lines = verify(trace, POLICIES[0], [4, 8])
    assert violations(lines) == []
    assert all(x.result.numbers["gap"] > 0 for x in lines if x.result.guarantee == "T6c")


def test_without_the_optimum() -> None:
    lines = verify(synth("drift", 40), POLICIES[0], 4, offline=False)
    assert not {"T6", "T6b", "T6c"} & {x.result.guarantee for x in lines}


def test_deployed_h2o_is_not_covered() -> None:
    lines = verify(synth("powerlaw", 60), "h2o", 0.2)
    verdicts = {x.result.guarantee: x.result.verdict for x in lines}
    for name in ("paper-theorem", "T1", "T2", "T3", "T7"):
        assert verdicts[name] == Verdict.FAILS


def test_over_time_is_the_history() -> None:
    trace = synth("drift", 80, heads=2)
    for policy in (POLICIES[0], "h2o"):
        series = over_time(trace, policy, 8, unit=1)
        unit = trace.units()[1]
        gone = replay(trace, policy, 8).evicted_at.values[0, 0, 1, 0]
        history = follow(Rows.of_unit(unit), Schedule(gone, 8, 1))
        assert {len(x) for x in series.values()} == {history.steps}
        # the same quotients as arrays and as exact fractions; products in another order
        assert np.allclose(series["ratio"], history.value / history.opt)
        lines = verify(trace, policy, 8)
        at = {x.result.guarantee: x.result.numbers for x in lines if x.unit == 1}
        assert series["certificate"][-1] == pytest.approx(at["T4"]["bound"])
        assert series["clipped"][-1] == pytest.approx(at["T4"]["clipped"])
        assert series["t2"][-1] == pytest.approx(at["T2"]["bound"])
        assert series["alpha"].max() == pytest.approx(at["paper-theorem"]["alpha"])
    limits = {"t2", "t3", "sharp", "certificate", "clipped"}
    drawn = [limits & set(over_time(trace, x, 8, proved=True)) for x in POLICIES]
    assert drawn == [{"t2", "certificate", "clipped"}, {"t3", "sharp"}, set()]
    with pytest.raises(UserError, match="no unit 7"):
        over_time(trace, "h2o", 8, unit=7)


def test_a_violation_is_written_as_a_trace(tmp_path: Path) -> None:
    trace = synth("powerlaw", 30, heads=4, group_size=2, layers=2)
    lines = verify(trace, POLICIES[0], 5)
    good = next(x for x in lines if (x.layer, x.unit, x.result.guarantee) == (1, 1, "T2"))
    bad = dataclasses.replace(
        good, result=dataclasses.replace(good.result, verdict=Verdict.VIOLATED)
    )
    assert violations([good, bad]) == [bad]
    path = write_counterexample(trace, bad, tmp_path / "case")
    again = open_trace(path)
    again.verify()
    assert (again.n, again.layers, len(again.units())) == (30, (1,), 1)
    original = next(u for u in trace.units() if (u.layer, u.index) == (1, 1))
    for t in range(30):
        assert np.array_equal(again.units()[0].head_rows(t), original.head_rows(t))
    assert again.manifest["provenance"]["guarantee"] == "T2"
    repeated = verify(again, POLICIES[0], 5)
    assert next(x for x in repeated if x.result.guarantee == "T2").result == good.result
    with pytest.raises(UserError):
        write_counterexample(trace, bad, tmp_path / "case")
    lost: Any = dataclasses.replace(bad, unit=9)
    with pytest.raises(UserError, match="no unit 9"):
        write_counterexample(trace, lost, tmp_path / "other")


def test_mistakes_are_the_users() -> None:
    trace = synth("powerlaw", 20)
    with pytest.raises(UserError, match="unknown policy"):
        verify(trace, "h3o", 5)
    with pytest.raises(UserError, match="budget"):
        verify(trace, "h2o", 50)
    assert isinstance(verify(trace, "h2o", 5)[0], Line)


def test_the_greedy_ratio_of_the_coverage_instance_is_that_of_c3() -> None:
    trace = synth("coverage", 9, k=4, copies=0)
    policy = "greedy:objective=coverage,scores=full"
    found = [line.result for line in verify(trace, policy, 4) if line.result.guarantee == "T9"]
    assert found[0].numbers["ratio"] == 4 / 7  # k / (2k - 1)
    tried = verify(synth("powerlaw", 12, heads=2, group_size=2), policy, 4)
    assert all(0 < line.result.numbers["ratio"] <= 1 for line in tried if "T9" in str(line.result))
    # after a prompt of more than k + 1 tokens 1/k is not promised (proof M6)
    prompted = {
        p: [x.result for x in verify(trace, policy, 4, prompt_len=p) if x.result.guarantee == "T9"]
        for p in (1, 5, 8)
    }
    bounds = {p: found[0].numbers["bound"] for p, found in prompted.items()}
    assert bounds == {1: 1 / 4, 5: 1 / 4, 8: 1 / 5}
    threshold = verify(trace, "greedy:objective=coverage,swap=threshold,scores=full", 4)
    assert [x.result.numbers["bound"] for x in threshold if x.result.guarantee == "M1"] == [0.25]
    large = verify(synth("powerlaw", 60), "greedy", 20)
    assert any("too large" in line.result.note for line in large)
