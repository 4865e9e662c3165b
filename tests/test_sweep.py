"""Sweeps: their grids, their numbers, their store, and what a kill leaves."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from commands import on_terminal
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, traces

import h2osim
from h2osim import cli
from h2osim.policies.text import parse
from h2osim.replays import tasks
from h2osim.replays.execute import ENGINES, compute
from h2osim.replays.plan import plan_work
from h2osim.replays.replaying import replay
from h2osim.report.best import best_records, columns_of, summarise
from h2osim.report.files import save_figure
from h2osim.report.heatmap import sweep_figure, varied
from h2osim.support.errors import UserError
from h2osim.sweeps.grid import expand
from h2osim.sweeps.store import SweepStore
from h2osim.sweeps.sweeping import open_sweep, sweep
from h2osim.traces.trace import Trace

GRID = "h2o:recent=0..4:2,scores=full|cached,decay:gamma=0.5..1.0:0.25,recent=2,scores=full,tova"


def random_trace(n: int = 24, layers: int = 2, heads: int = 2, seed: int = 0, **more: Any) -> Trace:
    scores = np.tril(np.random.default_rng(seed).gamma(0.4, size=(layers, heads, n, n)) + 1e-3)
    return Trace.from_scores(scores / scores.sum(-1, keepdims=True), **{"name": f"t{seed}", **more})


SMALL = random_trace()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL.save(tmp_path_factory.mktemp("traces") / "small")


def same(found: xarray.Dataset, expected: xarray.Dataset) -> None:
    xarray.testing.assert_identical(found.load(), expected.load())


def files(store: Path) -> dict[str, bytes]:
    """Every file of the results, without who made it when."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".h2osim" not in path.parts
    }


# --- grids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tova", ["tova"]),
        ("h2o:recent=0..48:16", [f"h2o:recent={i}" for i in (0, 16, 32, 48)]),
        ("h2o:recent=2..4", [f"h2o:recent={i}" for i in (2, 3, 4)]),
        ("h2o:recent=7..7", ["h2o:recent=7"]),
        ("decay:gamma=0.9..1.0:0.05", [f"decay:gamma={x}" for x in ("0.9", "0.95", "1")]),
        ("decay:gamma=0..3e-1:1e-1", [f"decay:gamma={x}" for x in ("0", "0.1", "0.2", "0.3")]),
        ("decay:gamma=0...5:.25", [f"decay:gamma={x}" for x in ("0", "0.25", "0.5")]),
        ("h2o:recent=0|8..16:8|0.5", [f"h2o:recent={x}" for x in ("0", "8", "16", "0.5")]),
        (
            "h2o:recent=1|2,scores=full|cached,tova",
            [
                "h2o:recent=1,scores=full",
                "h2o:recent=1,scores=cached",
                "h2o:recent=2,scores=full",
                "h2o:recent=2,scores=cached",
                "tova",
            ],
        ),
        # each configuration once, however it is written
        ("h2o,h2o:recent=0.5,h2o:recent=4|4.0", ["h2o", "h2o:recent=4"]),
    ],
)
def test_a_grid_is_the_product_of_its_values(text: str, expected: list[str]) -> None:
    found = expand(text)
    assert [one.text for one in found] == expected
    # what a configuration is called is what `replay` takes
    assert all(parse(one.text).values == one.values for one in found)


def test_steps_are_decimal() -> None:
    (values,) = [[one.values["gamma"] for one in expand("decay:gamma=0..1:0.1")]]
    assert values == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9), st.sampled_from([1, 10, 1000]))
def test_a_range_has_both_ends(first: int, count: int, step: int, scale: int) -> None:
    last = first + count * step
    first, step, last = first, step, last
    if last > scale:
        scale = 10 ** len(str(last))
    digits = len(str(scale)) - 1
    a, b, c = (f"{x / scale:.{digits}f}" for x in (first, last, step))
    found = [one.values["gamma"] for one in expand(f"decay:gamma={a}..{b}:{c}")]
    assert found == [(first + i * step) / scale for i in range(count + 1)]


