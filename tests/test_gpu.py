"""The whole way on a real GPU, through `replay`, `optimum` and `sweep`. Skipped without one."""

from __future__ import annotations

import numpy as np
import pytest
import xarray

import h2osim
from h2osim import cuda
from h2osim.cuda import chunks
from h2osim.policies.registry import all_policies

pytestmark = pytest.mark.skipif(not cuda.available(), reason="no NVIDIA GPU with CuPy")


@pytest.mark.parametrize("name", ["prose", "code", "chat"])
def test_every_policy_on_the_bundled_traces(name: str) -> None:
    trace = h2osim.open_trace(name)
    policies = [*all_policies(), "h2o:recent=32,scores=full", "decay:recent=16,scores=full"]
    budgets = [1, 0.05, 0.2, 1.0]
    ours = h2osim.replay(trace, policies, budgets, engine="cuda")
    theirs = h2osim.replay(trace, policies, budgets, engine="numba")
    assert "cuda" in ours.engine.values
    xarray.testing.assert_identical(ours.drop_vars("engine"), theirs.drop_vars("engine"))


def assert_close(ours: xarray.Dataset, theirs: xarray.Dataset) -> None:
    """Errors to the tolerance of tests/test_cuda_errors.py, all else equal."""
    for name in ours:
        if "error" in str(name):
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-7, atol=1e-12)
        else:
            xarray.testing.assert_equal(
                ours[name].drop_vars("engine", errors="ignore"),
                theirs[name].drop_vars("engine", errors="ignore"),
            )


@pytest.mark.parametrize("measure", ["error", "attention-error"])
@pytest.mark.parametrize("name", ["prose", "code", "chat"])
def test_errors_on_the_bundled_traces(name: str, measure: str) -> None:
    """At some budgets: policies that hide, linger, wait or look at values, and one for the CPU."""
    trace = h2osim.open_trace(name)
    policies = ["h2o", "h2o-lmeval", "streaming", "lazy", "tova", "vatp", "topk", "scissorhands"]
    ours, theirs = (
        h2osim.replay(
            trace, policies, [1, 0.2, 1.0], measure=measure, step_errors=True, engine=engine
        )
        for engine in ("cuda", "numba")
    )
    assert set(ours.engine.values) == {"cuda", "numba"}
    assert_close(ours, theirs)


@pytest.mark.parametrize("share", ["head", "layer"])
def test_errors_of_whole_curves(share: str) -> None:
    trace = h2osim.open_trace("chat")
    policies = [
        "h2o:recent=8,scores=full",
        "tova:scores=full",
        "recency",
        "decay:recent=8,scores=full",
    ]
    ours, theirs = (
        h2osim.replay(trace, policies, "all", share=share, measure="error", engine=engine)
        for engine in ("cuda", "numba")
    )
    assert (ours.engine == "cuda").all() and ours.one_pass.all()
    assert_close(ours, theirs)
    assert (ours.output_error.isel(budget=-1) == 0).all()


def test_errors_of_rows_from_queries_and_keys() -> None:
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(1, h, 700, 16)).astype(np.float32) for h in (4, 2, 2))
    trace = h2osim.Trace.from_qk(q, k, scale=0.25, v=v)
    policies = ["h2o", "h2o:recent=16,scores=full", "tova", "streaming"]
    ours, theirs = (
        h2osim.replay(trace, policies, [35, 140], measure="error", engine=engine)
        for engine in ("cuda", "numba")
    )
    assert_close(ours, theirs)


@pytest.mark.parametrize("share", ["head", "group", "layer"])
def test_residual_errors_of_whole_curves_and_at_budgets(share: str) -> None:
    """Three heads a group of size 64, as SmolLM2's; a layer of six takes the way of many heads."""
    rng = np.random.default_rng(3)
    scores = np.tril(rng.gamma(0.1, size=(1, 6, 300, 300)) + 1e-4)
    trace = h2osim.Trace.from_scores(
        scores / scores.sum(-1, keepdims=True), group_size=3, v=rng.normal(size=(1, 2, 300, 64)),
        w_o=rng.normal(size=(1, 6, 64, 400)), x_norm=rng.random((1, 300)) + 0.5,
    )  # fmt: skip
    for policies, budgets in ((["h2o:recent=8,scores=full", "recency"], "all"), (["h2o"], [9, 90])):
        ours, theirs = (
            h2osim.replay(
                trace, policies, budgets, share=share, measure="residual-error", engine=engine
            )
            for engine in ("cuda", "numba")
        )
        assert (ours.engine == "cuda").all()
        assert_close(ours, theirs)


