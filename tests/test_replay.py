"""The public replay: what goes in, what comes out, and what holds for every policy."""

from __future__ import annotations

import importlib
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
import xarray
from drawing import configured, traces_for
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples, traces

import h2osim
from h2osim.policies.parameters import resolve_window
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays import execute as executor
from h2osim.replays.execute import engine_here
from h2osim.replays.plan import one_pass_pays, plan_work
from h2osim.replays.replaying import replay
from h2osim.support import machine
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

POLICIES = sorted(all_policies())


def random_trace(layers: int = 2, heads: int = 4, n: int = 40, **more: Any) -> Trace:
    scores = np.tril(np.random.default_rng(n).gamma(0.4, size=(layers, heads, n, n)) + 1e-3)
    return Trace.from_scores(scores / scores.sum(-1, keepdims=True), **more)


SMALL = random_trace(group_size=2, layers=2)


def fails(policies: Any, budgets: Any, *parts: str, trace: Trace = SMALL, **more: Any) -> None:
    """One line that has all of these in it."""
    with pytest.raises(UserError) as error:
        replay(trace, policies, budgets, **more)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# --- what comes out -------------------------------------------------------------------------


def test_dimensions_and_coordinates() -> None:
    found = h2osim.replay(
        SMALL, ["h2o:recent=4", "tova"], [8, 0.1], prompt_len=10, engine="naive", step_recall=True
    )
    assert isinstance(found, xarray.Dataset)
    assert found.recall.dims == ("policy", "layer", "unit", "budget")
    assert found.recall.dtype == np.float64
    assert found.held.dims == found.recall.dims
    assert found.policy.values.tolist() == ["h2o:recent=4", "tova"]
    assert found.layer.values.tolist() == [0, 1]
    assert found.unit.values.tolist() == [0, 1]
    assert found.budget.values.tolist() == [8, 4]
    assert found.fraction.values.tolist() == [0.2, 0.1]
    assert found.step_recall.dims == (*found.recall.dims, "step")
    assert found.step.values.tolist() == list(range(10, 40))
    assert found.evicted_at.dims == (*found.recall.dims, "token")
    assert found.evicted_at.sizes["token"] == 40
    assert {"n": 40, "prompt_len": 10, "share": "group"}.items() <= found.attrs.items()


def test_layers_are_the_models_own_and_can_be_chosen() -> None:
    scores = np.tril(np.ones((3, 1, 4, 4)))
    scores /= scores.sum(-1, keepdims=True)
    trace = Trace.from_scores(scores, layers=[3, 9, 16])
    assert replay(trace, "h2o", 2).layer.values.tolist() == [3, 9, 16]
    # in the trace's order, whatever the order asked for
    assert replay(trace, "h2o", 2, layers=[16, 3]).layer.values.tolist() == [3, 16]
    fails("h2o", 2, "layer 4", "3, 9, 16", trace=trace, layers=[3, 4])
    fails("h2o", 2, "layer (none)", trace=trace, layers=[])


def test_each_way_of_sharing_has_its_units() -> None:
    units = {share: replay(SMALL, "h2o", 4, share=share) for share in ("head", "group", "layer")}
    assert {share: found.sizes["unit"] for share, found in units.items()} == {
        "head": 4,
        "group": 2,
        "layer": 1,
    }
    fails("h2o", 4, "'all'", "head, group, layer", share="all")
    # without a group size every head has a cache of its own
    assert replay(random_trace(), "h2o", 4).sizes["unit"] == 4


def test_only_what_is_asked_for_is_returned() -> None:
    assert set(replay(SMALL, "h2o", 4).data_vars) == {
        "recall", "kept", "mass", "held", "evicted_at"
    }  # fmt: skip
    assert set(replay(SMALL, "h2o", 4, evictions=False).data_vars) == {
        "recall", "kept", "mass", "held"
    }  # fmt: skip
    assert "step_recall" in replay(SMALL, "h2o", 4, step_recall=True)