def test_a_policy_with_a_value_sets_its_first_parameter() -> None:
    found = expand("h2o:recent=0..128:16,decay=0.9..1.0:0.01,streaming=2|4")
    assert [one.text for one in found] == [
        *(f"h2o:recent={recent}" for recent in range(0, 129, 16)),
        *(f"decay:gamma={(90 + i) / 100:g}" for i in range(11)),
        "streaming:sinks=2",
        "streaming:sinks=4",
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no policy given"]),
        ("h20:recent=1", ["did you mean h2o"]),
        ("h2o:recnt=1..2", ["unknown parameter 'recnt'", "did you mean recent"]),
        ("h2o:recent=8,decay=2", ["policy decay: gamma=2", "found '2', expected"]),
        ("h2o:decays=1", ["unknown parameter 'decays'", "it takes recent"]),
        ("h2o:recent=4,8", ["'8' stands alone", "|"]),
        ("h2o:recent=4||8", ["recent=4||8", "empty alternative"]),
        ("h2o:recent=0..100:16", ["reach 96 and not 100", "0..96:16"]),
        ("h2o:recent=4..2", ["falls", "2..4"]),
        ("h2o:recent=1..4:0", ["step '0'"]),
        ("h2o:recent=1..4:-1", ["step '-1'"]),
        ("h2o:recent=1..4:", ["step ''"]),
        ("h2o:recent=1..4:x", ["step 'x'"]),
        ("h2o:recent=1..x", ["no range of numbers"]),
        ("h2o:recent=1..", ["no range"]),
        ("h2o:recent=..4", ["no range"]),
        ("h2o:recent=0..nan", ["no range of numbers"]),
        ("decay:gamma=0.1..0.5", ["needs a step"]),
        ("decay:gamma=0.5..1.5:0.5", ["'1.5'", "0 to 1"]),
        ("h2o:recent=0.5..2:0.5", ["shares of the budget"]),
        ("h2o:recent=0.5..0.9:0.1|2.5", ["'2.5'"]),
        ("h2o:scores=full|half", ["'half'", "full | cached"]),
        ("h2o:recent", ["parameter=value"]),
        ("h2o:recent=1,recent=2", ["given twice"]),
        ("decay:gamma=0..1:1e-9", ["more than 1,000,000"]),
        ("decay:gamma=0..1:1e-4,recent=0..1000", ["more than 1,000,000"]),
    ],
)
def test_a_bad_grid_is_one_line(text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        expand(text)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_which_parameters_vary() -> None:
    settings = [(one.policy.name, one.values) for one in expand(GRID)]
    assert varied(settings) == {"h2o": ["recent", "scores"], "decay": ["gamma"], "tova": []}


# --- numbers --------------------------------------------------------------------------------


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
    assert done[-1] == pytest.approx(calls[-1][1])


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


# --- the store ------------------------------------------------------------------------------


def test_a_store_holds_what_is_returned(folder: Path, tmp_path: Path) -> None:
    expected = sweep(folder, GRID, [2, 0.5])
    found = sweep(folder, GRID, [2, 0.5], tmp_path / "s.zarr", chunk=(2, 3))
    same(found, expected)
    same(open_sweep(tmp_path / "s.zarr"), expected)
    # parts are read on their own, whichever chunks they lie in
    lazy = open_sweep(tmp_path / "s.zarr")
    np.testing.assert_array_equal(lazy.recall[7:1:-2, 1, ::-1], expected.recall[7:1:-2, 1, ::-1])
    np.testing.assert_array_equal(lazy.held[[5, 0], :, -1], expected.held[[5, 0], :, -1])
    assert lazy.recall[3:3].values.shape == (0, 4, 2)
    assert not list(tmp_path.rglob("*.partial"))


def test_zarr_and_xarray_read_the_store(folder: Path, tmp_path: Path) -> None:
    traces_: list[Any] = [folder, random_trace(11, 1, 1, 1)]
    expected = sweep(traces_, GRID + ",full", [2, 0.5, 0.25], tmp_path / "s.zarr", chunk=(4, 3))
    found = xarray.open_zarr(tmp_path / "s.zarr", chunks=None)
    assert set(found.variables) - set(expected.variables) == {"done"}
    assert found.done.any("sha256").all()
    for name, variable in expected.variables.items():
        assert found[name].dims == variable.dims
        assert (name in found.coords) == (name in expected.coords)
        if variable.dtype.kind == "U":
            assert found[name].values.tolist() == variable.values.tolist()
        else:
            assert found[name].dtype == variable.dtype
            np.testing.assert_array_equal(found[name].values, variable.values)


def test_the_same_call_again_computes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sweep(folder, GRID, "all", tmp_path / "s.zarr")
    before = files(tmp_path / "s.zarr")
    monkeypatch.setattr(SweepStore, "started", lambda *_: pytest.fail("a finished chunk was begun"))
    same(sweep(folder, GRID, "all", tmp_path / "s.zarr", engine="naive", chunk=(1, 1)), first)
    assert files(tmp_path / "s.zarr") == before


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"policies": "tova"}, "policies 1 of 10 is h2o:recent=0,scores=full, asked for is tova"),
        ({"policies": GRID + ",full"}, "policies is 10 long, asked for is 11 long"),
        ({"budgets": [2, 3]}, "budgets"),
        ({"budgets": "all"}, "budgets"),
        ({"prompt_len": 5}, "prompt_len"),
        ({"share": "layer"}, "share is group, asked for is layer"),
        ({"layers": [1]}, "layers"),
        ({"traces": SMALL}, "traces"),
        ({"traces": random_trace(seed=9)}, "traces"),
    ],
)
def test_another_sweep_into_the_same_store_is_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    asked: dict[str, Any] = {"traces": folder, "policies": GRID, "budgets": [2]}
    sweep(**asked, store=tmp_path / "s.zarr")
    before = files(tmp_path / "s.zarr")
    with pytest.raises(UserError) as error:
        sweep(**{**asked, **change}, store=tmp_path / "s.zarr")
    assert part in str(error.value) and "\n" not in str(error.value)
    assert files(tmp_path / "s.zarr") == before


