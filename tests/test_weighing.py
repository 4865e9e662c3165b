"""The offline optimum of what keys are worth to the output: rows, solvers, certificates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assignment_oracle import least_losses
from commands import Run, fails
from error_cases import valued
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces, traces
from test_errors import SHARES

import h2osim
from h2osim.attention.fixed_point import ONE, UNIT
from h2osim.attention.triangle import row_slice
from h2osim.engines.errors import OUTPUT, schedule_errors
from h2osim.optima.certificate import save_certificate
from h2osim.optima.certifying import certify, digest
from h2osim.optima.solving import optimum
from h2osim.optima.weighing import scale_of, weighed
from h2osim.replays.replaying import replay
from h2osim.replays.results import check
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

TRACES = valued(traces(min_n=2, max_n=10)) | qk_traces(values=True, min_n=2, max_n=10)


@examples(60)
@given(TRACES)
def test_rows_are_attention_times_distance(trace: Trace) -> None:
    layers = {one.layer: one for one in trace.units("layer")}
    for plain, one in zip(trace.units(), weighed(trace, "group", "value"), strict=True):
        scale = scale_of(layers[one.layer])
        v = plain.values().astype(np.float64)[0]
        assert scale >= 2 * np.sqrt((layers[one.layer].values() ** 2).sum(axis=2)).max()
        for t in range(trace.n):
            for row, found in zip(plain.head_rows(t), one.head_rows(t), strict=True):
                o = row @ v[: t + 1] / row.sum()
                expected = row * UNIT * np.sqrt(((v[: t + 1] - o) ** 2).sum(axis=1)) / scale
                assert (expected <= 1).all()
                # rounded to float16 once: half a unit in the last place, 2**-25 for the smallest
                np.testing.assert_allclose(found * UNIT, expected, rtol=2**-11, atol=1.001 * 2**-25)


@examples(30)
@given(TRACES, SHARES, st.data())
def test_every_budget_is_the_assignment(trace: Trace, share: str, data: st.DataObject) -> None:
    p = data.draw(st.integers(1, trace.n - 1))
    found = optimum(trace, "all", weights="value", share=share, prompt_len=p)
    closed = optimum(trace, [1], weights="value", share=share, prompt_len=p, method="bracket")
    check(found)
    for i, one in enumerate(weighed(trace, share, "value")):
        rows = np.zeros((trace.n, trace.n), np.int64)
        for t in range(trace.n):
            rows[t, : t + 1] = one.row(t)
        layer, index = divmod(i, found.sizes["unit"])
        whole = int(rows[p:].sum())
        assert found.mass.values[layer, index] == whole
        expected = whole - least_losses(rows, p)[1:]
        np.testing.assert_array_equal(found.kept.values[layer, index], expected)
        low, high = (closed[name].values[layer, index, 0] for name in ("kept", "bound"))
        assert low <= expected[0] <= high


def test_two_tokens_by_hand() -> None:
    """Values 0 and 4, weights 1/4 and 3/4: o = 3, distances 3 and 1, so both are worth 3/4."""
    scores = np.array([[1, 0], [0.25, 0.75]])
    trace = Trace.from_scores(scores, v=np.array([[[0.0], [4.0]]]))
    one = weighed(trace, "group", "value")[0]
    assert scale_of(trace.units("layer")[0]) == 16
    assert (one.row(1) * 16).tolist() == [0.75 * ONE, 0.75 * ONE]


def test_values_of_another_size_change_nothing() -> None:
    """Doubled values double every weight, and the power of two that they are divided by."""
    trace = h2osim.open_trace("chat")
    layer = trace.layers[0]
    v = next(one.values() for one in trace.units())
    made = [
        Trace.from_packed(trace.tensor(layer, "scores")[None], group_size=3, v=(v * factor)[None])
        for factor in (1, 2)
    ]
    first, second = (weighed(one, "group", "value")[0].trace.tensor(0, "scores") for one in made)
    np.testing.assert_array_equal(first, second)
    t = trace.n - 1
    assert second[0, row_slice(t)].any()


@examples(20)
@given(TRACES, st.sampled_from(["h2o", "tova", "streaming:sinks=1"]))
def test_errors_of_a_schedule_are_those_of_the_run(trace: Trace, policy: str) -> None:
    found = replay(trace, policy, [1, 2], measure="error", prompt_len=1)
    for i, one in enumerate(trace.units()):
        layer, index = divmod(i, found.sizes["unit"])
        for b in range(found.sizes["budget"]):
            here = found.isel(policy=0, layer=layer, unit=index, budget=b)
            again = schedule_errors(one, here.evicted_at.values, 1, OUTPUT).of
            for name in OUTPUT:
                # engines' own tolerance: h2osim/engines/errors.py
                np.testing.assert_allclose(again[name], here[name], rtol=1e-7, atol=1e-12)


def test_weighing_by_value_lowers_the_output_error_where_values_differ() -> None:
    """Layer 2 of prose; the mean over the layers too."""
    found = {
        weights: optimum(
            h2osim.open_trace("prose"), [0.05], weights=weights, output_error=True, layers=[2, 9]
        ).output_error.values.ravel()
        for weights in ("mass", "value")
    }
    assert (found["value"] < found["mass"]).all()


def test_certificates(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    trace = h2osim.open_trace("chat")
    found = optimum(trace, [8, 40], weights="value", layers=[9], gap=1e-3, method="bracket")
    path = save_certificate(found, trace, tmp_path / "c")
    checked = certify(path, trace)
    assert [(one.kept, one.bound) for one in checked] == [
        (found.kept.values[0, 0, b], found.bound.values[0, 0, b]) for b in (0, 1)
    ]
    assert {one.weights for one in checked} == {"value"}
    # the same file said to be about attention mass
    tensors = load_file(path)
    facts: dict[str, Any] = {
        "prompt_len": found.attrs["prompt_len"], "share": "group", "weights": "mass",
        "trace": "chat", "n": trace.n, "group_size": 3,
        "sha256": [trace.layer_entry(9)["sha256"]],
    }  # fmt: skip
    text = json.dumps(facts)
    metadata = {
        "format": "h2osim-certificate 1", "facts": text, "sha256": digest(text, tensors)
    }  # fmt: skip
    save_file(tensors, tmp_path / "other", metadata=metadata)
    with pytest.raises(UserError, match="mass: the file says"):
        certify(tmp_path / "other", trace)


BARE = Trace.from_scores(np.eye(3), name="bare")


@pytest.mark.parametrize(
    ("trace", "options", "message"),
    [
        (BARE, {"weights": "value"}, "weights value: trace bare has no values"),
        (BARE, {"weights": "norm"}, "unknown weights 'norm'; expected mass or value"),
        (BARE, {"output_error": True}, "has no values"),
        (BARE, {"weights": "value", "engine": "cuda"}, "weights=value is engine=numba's"),
    ],
)
def test_mistakes(trace: Trace, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        optimum(trace, [1], **options)


def test_the_command(run: Run, tmp_path: Path) -> None:
    words = ["optimum", "chat", "--layers", "2", "--budgets", "20", "--weights", "value"]
    done = run(*words, "--output-error", "--certificate", tmp_path / "c")
    assert done.code == 0 and "weighted by value" in " ".join(done.out.split())
    done = run("certify", tmp_path / "c", "chat")
    assert done.code == 0 and "weighted by value" in " ".join(done.out.split())
    record = json.loads(run(*words, "--output-error", "--format", "json").out)[0]
    assert 0 < record["output_error"] < 1
    fails(run(*words[:-4], "--budgets", "all", "--output-error"), "output error", "schedule")
