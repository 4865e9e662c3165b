"""Sweeps: the numbers of each setting, how the work is cut into chunks, and clusters."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, traces
from sweep_cases import GRID, MANY, SMALL, files, finished, log, same
from trace_cases import random_trace

import h2osim
from h2osim.replays.execute import ENGINES, compute
from h2osim.replays.plan import plan_work
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.sweeps.grid import expand
from h2osim.sweeps.sweeping import sweep
from h2osim.traces.trace import Trace


def flat(found: xarray.Dataset, name: str) -> np.ndarray:
    """A replay's array with its layers and units one after the other."""
    if name == "mass":
        return found[name].values.ravel()
    values = found[name].transpose("policy", "layer", "unit", "budget").values
    return values.reshape(values.shape[0], -1, values.shape[3])


TEXTS = st.lists(
    st.sampled_from(
        [
            "h2o:recent=2,scores=full",
            "h2o:recent=0.5",
            "decay:gamma=0.5,recent=0,scores=full",
            "decay:gamma=0.9,recent=3,scores=full",
            "snapkv:window=3,kernel=3",
            "tova",
            "topk",
        ]
    ),
    min_size=1,
    max_size=5,
    unique=True,
)


BUDGETS = st.just("all") | st.lists(
    st.integers(1, 2) | st.sampled_from([0.05, 0.3, 0.5, 0.9]), min_size=1, max_size=4, unique=True
)


@examples(25)
@given(
    traces(min_n=2, max_n=14),
    TEXTS,
    BUDGETS,
    st.tuples(st.integers(1, 4), st.integers(1, 3)),
    st.sampled_from(["head", "group", "layer"]),
    st.sampled_from(["numba", "naive"]),
)
def test_a_sweep_is_the_replay_of_each_configuration(
    trace: Trace, texts: list[str], budgets: Any, chunk: tuple[int, int], share: str, engine: str
) -> None:
    expected = replay(trace, texts, budgets, share=share, engine="naive", evictions=False)
    found = sweep(trace, texts, budgets, share=share, engine=engine, chunk=chunk)
    assert found.policy.values.tolist() == texts
    assert found.budget.values.tolist() == expected.budget.values.tolist()
    for name in ("recall", "kept", "held", "mass"):
        np.testing.assert_array_equal(found[name].values, flat(expected, name))
        assert found[name].dtype == expected[name].dtype


def test_rows_of_queries_and_keys_and_rules_that_look_back(tmp_path: Path) -> None:
    """Rows made in blocks, shared by runs of which one asks for older rows."""
    rng = np.random.default_rng(5)
    trace = Trace.from_qk(
        rng.standard_normal((1, 2, 40, 4)), rng.standard_normal((1, 1, 40, 4)), scale=0.5
    )
    texts = ["scissorhands:window=4", "h2o:recent=2,scores=full", "tova"]
    found = sweep(trace, texts, [4, 9], engine="numba")
    expected = replay(trace, texts, [4, 9], engine="naive", evictions=False)
    for name in ("recall", "kept", "held", "mass"):
        np.testing.assert_array_equal(found[name].values, flat(expected, name))


def test_many_runs_are_fed_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from h2osim.replays import tasks as module

    expected = sweep(SMALL, GRID, "all")
    monkeypatch.setattr(module, "_RUNS_BYTES", 5000)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 64)
    same(sweep(SMALL, GRID, "all"), expected)


def test_coordinates_name_the_settings_and_the_units() -> None:
    found = h2osim.sweep([SMALL, random_trace(12, 1, 4, 1, group_size=2)], GRID + ",full", [4])
    assert dict(found.sizes) == {"policy": 11, "unit": 6, "budget": 1}
    assert found.rule.values.tolist() == ["h2o"] * 6 + ["decay"] * 3 + ["tova", "full"]
    assert found.scores.values.tolist()[:3] == ["full", "cached", "full"]
    assert found.scores.values.tolist()[-2:] == ["cached", ""]
    np.testing.assert_array_equal(found.gamma, [np.nan] * 6 + [0.5, 0.75, 1.0] + [np.nan] * 2)
    assert found.trace.values.tolist() == ["t0"] * 4 + ["t1"] * 2
    assert found.layer.values.tolist() == [0, 0, 1, 1, 0, 0]
    assert found["index"].values.tolist() == [0, 1, 0, 1, 0, 1]
    assert found.heads.values.tolist() == [1] * 4 + [2] * 2
    assert found.n.values.tolist() == [24] * 4 + [12] * 2
    some = found.where(found.trace == "t1", drop=True)
    one = replay(random_trace(12, 1, 4, 1, group_size=2), expand(GRID), [4])
    np.testing.assert_array_equal(some.recall[:10], flat(one, "recall"))