PARTS = {
    "constant": "1.5",
    "helper": "x * STEP",
    "default": "0",
    "input": "np.full(unit.n, scale())",
    "scale": "1.0",
    "number": "3",
    "keep": "k",
    "flags": "scores='full', inclusive=False, within_budget=True",
    "within": "True",
}
MINE = """
import numpy as np
from h2osim.policies.declaration import Policy
from h2osim.support.parameters import Param

STEP = {constant}
SCALE = {{"by": [{scale}]}}


def helper(x, by=STEP):  # a comment and a docstring's layout change nothing
    return {helper}


def rank(pos, age, number, extra):
    return helper(pos) + age * number + extra


def keep(size, k):
    return {keep}


def scale():
    return SCALE["by"][{default}]


def extra(unit, values):
    return {input}


def bounded(values):
    return {within}


POLICY = Policy(
    name="mine", summary="", source="", rank=rank, keep=keep, inputs={{"extra": extra}},
    params=(Param("number", {number}, ""),), {flags},
)
"""


def write_policy(file: Path, **changed: str) -> None:
    file.write_text(MINE.format(**{**PARTS, **changed}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"constant": "1.25"}, "declarations 1 of 1 (mine), rank is sha256"),
        ({"helper": "x + STEP"}, "declarations 1 of 1 (mine), rank is sha256"),
        ({"input": "np.zeros(unit.n)"}, "declarations 1 of 1 (mine), inputs is sha256"),
        ({"scale": "2.0"}, "declarations 1 of 1 (mine), inputs is sha256"),
        ({"default": "-1"}, "declarations 1 of 1 (mine), inputs is sha256"),
        ({"number": "4"}, "parameters 1 of 1, number is 3, asked for is 4"),
        ({"keep": "min(k, size)"}, "declarations 1 of 1 (mine), keep is sha256"),
        ({"flags": "scores='cached'"}, "scores is 'full', asked for is 'cached'"),
        ({"flags": "expires=True"}, "expires is False, asked for is True"),
        ({"flags": "readmits=True"}, "readmits is False, asked for is True"),
        ({"flags": "lag='number'"}, "lag is None, asked for is 'number'"),
        ({"flags": "within_budget=False"}, "within_budget is True, asked for is False"),
        ({"flags": "within_budget=bounded"}, "within_budget is True, asked for is sha256"),
    ],
)
def test_an_edited_policy_is_another_one(
    folder: Path, tmp_path: Path, changed: dict[str, str], part: str
) -> None:
    """An edit of anything that a number depends on, at any distance, stops the sweep."""
    file, store = tmp_path / "mine.py", tmp_path / "s.zarr"
    write_policy(file)
    found = sweep(folder, str(file), [4], store, engine="naive")
    assert found.policy.values.tolist() == [str(file)]
    before = files(store)
    write_policy(file, **changed)
    os.utime(file, ns=(1, 1))  # another time than the first, however coarse the clock
    with pytest.raises(UserError) as error:
        sweep(folder, str(file), [4], store, engine="naive")
    assert part in str(error.value) and "\n" not in str(error.value)
    assert files(store) == before
    # the same text again is the same policy, wherever its comments stand
    text = MINE.format(**PARTS).replace("  # a comment and a docstring's layout change nothing", "")
    file.write_text(text, encoding="utf-8")
    same(sweep(folder, str(file), [4], store, engine="numba"), found)