def test_policies_may_be_text_or_objects_one_or_many() -> None:
    texts = ["h2o", "decay:gamma=0.5", "tova"]
    objects: list[Any] = [
        all_policies()["h2o"],
        all_policies()["decay"].with_params(gamma=0.5),
        parse("tova"),
    ]
    xarray.testing.assert_identical(replay(SMALL, texts, 4), replay(SMALL, objects, 4))
    one = replay(SMALL, texts[1], 4)
    xarray.testing.assert_identical(one, replay(SMALL, texts, 4).isel(policy=[1]))


# --- budgets, prompts, engines --------------------------------------------------------------


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        (7, [7]),
        ([7, 3], [7, 3]),
        (0.1, [4]),
        ([0.1, 4, 4, 0.12], [4]),  # each budget once
        (0.29, [11]),
        (0.001, [1]),  # never below a token
        (1.0, [40]),
        (1, [1]),
        (np.array([5, 6]), [5, 6]),
        (np.array([0.5, 0.25]), [20, 10]),
        ((np.int32(9), np.float32(0.5)), [9, 20]),
    ],
)
def test_budgets_are_tokens_or_fractions(budgets: Any, expected: list[int]) -> None:
    assert replay(SMALL, "recency", budgets).budget.values.tolist() == expected


@pytest.mark.parametrize(
    "budget", [0, -1, 41, 1.5, 64.0, 0.0, -0.1, float("nan"), float("inf"), True, "8", None]
)
def test_other_budgets_are_refused(budget: Any) -> None:
    fails("recency", [budget], "budget")
    fails("recency", [4, budget], "budget")


def test_something_must_be_asked_for() -> None:
    fails("recency", [], "no budget given")
    fails([], 4, "no policy given")
    fails(["h2o", "tova", "h2o"], 4, "each may be given once")
    fails("h20", 4, "did you mean h2o")
    fails("h2o", 4, "unknown engine 'fast'", "naive, numba", engine="fast")
    fails("h2o", "some", "'some'", "'all'")


def test_decoding_starts_where_asked_or_where_the_trace_says() -> None:
    generated = random_trace(prompt_len=25)
    assert replay(SMALL, "h2o", 4).prompt_len == 1
    assert replay(generated, "h2o", 4).prompt_len == 25
    assert replay(generated, "h2o", 4, prompt_len=3).prompt_len == 3
    assert replay(SMALL, "h2o", 4, prompt_len=39).prompt_len == 39
    for wrong in (0, -1, 40, 41, True):
        fails("h2o", 4, "prompt length", "1 to 39", prompt_len=wrong)


def test_where_nothing_is_decoded_there_is_no_recall() -> None:
    alone = Trace.from_scores(np.ones((1, 1)))
    all_prompt = random_trace(prompt_len=40)
    for engine in ("naive", "numba"):
        assert np.isnan(replay(alone, "h2o", 1, engine=engine).recall.values).all()
        found = replay(all_prompt, "recency", 4, engine=engine)
        assert np.isnan(found.recall.values).all()
        # the prompt's end is cut all the same
        assert (found.evicted_at.values[..., :36] == 39).all()
        assert (found.evicted_at.values[..., 36:] == 40).all()


def test_what_a_policy_needs_must_be_in_the_trace() -> None:
    fails("vatp", 4, "v_norm1", "h2osim record", "--values")


def test_broken_rows_are_refused() -> None:
    bits = np.full((1, 1, 6), 0x3C00, np.uint16)  # rows of ones: 1, 2, 3
    fails("h2o", 1, "row 1", trace=Trace.from_packed(bits))


# --- how it runs ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["naive", "numba"])
def test_progress_grows_to_the_total(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[float, float, str]] = []
    monkeypatch.setattr(executor, "_REPORT", 0.0)
    replay(SMALL, ["h2o", "tova"], [2, 9], engine=engine, progress=lambda *c: calls.append(c))
    done = [call[0] for call in calls]
    assert done == sorted(done) and done[0] == 0
    assert len(set(done)) > 4
    assert len({call[1] for call in calls}) == 1
    assert done[-1] == calls[-1][1]
    assert all(call[2] for call in calls)