def test_traces_of_several_lengths() -> None:
    long, short = random_trace(30, 1, 1, 1), random_trace(12, 1, 2, 2)
    every = sweep([long, short], "h2o:recent=2,scores=full,tova", "all")
    assert every.budget.values.tolist() == list(range(1, 31))
    assert np.isnan(every.recall[:, 1:, 12:]).all() and not np.isnan(every.recall[:, 0]).any()
    for t, units in ((long, slice(0, 1)), (short, slice(1, 3))):
        expected = replay(t, ["h2o:recent=2,scores=full", "tova"], "all")
        np.testing.assert_array_equal(every.recall[:, units, : t.n], flat(expected, "recall"))
    shares = sweep([long, short], "tova", [0.5, 0.1, 5])
    assert shares.budget.values.tolist() == [0.5, 0.1, 5.0]
    assert shares.tokens.values.tolist() == [[15, 3, 5], [6, 1, 5], [6, 1, 5]]
    for t, units in ((long, slice(0, 1)), (short, slice(1, 3))):
        expected = replay(t, "tova", [0.5, 0.1, 5])
        np.testing.assert_array_equal(shares.recall[:, units], flat(expected, "recall"))
    # budgets that come to the same tokens in one trace keep a column each
    close = sweep([long, short], "tova", [0.5, 0.51])
    np.testing.assert_array_equal(close.recall[0, 1:, 0], close.recall[0, 1:, 1])
    with pytest.raises(UserError, match=r"1 and 1\.0"):
        sweep([long, short], "tova", [1, 1.0])
    with pytest.raises(UserError, match="1 to 12 tokens"):
        sweep([long, short], "tova", [20])


def test_prompts_and_layers() -> None:
    found = sweep([SMALL, SMALL], "h2o:recent=2,tova", [4], prompt_len=9, layers=[1])
    assert found.layer.values.tolist() == [1] * 4
    assert found.trace.values.tolist() == ["t0", "t0", "t0#2", "t0#2"]
    expected = replay(SMALL, ["h2o:recent=2", "tova"], [4], prompt_len=9, layers=[1])
    np.testing.assert_array_equal(found.recall[:, :2], flat(expected, "recall"))
    assert np.isnan(sweep(Trace.from_scores(np.ones((1, 1))), "tova", 1).recall).all()


def test_progress_grows_to_the_total() -> None:
    calls: list[tuple[float, float, str]] = []
    plans: list[int] = []
    sweep(
        SMALL, GRID, "all", progress=lambda *c: calls.append(c), chunk=(2, 2),
        planned=lambda plan, left: plans.append(left),
    )  # fmt: skip
    done = [call[0] for call in calls]
    assert plans == [10]
    assert done == sorted(done) and done[0] == 0
    assert done[-1] == calls[-1][1]


def test_chunks_cover_everything_once_and_share_the_work() -> None:
    engine = ENGINES["numba"]
    for text in (GRID, "h2o:recent=0..128", "tova"):
        for lanes in (1, 2, 64):
            plan = engine.cut(plan_work([SMALL], expand(text), "all"), lanes)
            hits = np.zeros(plan.shape[:2], int)
            for i in range(plan.chunks):
                hits[plan.slices(i)] += 1
            assert (hits == 1).all()
            assert plan.chunk[0] <= engine.together


def test_chunks_of_a_gpu_are_few_and_bounded() -> None:
    engine = ENGINES["cuda"]
    many = expand("h2o:recent=0..128")
    # what is done in a moment is one chunk, with all of a unit's configurations
    assert engine.cut(plan_work([SMALL], many, "all"), 2).chunks == 1
    # long traces at several budgets: as many as there is memory for
    q = np.zeros((1, 1, 20_000, 2), np.float32)
    long = Trace.from_qk(q, q, scale=1.0)
    plan = engine.cut(plan_work([long], many, [0.05, 0.1, 0.2, 0.4]), 2)
    assert 1 < plan.chunk[0] < 129
    assert plan.chunk[0] * 4 * 20_000 * 96 <= 2**30


