"""Residual error by the CUDA kernels: against the definition, on the shim and a GPU.

The tolerance is that of tests/test_cuda_errors.py, for the same reason.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
from cuda_cases import DIRECT, STACK, a_prompt, devices, needs_compiler
from cuda_shim import Shim
from drawing import NORMS, asks
from error_cases import valued
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, traces
from test_cuda_errors import assert_close, check_curve, check_outcome, long_but

from h2osim import cuda
from h2osim.cuda import run as running
from h2osim.cuda.kernels import errors, residuals
from h2osim.cuda.kernels.residuals import residuals_shape
from h2osim.engines.errors import RESIDUAL
from h2osim.engines.request import Job
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace

pytestmark = needs_compiler


@pytest.mark.parametrize("text", long_but(["h2o:recent=3,sinks=2,scores=full"], STACK))
@examples(6)
@given(data=st.data())
def test_one_pass_gives_the_errors_of_every_budget(text: str, data: st.DataObject) -> None:
    configured = parse(text)
    norms = bool(asks(configured.policy))
    trace = data.draw(valued(traces(norms=norms, min_n=2, max_n=14, max_heads=1, max_layers=2)))
    jobs = [Job(unit, configured, 1, a_prompt(data, trace.n)) for unit in trace.units()[:1]]
    device = data.draw(st.sampled_from(devices()))
    for job, (curve, _) in zip(jobs, cuda.curves(jobs, (), device, errors=RESIDUAL), strict=True):
        check_curve(job, curve, RESIDUAL)


@pytest.mark.parametrize("name", long_but(["h2o", "h2o-lmeval", "lazy"], DIRECT))
@examples(4)
@given(data=st.data())
def test_replays_at_a_budget_have_the_errors_of_the_definition(
    name: str, data: st.DataObject
) -> None:
    if not asks(all_policies()[name]) <= NORMS:
        pytest.skip("rows from queries and keys come without projections")
    norms = bool(asks(all_policies()[name]))
    trace = data.draw(valued(traces(norms=norms, min_n=2, max_n=14, max_layers=1)))
    share = data.draw(st.sampled_from(["head", "group", "layer"]))
    p, n = a_prompt(data, trace.n), trace.n
    budgets = data.draw(st.sets(st.integers(1, n), min_size=1, max_size=3))
    jobs = [Job(unit, parse(name), k, p) for unit in trace.units(share)[:2] for k in budgets]
    device = data.draw(st.sampled_from(devices()))
    for job, (found, _) in zip(jobs, cuda.direct(jobs, device, errors=RESIDUAL), strict=True):
        check_outcome(job, found, RESIDUAL)


def projected(n: int, heads: int, size: int, width: int, group: int = 1) -> Trace:
    """Random rows, values, and projections to a stream of `width` numbers."""
    rng = np.random.default_rng(0)
    scores = np.tril(rng.gamma(0.3, size=(1, heads, n, n)) + 1e-3)
    scores[:, :, :, 1] = 0  # a token without mass
    scores /= scores.sum(-1, keepdims=True)
    return Trace.from_scores(
        scores, group_size=group, v=rng.standard_normal((1, heads // group, n, size)),
        w_o=rng.standard_normal((1, heads, size, width)), x_norm=rng.random((1, n)) + 0.5,
    )  # fmt: skip


SIZES = [
    (1, 3, 1, 2), (4, 9, 1, 4), (5, 3, 1, 6), (8, 40, 2, 4), (9, 40, 2, 6), (17, 70, 4, 6),
    (33, 99, 4, 10), (6, 5, 1, 6),
]  # fmt: skip


@pytest.mark.parametrize("case", long_but([(9, 40, 2, 6), (6, 5, 1, 6)], SIZES))
def test_values_of_any_size_and_streams_of_any_width(case: tuple[int, int, int, int]) -> None:
    """Parts are padded; a stream that is shorter than the outputs leaves the last ones empty."""
    size, width, lanes, part = case
    shape = residuals_shape(Shim(), 9, 2, size, 1)
    assert (shape["LANES"], shape["PART"]) == (lanes, part)
    trace = projected(9, 6, size, width, group=3)
    jobs = [Job(unit, parse("decay:recent=1,scores=full"), 3, 2) for unit in trace.units()]
    for job, (curve, _) in zip(jobs, cuda.curves(jobs, (), Shim(), errors=RESIDUAL), strict=True):
        check_curve(job, curve, RESIDUAL)
    for job, (found, _) in zip(jobs, cuda.direct(jobs, Shim(), errors=RESIDUAL), strict=True):
        check_outcome(job, found, RESIDUAL)


@pytest.mark.parametrize("heads", [1, 4, 5])
def test_blocks_of_rows_and_of_steps(heads: int) -> None:
    """Rows come a few at a time, several blocks share them, and sums are in registers or not."""
    (unit,) = projected(37, heads, 3, 20).units("layer")
    jobs = [
        Job(unit, parse(text), 5, 6) for text in ("h2o:recent=2,scores=full", "tova:scores=full")
    ]
    for rows, blocks in ((3, 1), (32, 1000)):
        with (
            mock.patch.object(errors, "error_rows", lambda n, rows=rows: rows),
            mock.patch.object(residuals, "error_rows", lambda n, rows=rows: rows),
            mock.patch.object(residuals, "BLOCKS", blocks),
            mock.patch.object(running, "block_rows", lambda n, rows=rows: 2 * rows + 1),
        ):
            curves = cuda.curves(jobs, (), Shim(1), errors=RESIDUAL)
            outcomes = cuda.direct(jobs, Shim(1), errors=RESIDUAL)
        for job, (curve, _), (outcome, _) in zip(jobs, curves, outcomes, strict=True):
            check_curve(job, curve, RESIDUAL)
            check_outcome(job, outcome, RESIDUAL)


def test_what_has_no_mass_left_and_a_stream_of_zero() -> None:
    """o_S is 0 where nothing is attended; beside a stream of 0 a loss is beyond any share of it."""
    scores = np.zeros((2, 4, 4))
    scores[0, :, 0] = 1
    scores[1] = np.eye(4)
    lost: Any = {"v": np.ones((1, 4, 1)), "w_o": [[[1.0, 0]], [[1, 1]]], "group_size": 2}
    for norms, expected in (([1, 2, 2, 2], 1 / 4), ([1, 2, 0, 2], np.nan)):
        trace = Trace.from_scores(scores, x_norm=norms, **lost)
        job = Job(trace.units()[0], parse("recency"), 1, 1)
        curve = cuda.curves([job], (), Shim(), errors=RESIDUAL)[0][0].errors.of["residual_error"]
        outcome = cuda.direct([job], Shim(), errors=RESIDUAL)[0][0].errors.of["residual_error"]
        check_curve(job, cuda.curves([job], (), Shim(), errors=RESIDUAL)[0][0], RESIDUAL)
        assert_close([curve[0] * 1.5, outcome * 1.5, curve[-1]], [expected, expected, 0])


def test_turns_without_mass() -> None:
    """All mass is on the oldest token and the newest: every depth between has lost the former."""
    scores = np.zeros((30, 30))
    scores[:, 0] = 0.25
    scores += np.diag(np.full(30, 0.75))
    rng = np.random.default_rng(0)
    trace = Trace.from_scores(
        scores, v=rng.standard_normal((1, 30, 17)), w_o=rng.standard_normal((1, 17, 20)),
        x_norm=np.ones(30),
    )  # fmt: skip
    job = Job(trace.units()[0], parse("recency"), 1, 1)
    check_curve(job, cuda.curves([job], (), Shim(), errors=RESIDUAL)[0][0], RESIDUAL)


def test_the_whole_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays by one pass and budget by budget, with a policy that the CPU runs."""
    gpus = (Shim(),)
    monkeypatch.setattr(cuda, "devices", lambda: gpus)
    monkeypatch.setattr("h2osim.cuda.chunks.devices", lambda: gpus)
    trace = projected(24, 4, 3, 10, group=2)
    budgets: Any
    for budgets, steps in (([1, 5, 24], True), ("all", False)):
        ours, theirs = (
            replay(
                trace, ["tova:scores=full", "h2o", "topk"], budgets, measure="residual-error",
                step_errors=steps, engine=engine,
            )
            for engine in ("cuda", "numba")
        )  # fmt: skip
        assert ours.engine.values.tolist() == ["cuda", "cuda", "numba"]
        for name in theirs:
            assert_close(ours[name], theirs[name])