@pytest.mark.parametrize("engine", ["naive", "numba"])
def test_the_number_of_cores_changes_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 3, 16):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, c=cores: set(range(c)), False)
        found.append(replay(SMALL, ["h2o", "tova", "nacl"], [2, 9, 20], engine=engine))
    xarray.testing.assert_identical(found[0], found[1])
    xarray.testing.assert_identical(found[0], found[2])


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(SMALL, "h2o", [2, 9], progress=stop)


def test_auto_takes_the_gpu_where_there_is_one_and_it_is_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chunk = plan_work([SMALL], [parse(t) for t in ("h2o", "tova:scores=full", "topk")], [2]).part(0)

    def chosen(seconds: float, gpu: bool) -> list[str]:
        monkeypatch.setattr(executor, "_no_cuda", lambda: None if gpu else "no GPU")
        return engine_here("auto", seconds).names(chunk)

    enough = executor.WORTH_A_GPU * machine.cores()
    assert chosen(0.99 * enough, True) == ["numba"] * 3  # a moment's work
    assert chosen(enough, False) == ["numba"] * 3
    assert chosen(enough, True) == ["cuda", "cuda", "numba"]  # topk chooses its keys afresh


def test_replay_and_sweep_choose_by_the_same_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def here(name: str, seconds: float) -> executor.Engine:
        asked.append(seconds)
        return executor.ENGINES["numba"]

    for module in ("h2osim.replays.replaying", "h2osim.sweeps.sweeping"):
        monkeypatch.setattr(importlib.import_module(module), "engine_here", here)
    replay(SMALL, ["h2o", "tova"], [2, 9])
    h2osim.sweep(SMALL, ["h2o", "tova"], [2, 9])
    assert asked[0] == asked[1] > 0


def test_costs_follow_budgets_and_passes() -> None:
    """A run costs more the more it holds; one pass costs what a few runs do."""

    def seconds(text: str, budgets: Any) -> float:
        return float(plan_work([random_trace(1, 1, 400)], [parse(text)], budgets).seconds.sum())

    assert seconds("h2o", [10]) < seconds("h2o", [200]) < seconds("h2o", [10, 200])
    every = [seconds("h2o:recent=2,scores=full", b) for b in ([200, 300, 400], "all")]
    assert every[0] == every[1] < seconds("h2o", [200, 300, 400])


@pytest.mark.parametrize(
    ("budgets", "pays"),
    [([500], False), ([500, 5], False), ([500, 6], True), ([1000], True), ([1] * 8, False)],
)
def test_one_pass_pays_where_the_runs_cost_more(budgets: list[int], pays: bool) -> None:
    """At n = 1000 a run costs 0.12 + 2 k/n (1 - k/2n) passes: 0.87 at 500, 0.132 at 6."""
    assert one_pass_pays(budgets, 1000) is pays


def test_runs_of_one_unit_are_split_over_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """One unit and many budgets: as many threads as there are cores, and the same numbers."""
    trace = random_trace(1, 1, 60)
    budgets = list(range(1, 41))
    expected = replay(trace, "h2o", budgets, engine="naive")
    threads = set()
    from h2osim.engines.direct import DirectRun

    feed = DirectRun.feed

    def slow(self: DirectRun, block: Any) -> None:
        threads.add(threading.get_ident())
        time.sleep(0.002)
        feed(self, block)

    monkeypatch.setattr(DirectRun, "feed", slow)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, False)
    found = replay(trace, "h2o", budgets, engine="numba")
    assert len(threads) == 3
    for name in ("recall", "held", "evicted_at"):
        np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize("store", ["scores", "qk"])