def test_the_cuda_engine_computes_the_same_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels compiled for the CPU; what it refuses (topk) goes to numba."""
    shim = pytest.importorskip("cuda_shim", reason="the kernels' stand-in on the CPU is missing")
    if shim.COMPILER is None:
        pytest.skip("no C++ compiler to stand in for a GPU")
    from h2osim import cuda

    monkeypatch.setattr(cuda, "devices", lambda: (shim.Shim(),))
    short = random_trace(9, 1, 2, 3, group_size=2)
    text = "h2o:recent=2,scores=full|cached,decay:gamma=0.5|1,recent=0,scores=full,topk"
    configured = expand(text)
    for budgets in ("all", [3, 5]):
        plan = plan_work([SMALL, short], configured, budgets)
        assert plan.chunks == 1
        found = compute(plan.part(0), ENGINES["cuda"])
        expected = compute(plan.part(0), ENGINES["numba"])
        for name in ("kept", "held", "mass"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_without_a_gpu_cuda_says_what_is_missing() -> None:
    from h2osim import cuda

    if cuda.available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="cuda"):
        sweep(SMALL, "tova", 4, engine="cuda")
    with pytest.raises(UserError, match="auto, naive, numba, cuda"):
        sweep(SMALL, "tova", 4, engine="fast")


def test_workers_of_a_machine_take_gpus_in_turn() -> None:
    from h2osim.sweeps.cluster import lane_of, turns

    workers = ["tcp://10.0.0.2:41", "tcp://10.0.0.1:9", "tls://10.0.0.2:7", "tcp://10.0.0.2:40"]
    found = turns(workers)
    assert found["tcp://10.0.0.1:9"] == (0, 1)
    assert sorted(found[one] for one in workers if "0.2" in one) == [(0, 3), (1, 3), (2, 3)]
    # a worker alone with two GPUs uses both, one a thread; the threads of two workers one each
    with ThreadPoolExecutor(4) as pool:
        barrier = threading.Barrier(4)

        def lane(turn: tuple[int, int]) -> int:
            barrier.wait()
            return lane_of(*turn)

        alone = list(pool.map(lane, [(0, 1)] * 4))
        assert sorted(one % 2 for one in alone) == [0, 0, 1, 1]
        assert {one % 2 for one in pool.map(lane, [(1, 2)] * 4)} == {1}


@pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None,
    reason="needs Dask: pip install 'h2osim[dask]'",
)
class TestDask:
    @pytest.fixture(scope="class")
    @classmethod
    def cluster(cls) -> Iterator[Any]:
        from distributed import LocalCluster

        with LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None,
            silence_logs=50,
        ) as cluster:  # fmt: skip
            yield cluster

    @pytest.mark.nightly
    def test_a_worker_killed_half_way_changes_nothing(
        self, cluster: Any, small: Path, tmp_path: Path
    ) -> None:
        expected = sweep(small, MANY, [3, 5, 9], tmp_path / "here.zarr", chunk=(2, 1))
        path = tmp_path / "dask.zarr"
        killed: list[set[int]] = []

        def kill(done: float, total: float, what: str) -> None:
            if done > total / 2 and not killed:
                os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
                killed.append(finished(path))

        found = sweep(
            small, MANY, [3, 5, 9], path, engine="naive", chunk=(2, 1),
            dask=cluster.scheduler_address, progress=kill,
        )  # fmt: skip
        assert killed
        same(found, expected)
        assert files(path) == files(tmp_path / "here.zarr")
        events = log(path)
        ended = [event["done"] for event in events if "done" in event]
        assert len(ended) == len(set(ended))
        assert len({event["pid"] for event in events}) >= 2
        # and again, with nothing left to do
        same(sweep(small, MANY, [3, 5, 9], path, dask=cluster.scheduler_address), expected)
        assert log(path) == events

    def test_mistakes(
        self, cluster: Any, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from h2osim.sweeps import cluster as module

        monkeypatch.setattr(module, "_PATIENCE", 2.0)
        address = cluster.scheduler_address

        def fails(part: str, trace: Any = small, store: Any = tmp_path / "s.zarr") -> None:
            with pytest.raises(UserError, match=part) as error:
                sweep(trace, "tova", 4, store, dask=address)
            assert "\n" not in str(error.value)

        fails("give a store", store=None)
        fails("lives in memory", trace=SMALL)
        fails("no such folder", store=tmp_path / "missing" / "s.zarr")
        with pytest.raises(UserError, match="cuda"):
            sweep(small, "tova", 4, tmp_path / "c.zarr", dask=address, engine="cuda")
        address = "tcp://127.0.0.1:1"
        fails("no Dask scheduler")
        assert not list(tmp_path.iterdir())