@pytest.mark.parametrize("engine", ["naive", "numba"])
def test_an_edited_helper_gives_other_numbers(folder: Path, tmp_path: Path, engine: str) -> None:
    """What the refusal is for: the numbers of the edited policy are not those in the store."""
    found: list[Any] = []
    for text in ("x * STEP", "x * STEP * 9"):
        write_policy(tmp_path / "mine.py", helper=text)
        os.utime(tmp_path / "mine.py", ns=(len(found), len(found)))
        found.append(sweep(folder, str(tmp_path / "mine.py"), [4], engine=engine).recall.values)
    assert (found[0] != found[1]).any()


def test_two_policies_of_one_name_are_both_in_the_identity(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_policy(tmp_path / name / "mine.py")
    both = [str(tmp_path / name / "mine.py") for name in ("a", "b")]
    sweep(folder, both, [4], tmp_path / "s.zarr")
    write_policy(tmp_path / "a" / "mine.py", helper="-x")
    with pytest.raises(UserError, match=r"declarations 1 of 2 \(mine\), rank is"):
        sweep(folder, both, [4], tmp_path / "s.zarr")


QK = np.random.default_rng(5).standard_normal((2, 1, 4, 20, 4))


@pytest.mark.parametrize(
    ("make", "fields", "part"),
    [
        (Trace.from_qk, {"scale": 0.25}, "layer 0, scale is 0.5, asked for is 0.25"),
        (Trace.from_qk, {"softcap": 3.0}, "layer 0, softcap is None, asked for is 3.0"),
        (Trace.from_qk, {"window": 5}, "layer 0, window is None, asked for is 5"),
        (Trace.from_packed, {"group_size": 4}, "kv_heads is 2 long, asked for is 1 long"),
        (Trace.from_packed, {"prompt_len": 7}, "prompt_len 1 of 1 is 1, asked for is 7"),
    ],
)
def test_a_field_of_the_trace_changes_the_sweep(
    tmp_path: Path, make: Any, fields: dict[str, Any], part: str
) -> None:
    """The arrays are the same, what they mean is not."""
    if make == Trace.from_qk:
        given: dict[str, Any] = {"q": QK[0], "k": QK[1], "scale": 0.5}
    else:
        given = {"bits": random_trace(20, 1, 4).tensor(0, "scores")[None], "group_size": 2}
    paths = [
        make(**{**given, **changed}, name="same").save(tmp_path / name)
        for name, changed in (("a", {}), ("b", fields))
    ]
    sweep(paths[0], "tova", [4], tmp_path / "s.zarr")
    with pytest.raises(UserError) as error:
        sweep(paths[1], "tova", [4], tmp_path / "s.zarr")
    assert part in str(error.value) and "\n" not in str(error.value)


def test_the_arrays_of_a_trace_in_memory_are_in_the_identity(tmp_path: Path) -> None:
    """Two traces that agree in all but one number of one row, or one value norm."""
    bits = np.array(SMALL.tensor(0, "scores"))[None]
    norms = np.ones((1, 2, 24), np.float32)
    swept = Trace.from_packed(bits, v_norm1=norms)
    sweep(swept, "tova", [4], tmp_path / "s.zarr")
    sweep(Trace.from_packed(bits, v_norm1=norms), "tova", [4], tmp_path / "s.zarr")
    row, norm = bits.copy(), norms.copy()
    row[0, 1, 200] ^= 1
    norm[0, 1, 3] = 2
    for other in (Trace.from_packed(row, v_norm1=norms), Trace.from_packed(bits, v_norm1=norm)):
        with pytest.raises(UserError, match=r"layer 0, sha256 is .*asked for is"):
            sweep(other, "tova", [4], tmp_path / "s.zarr")


def test_a_layer_swapped_under_an_open_trace_is_refused(tmp_path: Path) -> None:
    """By rename or written over, before a sweep and between two: never new numbers, old name."""
    trace = h2osim.open_trace(random_trace(name="x").save(tmp_path / "x"))
    other = random_trace(seed=3).save(tmp_path / "other")
    file = next((tmp_path / "x").glob("*.safetensors"))
    good = file.read_bytes()
    bad = (other / file.name).read_bytes()
    sweep(trace, "tova", [4], tmp_path / "s.zarr", chunk=(1, 1))
    for way in ("rename", "write"):
        if way == "rename":
            (tmp_path / "new").write_bytes(bad)
            os.replace(tmp_path / "new", file)
        else:
            file.write_bytes(bad)
        for store in (None, tmp_path / "t.zarr"):
            with pytest.raises(UserError, match="sha256 found"):
                sweep(trace, "tova", [4], store)
        with pytest.raises(UserError, match="sha256 found"):
            replay(trace, "tova", [4])
        file.write_bytes(good)
        sweep(trace, "tova", [4])


def test_a_layer_swapped_during_a_replay_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good when the work began and another at its end: nobody knows which one was read."""
    trace = h2osim.open_trace(random_trace(name="x").save(tmp_path / "x"))
    layer = trace.layers[0]
    file = tmp_path / "x" / trace.layer_entry(layer)["file"]
    other = random_trace(seed=3).save(tmp_path / "other") / file.name
    compute = tasks._numba

    def swap(*given: Any) -> None:
        compute(*given)
        os.replace(other, file)

    monkeypatch.setattr(tasks, "_numba", swap)
    with pytest.raises(UserError, match="sha256 found"):
        replay(trace, "tova", [4], layers=[layer], share="layer", engine="numba")


def test_what_is_no_store_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text('{"attributes": {}}')
    for name in ("file", "other"):
        with pytest.raises(UserError, match="something else"):
            sweep(folder, "tova", 4, tmp_path / name)
    with pytest.raises(UserError, match="something else"):
        open_sweep(tmp_path / "missing")
    assert (tmp_path / "file").read_text() == "mine"


# --- damage ---------------------------------------------------------------------------------


def damage(file: Path, way: str, other: bytes) -> None:
    content = file.read_bytes()
    if way == "deleted":
        file.unlink()
    elif way == "cut":
        file.write_bytes(content[:-1])
    elif way == "empty":
        file.write_bytes(b"")
    elif way == "another chunk's":
        file.write_bytes(other)
    else:
        place = len(content) // 2
        flipped = bytes([content[place] ^ 1])
        file.write_bytes(content[:place] + flipped + content[place + 1 :])


@pytest.mark.parametrize("way", ["deleted", "cut", "empty", "another chunk's", "bit"])
@pytest.mark.parametrize("name", ["recall", "kept", "held", "mass", "done"])
def test_a_damaged_chunk_is_seen_and_computed_again(
    folder: Path, tmp_path: Path, name: str, way: str
) -> None:
    path = tmp_path / "s.zarr"
    expected = sweep(folder, GRID, [2, 9], path, chunk=(4, 3)).load()
    good = files(path)
    # the last chunk of both axes is not full; the mass of its units is of all chunks beside it too
    last, first = ("c/1", "c/0") if name == "mass" else ("c/2/1/0", "c/0/0/0")
    spoiled = [1, 3, 5] if name == "mass" else [5]
    damage(path / name / last, way, good[f"{name}/{first}"])
    if (name, way) != ("done", "deleted"):  # that chunk is not finished, and says so with NaN
        with pytest.raises(UserError, match=f"chunk {spoiled[0]} is damaged") as error:
            open_sweep(path)
        assert "\n" not in str(error.value)
    before = len(log(path))
    same(sweep(folder, GRID, [2, 9], path), expected)
    assert [e["start"] for e in log(path)[before:] if "start" in e] == spoiled
    assert files(path) == good


def test_swapped_chunks_are_seen(folder: Path, tmp_path: Path) -> None:
    """Results and mark of one chunk in the place of another's."""
    path = tmp_path / "s.zarr"
    sweep(folder, GRID, [2, 9], path, chunk=(5, 2))
    # of the same units, so that their mass, which is stored once, is the same
    for name in ("recall", "kept", "held", "done"):
        shutil.copy(path / name / "c/0/1/0", path / name / "c/1/1/0")
    with pytest.raises(UserError, match="chunk 3 is damaged"):
        open_sweep(path)


@pytest.mark.parametrize("way", ["deleted", "cut", "bit"])
@pytest.mark.parametrize(
    "name", ["zarr.json", "recall/zarr.json", "done/zarr.json", "policy/c/0", ".h2osim/layout.json"]
)
def test_damaged_metadata_and_coordinates_are_refused_in_a_line(
    folder: Path, tmp_path: Path, name: str, way: str
) -> None:
    path = tmp_path / "s.zarr"
    sweep(folder, "tova", [2], path)
    damage(path / name, way, b"")
    for act in (lambda: open_sweep(path), lambda: sweep(folder, "tova", [2], path)):
        with pytest.raises(UserError, match=r"damaged|something else") as error:
            act()
        assert "\n" not in str(error.value)


def test_every_file_is_on_the_disk_before_it_has_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut could leave half written was flushed first: results, marks, layout."""
    flushed: set[int] = set()
    named: list[str] = []
    fsync, replace = os.fsync, os.replace

    def watch(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def check(old: Any, new: Any) -> None:
        if Path(new).is_relative_to(tmp_path):  # numba keeps what it compiles in its own way
            assert os.stat(old).st_ino in flushed
            parts = Path(new).parts
            named.append(parts[parts.index("c") - 1] if "c" in parts else parts[-1])
        replace(old, new)

    monkeypatch.setattr(os, "fsync", watch)
    monkeypatch.setattr(os, "replace", check)
    sweep(folder, "tova", [2], tmp_path / "s.zarr", chunk=(1, 4))
    assert named[-5:] == ["recall", "kept", "held", "mass", "done"]
    assert {"zarr.json", "layout.json"} <= set(named)


def test_what_a_kill_left_of_a_layout_is_swept(folder: Path, tmp_path: Path) -> None:
    """Not what another process is making now, nor what is no store."""
    fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")
    left, made, mine = (tmp_path / f".{name}.partial.zarr" for name in "abc")
    for one in (left, made):
        (one / ".h2osim").mkdir(parents=True)
        (one / ".h2osim" / "lock").touch()
    mine.mkdir()
    with open(made / ".h2osim" / "lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        sweep(folder, "tova", [2], tmp_path / "s.zarr")
    assert (left.exists(), made.exists(), mine.exists()) == (False, True, True)


def test_without_zarr_a_store_is_refused_and_memory_works(
    folder: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*sys.modules]:
        if name.partition(".")[0] == "zarr" or name == "h2osim.sweeps.store":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "zarr", None)
    monkeypatch.delattr(importlib.import_module("h2osim.sweeps"), "store", raising=False)
    words = (folder, "-p", "tova", "-b", "3")
    code, out, err = run(*words, "-o", tmp_path / "s.zarr")
    assert code == 2 and out == "" and not list(tmp_path.iterdir())
    assert err.count("\n") == 1 and "pip install 'h2osim[sweep]'" in err
    assert run(*words)[0] == 0


def test_two_processes_do_not_work_on_one_store(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no such locks")
    sweep(folder, "tova", 4, tmp_path / "s.zarr")
    store = SweepStore(tmp_path / "s.zarr")
    with store.locked(), pytest.raises(UserError, match="another process"):
        sweep(folder, "tova", 4, tmp_path / "s.zarr")


# --- kills ----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.nightly
def test_a_stop_at_any_file_loses_and_repeats_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends before or after each rename: some of the layout's, all of the chunks'."""
    asked: dict[str, Any] = {"policies": "h2o:recent=0|2,tova", "budgets": [3], "engine": "naive"}
    whole = tmp_path / "whole.zarr"
    alone = dataclasses.replace(ENGINES["naive"], lanes=lambda: 1)
    monkeypatch.setitem(ENGINES, "naive", alone)
    real = {name: getattr(os, name) for name in ("replace", "rename")}

    def moves(path: Path, at: float, after: bool) -> list[str]:
        """Sweep, and end before or after a rename; the names of those that happened."""
        done: list[str] = []

        def move(old: Any, new: Any, name: str) -> None:
            if len(done) > at or (len(done) == at and not after):
                raise Killed
            real[name](old, new)
            done.append(name)
            if len(done) == at + 1:
                raise Killed

        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(os, name, functools.partial(move, name=name))
            try:
                sweep(folder, **asked, store=path, chunk=(2, 2))
            except Killed:
                assert at < np.inf
        return done

    names = moves(whole, np.inf, True)
    expected = files(whole)
    chunks = 5 * int(np.prod(SweepStore(whole).grid))
    layout = names.index("rename")
    assert len(names) == layout + 1 + chunks
    moments = [(0, False), (layout - 1, True)]
    moments += [(at, after) for at in range(layout, layout + 1 + chunks) for after in (False, True)]
    for at, after in moments:
        path = tmp_path / f"{at}-{after}.zarr"
        moves(path, at, after)
        done = finished(path)
        assert path.exists() == ((at, after) >= (layout, True))
        assert len(done) == max(0, at - layout - 1 + after) // 5
        events = len(log(path))
        sweep(folder, **asked, store=path, chunk=(2, 2))
        assert files(path) == expected
        assert not done & {e["start"] for e in log(path)[events:] if "start" in e}


def finished(store: Path) -> set[int]:
    """The chunks that are marked."""
    if not store.exists():
        return set()
    opened = SweepStore(store)
    return {i for i in range(int(np.prod(opened.grid))) if opened.finished(i)}


def log(store: Path) -> list[dict[str, Any]]:
    try:
        lines = (store / ".h2osim" / "log.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines]


CHILD = """
import sys
from h2osim import sweep
sweep(sys.argv[1], sys.argv[2], [3, 5, 9], sys.argv[3], engine="naive", chunk=(2, 1))
"""
MANY = "h2o:recent=0..8,scores=full|cached,decay:gamma=0.5..1:0.1,recent=0..3,scores=full"


@pytest.mark.nightly
def test_sigkill_at_random_moments(folder: Path, tmp_path: Path) -> None:
    """Started, killed, started again: the same store, and nothing marked is begun again."""
    path, whole = tmp_path / "killed.zarr", tmp_path / "whole.zarr"
    sweep(folder, MANY, [3, 5, 9], whole, chunk=(2, 1))
    total = int(np.prod(SweepStore(whole).grid))
    rng = random.Random(1)
    # done before a kill, and how long the log was then
    kills: list[tuple[set[int], int]] = []
    for part in (0.0, 0.3, 0.7):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), MANY, str(path)])
        while len(finished(path)) <= part * total and child.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.03))
        child.send_signal(signal.SIGKILL)
        child.wait()
        kills.append((finished(path), len(log(path))))
    assert len(kills[0][0]) < total, "killed too late to show anything"
    found = sweep(folder, MANY, [3, 5, 9], path, engine="numba")
    same(found, open_sweep(whole))
    assert files(path) == files(whole)
    events = log(path)
    for (before, _), (after, _) in itertools.pairwise(kills):
        assert before <= after
    for done, at in kills:
        assert not done & {event["start"] for event in events[at:] if "start" in event}
    ended = [event["done"] for event in events if "done" in event]
    assert len(ended) == len(set(ended)) <= total
    # killed while at work on a few chunks each time: only those were begun twice
    begun = [event["start"] for event in events if "start" in event]
    assert len(begun) - total <= len(kills) * (os.cpu_count() or 1)


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
        self, cluster: Any, folder: Path, tmp_path: Path
    ) -> None:
        expected = sweep(folder, MANY, [3, 5, 9], tmp_path / "here.zarr", chunk=(2, 1))
        path = tmp_path / "dask.zarr"
        killed: list[set[int]] = []

        def kill(done: float, total: float, what: str) -> None:
            if done > total / 2 and not killed:
                os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
                killed.append(finished(path))

        found = sweep(
            folder, MANY, [3, 5, 9], path, engine="naive", chunk=(2, 1),
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
        same(sweep(folder, MANY, [3, 5, 9], path, dask=cluster.scheduler_address), expected)
        assert log(path) == events

    def test_mistakes(
        self, cluster: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from h2osim.sweeps import cluster as module

        monkeypatch.setattr(module, "_PATIENCE", 2.0)
        address = cluster.scheduler_address

        def fails(part: str, trace: Any = folder, store: Any = tmp_path / "s.zarr") -> None:
            with pytest.raises(UserError, match=part) as error:
                sweep(trace, "tova", 4, store, dask=address)
            assert "\n" not in str(error.value)

        fails("give a store", store=None)
        fails("lives in memory", trace=SMALL)
        fails("no such folder", store=tmp_path / "missing" / "s.zarr")
        with pytest.raises(UserError, match="cuda"):
            sweep(folder, "tova", 4, tmp_path / "c.zarr", dask=address, engine="cuda")
        address = "tcp://127.0.0.1:1"
        fails("no Dask scheduler")
        assert not list(tmp_path.iterdir())


# --- the best settings ----------------------------------------------------------------------


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
        assert got[0]["recall"] == pytest.approx(float(means[order[0]]), abs=1e-15)
        assert (got[0]["least"], got[0]["greatest"]) == (float(units.min()), float(units.max()))


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


def test_the_command_prints_plots_and_continues(run: Any, folder: Path, tmp_path: Path) -> None:
    store, picture = tmp_path / "s.zarr", tmp_path / "s.svg"
    words = (folder, "-p", GRID, "--budgets", "3,50%", "-o", store, "--plot", picture)
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


def test_on_a_terminal_a_bar_shows_rate_and_estimate(folder: Path) -> None:
    words = [sys.executable, "-m", "h2osim", "sweep", str(folder), "-p", GRID, "-b", "3,50%"]
    code, shown = on_terminal(words)
    assert code == 0
    assert b"sweeping" in shown
    assert b"runs/s" in shown
    assert re.search(rb"left.{0,20}\d:\d\d:\d\d", shown)


def test_the_command_says_which_settings_take_one_pass(run: Any, folder: Path) -> None:
    code, _, err = run(folder, "-p", GRID, "-b", "all", "--engine", "numba")
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
        (("-p", "tova", "--engine", "fast"), "unknown engine"),
        (("-p", "tova", "--dask", "tcp://127.0.0.1:1"), "give a store"),
        (("-p", "tova", "-o", "file"), "something else"),
        ((), "--policies"),
    ],
)
def test_mistakes_are_one_line(
    run: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: Any, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    code, out, err = run(folder, *words)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("h2osim: error:") and part in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