@pytest.mark.parametrize("share", ["head", "layer"])
def test_whole_curves(share: str) -> None:
    trace = h2osim.open_trace("chat")
    policies = [p for p, one in all_policies().items() if one.inclusive and p != "full"]
    policies += ["h2o:recent=8,scores=full", "tova:scores=full", "h2o-mean:recent=8,scores=full"]
    policies += ["decay:recent=8,scores=full", "decay:gamma=0.9,recent=100,sinks=4,scores=full"]
    # enough of them to share a unit's rows
    policies += [f"decay:gamma={g},recent={r},scores=full" for g in (0.5, 0.95) for r in (0, 9, 32)]
    ours = h2osim.replay(trace, policies, "all", share=share, engine="cuda")
    theirs = h2osim.replay(trace, policies, "all", share=share, engine="numba")
    xarray.testing.assert_identical(ours.drop_vars("engine"), theirs.drop_vars("engine"))


@pytest.mark.skipif(not cuda.available() or len(cuda.devices()) < 2, reason="fewer than two GPUs")
def test_several_gpus_share_the_units(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[int] = set()
    put = cuda.Gpu.put

    def seen(self: cuda.Gpu, *args: object) -> None:
        used.add(id(self))
        put(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(cuda.Gpu, "put", seen)
    monkeypatch.setattr(chunks, "PIECE", 2**16)
    trace = h2osim.open_trace("prose")
    policies = ["h2o:recent=16,scores=full", "decay:recent=16,scores=full", "h2o"]
    ours = h2osim.replay(trace, policies, [0.05, 0.2], engine="cuda")
    theirs = h2osim.replay(trace, policies, [0.05, 0.2], engine="numba")
    xarray.testing.assert_identical(ours.drop_vars("engine"), theirs.drop_vars("engine"))
    assert len(used) == len(cuda.devices())


def test_chunks_copied_while_others_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "PIECE", 2**16)
    trace = h2osim.open_trace("code")
    policies = ["h2o:recent=16,scores=full", "tova:scores=full", "recency"]
    theirs = h2osim.replay(trace, policies, "all", engine="numba")
    for _ in range(5):  # streams that did not wait for each other would show now and then
        ours = h2osim.replay(trace, policies, "all", engine="cuda")
        xarray.testing.assert_identical(ours.drop_vars("engine"), theirs.drop_vars("engine"))


def test_rows_of_a_qk_trace() -> None:
    rng = np.random.default_rng(5)
    q, k = (rng.normal(size=(1, h, 700, 16)).astype(np.float32) for h in (4, 2))
    trace = h2osim.Trace.from_qk(q, k, scale=0.25)
    policies = ["h2o", "h2o:recent=16,scores=full", "tova", "streaming"]
    ours = h2osim.replay(trace, policies, [35, 140], engine="cuda")
    theirs = h2osim.replay(trace, policies, [35, 140], engine="numba")
    xarray.testing.assert_identical(ours.drop_vars("engine"), theirs.drop_vars("engine"))


def test_brackets_hold_the_optimum() -> None:
    trace = h2osim.open_trace("code")
    near = h2osim.optimum(trace, [0.1, 0.2], engine="cuda", gap=1e-3)
    exact = h2osim.optimum(trace, [0.1, 0.2], method="exact")
    assert (near.kept <= exact.kept).all() and (exact.kept <= near.bound).all()
    # asked for 1e-3; after 448 readings a hard unit may stop short of it
    assert float(((near.bound - near.kept) / near.bound).max()) < 1e-2


def test_a_sweep() -> None:
    words = "decay:recent=8,scores=full,gamma=0.9..1.0:0.02"
    ours, theirs = (h2osim.sweep("chat", words, [20, 80], engine=e) for e in ("cuda", "numba"))
    assert np.array_equal(ours.recall.values, theirs.recall.values)


def test_a_sweep_that_measures_errors() -> None:
    words = "decay:recent=8,scores=full,gamma=0.9..1.0:0.02,h2o"
    ours, theirs = (
        h2osim.sweep("chat", words, [20, 80], measure="error", engine=e) for e in ("cuda", "numba")
    )
    # engines' own tolerance: h2osim/engines/errors.py
    np.testing.assert_allclose(ours.output_error, theirs.output_error, rtol=1e-7, atol=1e-12)
