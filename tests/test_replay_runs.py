"""How a replay runs: engines and their costs, cores, progress, and how it stops."""

from __future__ import annotations

import importlib
import os
import threading
import time
from typing import Any

import numpy as np
import pytest
import xarray
from trace_cases import random_trace

import h2osim
from h2osim.policies.text import parse
from h2osim.replays import execute as executor
from h2osim.replays.execute import engine_here
from h2osim.replays.plan import one_pass_pays, plan_work
from h2osim.replays.replaying import replay
from h2osim.support import machine
from h2osim.traces.trace import Trace

SMALL = random_trace(40, heads=4, group_size=2)


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
        return float(plan_work([random_trace(400, 1, 1)], [parse(text)], budgets).seconds.sum())

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
    trace = random_trace(60, 1, 1)
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
        trace = random_trace(n, 1, 1)
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