def test_rules_that_look_back_are_fed_with_those_that_do_not(store: str) -> None:
    """The rows repeated at the start of a block reach as far back as the longest lag asks for."""
    rng = np.random.default_rng(3)
    n = 700  # more than one block of rows
    if store == "qk":
        q, k = (rng.normal(size=(1, 1, n, 4)) for _ in range(2))
        trace = Trace.from_qk(q, k, scale=0.5)
    else:
        trace = random_trace(1, 1, n)
    texts = ["scissorhands:window=3", "scissorhands:window=40", "tova", "h2o:recent=2,scores=full"]
    together = replay(trace, texts, [20, 60], engine="numba")
    for text in texts:
        alone = replay(trace, text, [20, 60], engine="numba")
        for name in ("recall", "held", "evicted_at"):
            np.testing.assert_array_equal(together[name].sel(policy=[text]), alone[name])


def test_tasks_stop_once_nobody_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C does not wait for the rest of what the threads were given."""
    rng = np.random.default_rng(3)
    q, k = (rng.normal(size=(1, 1, 40, 4)) for _ in range(2))
    trace = Trace.from_qk(q, k, scale=0.5)
    monkeypatch.setattr(executor, "_REPORT", 0.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)  # two threads
    calls = 0

    def stop(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:  # the first comes before the threads begin
            raise KeyboardInterrupt
        time.sleep(0.01)

    budgets = list(range(1, 41))  # many replays in a task: they share the making of rows
    with pytest.raises(KeyboardInterrupt):
        replay(trace, ["h2o", "tova", "h2o-mean"], budgets, engine="numba", progress=stop)
    assert 2 <= calls < 20


def test_the_naive_engine_stops_in_the_midst_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "_REPORT", 0.0)
    done: list[float] = []

    def stop(now: float, total: float, word: str) -> None:
        done.append(now / total)
        if now > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(SMALL, "h2o", 9, layers=[0], share="layer", engine="naive", progress=stop)
    assert 0 < done[1] < 0.1  # after a row of the only run


def test_every_engine_and_a_saved_trace_give_the_same(tmp_path: Any) -> None:
    expected = replay(SMALL, ["h2o", "snapkv:window=4"], [4, 0.5], prompt_len=12, engine="naive")
    saved = h2osim.open_trace(SMALL.save(tmp_path / "scores"))
    for engine in ("auto", "numba", "naive"):
        found = replay(saved, ["h2o", "snapkv:window=4"], [4, 0.5], prompt_len=12, engine=engine)
        for name in expected.data_vars:
            np.testing.assert_array_equal(found[name], expected[name])


# --- what holds for every policy ------------------------------------------------------------


@given(traces(min_n=2), st.integers(1, 24), st.sampled_from(["head", "group", "layer"]))
def test_full_loses_nothing(trace: Trace, p: int, share: str) -> None:
    p = min(p, trace.n - 1)
    found = replay(trace, "full", 1, prompt_len=p, share=share, engine="naive", step_recall=True)
    assert (found.recall == 1).all()
    assert (found.step_recall == 1).all()
    assert (found.evicted_at == trace.n).all()
    assert (found.held == trace.n - 1).all()


@pytest.mark.parametrize("name", POLICIES)
def test_recall_is_the_mass_of_the_tokens_that_are_not_evicted(name: str) -> None:
    """And with it: what is gone stays gone, at most k are held, no step beats its best tokens."""
    policy = all_policies()[name]

    @examples(15)
    @given(traces_for(policy, min_n=2), configured(policy), st.data())
    def check(trace: Trace, one: Any, data: st.DataObject) -> None:
        k = data.draw(st.integers(1, trace.n), "budget")
        p = data.draw(st.just(1) | st.integers(1, trace.n - 1), "prompt_len")
        share = data.draw(st.sampled_from(["head", "group", "layer"]), "share")
        found = replay(
            trace, one, k, prompt_len=p, share=share, engine="naive", step_recall=True
        ).isel(policy=0, budget=0)
        for unit in trace.units(share):
            got = found.sel(layer=unit.layer, unit=unit.index)
            left, held = got.evicted_at.values, int(got.held)
            assert ((np.arange(trace.n) <= left) & (left <= trace.n)).all()
            assert (left >= min(p - 1, trace.n)).all()  # a prompt is kept whole to its end
            kept, most = [], 0
            for t in range(p, trace.n):
                row = unit.row(t)
                attended = np.flatnonzero(left[:t] >= t)
                most = max(most, len(attended))
                kept.append(int(row[attended].sum() + row[t]))
                best = np.sort(row[:t])[::-1][:held].sum() + row[t]
                assert round(float(got.step_recall[t - p]) * int(row.sum())) <= best
                if one.within_budget() and not policy.readmits:
                    stays = np.count_nonzero(left[: t + 1] > t)
                    assert stays <= k
            mass = np.array([int(unit.row(t).sum()) for t in range(p, trace.n)])
            if one.within_budget():
                assert held <= k
            if policy.visible or policy.readmits:
                continue  # attends less, or other tokens, than it holds
            assert held == most
            np.testing.assert_array_equal(got.step_recall, np.array(kept) / mass)
            assert float(got.recall) == sum(kept) / int(mass.sum())

    check()


PROTECTING = [
    name
    for name, policy in sorted(all_policies().items())
    if {param.name for param in policy.params} & {"sinks", "recent"}
]


@pytest.mark.parametrize("name", PROTECTING)
def test_sinks_and_the_recent_window_are_never_evicted(name: str) -> None:
    """Where the budget has room for them; a window is a number of the newest tokens."""
    policy = all_policies()[name]
    params = {param.name for param in policy.params}
    chosen: dict[str, Any] = {"sinks": 2, "recent": 3, "window": 3}
    # RoCo protects as many as `robust` has room for; Scissorhands cuts to half of the budget
    chosen |= {"robust": 0.5}
    one = policy.with_params(**{name: chosen[name] for name in chosen if name in params})

    @examples(15)
    @given(traces_for(policy, min_n=8), st.integers(12, 16), st.integers(1, 20))
    def check(trace: Trace, k: int, p: int) -> None:
        k, p = min(k, trace.n), min(p, trace.n - 1)
        assume(k >= 12)
        left = replay(trace, one, k, prompt_len=p, engine="naive").evicted_at.values
        if "sinks" in params:
            assert (left[..., :2] == trace.n).all()
        if "recent" in params:
            alive = left - np.arange(trace.n)
            assert ((alive >= 3) | (left == trace.n)).all()

    check()


def test_streaming_keeps_its_sinks_for_ever() -> None:
    """A cache stored in another order than the text's must not lose them after some steps."""
    trace = random_trace(layers=1, heads=1, n=300)
    for p in (1, 100):
        found = replay(trace, "streaming:sinks=4", 16, prompt_len=p).isel(policy=0, budget=0)
        left = found.evicted_at.values[0, 0]
        assert (left[:4] == 300).all()
        assert (left[-12:] == 300).all()
        np.testing.assert_array_equal(left[4:-12], np.maximum(np.arange(4, 288) + 12, p - 1))


@pytest.mark.parametrize("text", ["tova", "h2o:recent=0", "decay:recent=0", "h2o-mean:recent=0"])
def test_among_equals_the_oldest_goes(text: str) -> None:
    """All attention is on the first token, the others tie: a window beside it."""
    n = 24
    rows = np.zeros((n, n))
    rows[:, 0] = 1
    for engine in ("naive", "numba"):
        left = replay(Trace.from_scores(rows), text, 5, engine=engine).evicted_at.values.ravel()
        assert left.tolist() == [n, *(min(j + 4, n) for j in range(1, n))]


@pytest.mark.parametrize("name", POLICIES)
def test_a_replay_is_the_same_every_time(name: str) -> None:
    trace = random_trace(layers=1, heads=2, n=30, group_size=2, v_norm1=np.ones((1, 1, 30)))
    first, second = (replay(trace, name, [3, 8], prompt_len=10, engine="naive") for _ in range(2))
    xarray.testing.assert_identical(first, second)


def test_a_share_of_the_budget_is_the_same_as_its_tokens() -> None:
    for k in (5, 7, 10):
        recent = resolve_window(0.3, k)
        both = replay(SMALL, ["h2o:recent=0.3", f"h2o:recent={recent}"], k, engine="naive")
        assert (both.evicted_at[0] == both.evicted_at[1]).all()
