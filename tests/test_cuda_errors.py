"""Output and attention error by the CUDA kernels: against the definition, on the shim and a GPU.

Evictions are compared by ==. Errors are float64 sums taken in another order than the definition's:
what is missing, one token after the other, instead of what is there. A step's rounding is about
1e-16 / r, r the share of mass attended, which is 0 or at least 2**-24: hence 1e-7, and 1e-12 where
an error is nearly 0.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from commands import Run
from cuda_cases import DIRECT, STACK, a_prompt, devices, needs_compiler
from cuda_shim import Shim
from error_cases import valued, valued_for
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces, traces
from test_cuda_borders import POLICIES

from h2osim import cuda
from h2osim.cuda import chunks
from h2osim.cuda import run as running
from h2osim.cuda.kernels import errors
from h2osim.cuda.kernels.errors import Outputs, errors_shape, value_size
from h2osim.cuda.rows import load_rows
from h2osim.engines import naive
from h2osim.engines.errors import ATTENTION, OUTPUT
from h2osim.engines.request import Job
from h2osim.engines.results import Curve, Outcome
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays import execute
from h2osim.replays.plan import plan_work
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.support.machine import cores
from h2osim.sweeps.sweeping import sweep
from h2osim.traces.trace import Trace

pytestmark = needs_compiler
EVERY = (*OUTPUT, *ATTENTION)


def long_but(quick: Sequence[Any], every: Sequence[Any]) -> list[Any]:
    """Every case; all but a few are for the long tests, since each text is compiled first."""
    return [
        case if case in quick else pytest.param(case, marks=pytest.mark.nightly) for case in every
    ]


def assert_close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-12)


def check_curve(job: Job, curve: Curve, names: tuple[str, ...] = EVERY) -> None:
    n = job.unit.n
    assert list(curve.errors.of) == list(names)
    for k in range(1, n + 1):
        expected = naive.run(Job(job.unit, job.configured, k, job.prompt_len), errors=names)
        assert int(curve.kept[k - 1]) == int(expected.kept.sum())
        for name in names:
            assert_close(curve.errors.of[name][k - 1], expected.errors.of[name])
    for name in names:
        assert curve.errors.of[name][-1] == 0 or n == job.prompt_len


def check_outcome(job: Job, found: Outcome, names: tuple[str, ...] = EVERY) -> None:
    expected = naive.run(job, errors=names)
    assert found.evicted_at.tolist() == expected.evicted_at.tolist()
    assert found.kept.tolist() == expected.kept.tolist()
    for name in names:
        assert_close(found.errors.of[name], expected.errors.of[name])
        assert_close(found.errors.steps[name], expected.errors.steps[name])
        lossless = expected.kept == job.unit.row_masses()[job.prompt_len :]
        assert (found.errors.steps[name][lossless] == 0).all()


@pytest.mark.parametrize(
    "text", long_but(["h2o:recent=3,sinks=2,scores=full", "lazy:window=4,scores=full"], STACK)
)
@examples(6)
@given(data=st.data())
def test_one_pass_gives_the_errors_of_every_budget(text: str, data: st.DataObject) -> None:
    configured = parse(text)
    trace = data.draw(valued_for(configured.policy, min_n=2, max_n=14, max_heads=1, max_layers=2))
    p = a_prompt(data, trace.n)
    jobs = [Job(unit, configured, 1, p) for unit in trace.units()[:2]]
    device = data.draw(st.sampled_from(devices()))
    for job, (curve, _) in zip(jobs, cuda.curves(jobs, (), device, errors=EVERY), strict=True):
        check_curve(job, curve)


@pytest.mark.parametrize("name", long_but(["h2o", "h2o-lmeval"], DIRECT))
@examples(4)
@given(data=st.data())
def test_replays_at_a_budget_have_the_errors_of_the_definition(
    name: str, data: st.DataObject
) -> None:
    trace = data.draw(valued_for(all_policies()[name], min_n=2, max_n=14, max_layers=1))
    share = data.draw(st.sampled_from(["head", "group", "layer"]))
    p, n = a_prompt(data, trace.n), trace.n
    budgets = data.draw(st.sets(st.integers(1, n), min_size=1, max_size=3))
    jobs = [Job(unit, parse(name), k, p) for unit in trace.units(share)[:2] for k in budgets]
    device = data.draw(st.sampled_from(devices()))
    for job, (found, _) in zip(jobs, cuda.direct(jobs, device, errors=EVERY), strict=True):
        check_outcome(job, found)


@pytest.mark.parametrize("name", long_but(["hides, lingers and looks back"], list(POLICIES)))
def test_tokens_that_are_hidden_or_linger(name: str) -> None:
    @examples(8)
    @given(valued(traces(min_n=3, max_n=14, max_layers=1)), st.integers(1, 5), st.data())
    def check(trace: Trace, window: int, data: st.DataObject) -> None:
        one = POLICIES[name].with_params(scores="full", window=window)
        p, k = a_prompt(data, trace.n), data.draw(st.integers(1, trace.n))
        jobs = [Job(unit, one, k, p) for unit in trace.units("layer")]
        for job, (found, _) in zip(jobs, cuda.direct(jobs, Shim(), errors=EVERY), strict=True):
            check_outcome(job, found)

    check()


def with_values(n: int, heads: int, size: int, seed: int = 0) -> Trace:
    """Random rows of `heads` heads, two of each KV head, and values of `size` coordinates."""
    rng = np.random.default_rng(seed)
    scores = np.tril(rng.gamma(0.3, size=(1, heads, n, n)) + 1e-3)
    scores[:, :, :, 1] = 0  # a token without mass
    scores /= scores.sum(-1, keepdims=True)
    v = rng.standard_normal((1, max(1, heads // 2), n, size))
    return Trace.from_scores(scores, group_size=min(2, heads), v=v)


SIZES = [
    (1, 1, 4), (4, 1, 4), (5, 1, 8), (8, 1, 8), (9, 2, 8), (16, 2, 8), (17, 4, 8), (32, 4, 8),
    (33, 4, 12),
]  # fmt: skip


@pytest.mark.parametrize("case", long_but([(5, 1, 8), (9, 2, 8), (33, 4, 12)], SIZES))
def test_values_of_any_size(case: tuple[int, int, int]) -> None:
    """Lanes of a step and coordinates of a lane, padded at every border."""
    size, lanes, dims = case
    shape = errors_shape(Shim(), 9, 2, size, 1)
    assert (shape["LANES"], shape["DIMS"]) == (lanes, dims)
    unit = with_values(9, 4, size).units()[1]
    job = Job(unit, parse("decay:recent=1,scores=full"), 1, 2)
    check_curve(job, cuda.curves([job], (), Shim(), errors=EVERY)[0][0])
    check_outcome(job, cuda.direct([job], Shim(), errors=EVERY)[0][0])


def test_no_values_are_needed_for_the_attention_error() -> None:
    unit = Trace.from_scores(np.tril(np.ones((1, 40, 40))) / np.arange(1, 41)[:, None]).units()[0]
    job = Job(unit, parse("recency"), 1, 1)
    check_curve(job, cuda.curves([job], (), Shim(), errors=ATTENTION)[0][0], ATTENTION)


BLOCKS = [(rows, blocks) for rows in (1, 3, 7, 32) for blocks in (1, 1000)]


@pytest.mark.parametrize("case", long_but([(3, 1), (32, 1000)], BLOCKS))
def test_blocks_of_rows_and_of_steps(case: tuple[int, int]) -> None:
    """Rows come a few at a time and are shared by several blocks, or one; from q and k as well."""
    rows, blocks = case
    rng = np.random.default_rng(5)
    q, k, v = (rng.standard_normal((1, heads, 19, 4)) for heads in (2, 1, 1))
    for trace in (Trace.from_qk(q, k, scale=1.0, v=v), with_values(37, 2, 3)):
        jobs = [
            Job(trace.units()[0], parse(text), 5, 6)
            for text in ("h2o:recent=2,scores=full", "lazy:window=4,scores=full")
        ]
        with (
            mock.patch.object(errors, "error_rows", lambda n: rows),
            mock.patch.object(errors, "BLOCKS", blocks),
            mock.patch.object(running, "block_rows", lambda n: 2 * rows + 1),
        ):
            curves = cuda.curves(jobs, (), Shim(), errors=EVERY)
            outcomes = cuda.direct(jobs, Shim(), errors=EVERY)
        for job, (curve, _), (outcome, _) in zip(jobs, curves, outcomes, strict=True):
            check_curve(job, curve)
            check_outcome(job, outcome)


def test_heads_that_share_a_cache_have_values_of_their_own() -> None:
    """Four heads of two KV heads in one unit; several units and configurations in a launch."""
    trace = with_values(21, 4, 3)
    texts = ["decay:gamma=0.5,recent=1,scores=full", "decay:gamma=1,recent=3,scores=full"]
    for share in ("layer", "head"):
        jobs = [Job(unit, parse(text), 4, 2) for text in texts for unit in trace.units(share)]
        for job, (curve, _) in zip(jobs, cuda.curves(jobs, (), Shim(1), errors=EVERY), strict=True):
            check_curve(job, curve)
        for job, (found, _) in zip(jobs, cuda.direct(jobs, Shim(1), errors=EVERY), strict=True):
            check_outcome(job, found)


def test_the_same_call_gives_the_same_bits_in_chunks_of_any_size() -> None:
    trace = with_values(30, 6, 5)
    jobs = [Job(unit, parse("tova:scores=full"), 1, 1) for unit in trace.units("head")]
    whole = cuda.curves(jobs, (), Shim(), errors=EVERY)
    with mock.patch.object(chunks, "PIECE", 1):
        for (one, _), (other, _) in zip(
            whole, cuda.curves(jobs, (), Shim(1), errors=EVERY), strict=True
        ):
            for name in EVERY:
                assert one.errors.of[name].tobytes() == other.errors.of[name].tobytes()


def test_what_has_no_mass_left_and_an_output_of_zero() -> None:
    scores = np.zeros((4, 4))
    scores[:, 0] = 1
    lost = Trace.from_scores(scores, v=np.ones((1, 4, 2)))
    scores = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0]])
    cancelled = Trace.from_scores(scores, v=np.array([[[1.0], [-1.0], [0.0]]]))
    for trace, p, expected in ((lost, 1, 2 / 3), (cancelled, 2, np.nan)):
        job = Job(trace.units()[0], parse("recency"), 1, p)
        curve = cuda.curves([job], (), Shim(), errors=OUTPUT)[0][0]
        outcome = cuda.direct([job], Shim(), errors=OUTPUT)[0][0]
        for found in (curve.errors.of["output_error"][0], outcome.errors.of["output_error"]):
            assert_close(found, expected)
        assert curve.errors.of["output_error"][-1] == 0


def test_layers_whose_values_differ_in_size() -> None:
    """Each is padded to the largest."""
    units = [with_values(12, 1, size).units()[0] for size in (3, 11)]
    device = Shim()
    outputs = Outputs(device, units, 1, EVERY, value_size(units[1:], EVERY), len(units))
    for rows in load_rows(device, units, 12, 0):
        outputs.read(rows)
    for unit, found in zip(units, outputs.power([0, 1])[0], strict=True):
        a = np.zeros((12, 12))
        for t in range(12):
            a[t, : t + 1] = unit.row(t) / unit.row(t).sum()
        assert_close(found, ((a @ unit.values()[0].astype(float))[1:] ** 2).sum())


def test_turns_without_mass() -> None:
    """All mass is on the oldest token and the newest: every depth between has lost the former."""
    scores = np.zeros((30, 30))
    scores[:, 0] = 0.25
    scores += np.diag(np.full(30, 0.75))
    v = np.random.default_rng(0).standard_normal((1, 30, 17))
    job = Job(Trace.from_scores(scores, v=v).units()[0], parse("recency"), 1, 1)
    check_curve(job, cuda.curves([job], (), Shim(), errors=EVERY)[0][0])


def test_rows_that_are_zero() -> None:
    """A row without any mass has nothing to lose."""
    bits = np.zeros((1, 1, 10), np.uint16)
    bits[0, 0, 0] = 0x3C00
    trace = Trace.from_packed(bits, v=np.ones((1, 1, 4, 2)))
    job = Job(trace.units()[0], parse("recency"), 1, 1)
    check_curve(job, cuda.curves([job], (), Shim(), errors=ATTENTION)[0][0], ATTENTION)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU is the shim."""
    gpus = (Shim(),)
    monkeypatch.setattr(cuda, "devices", lambda: gpus)
    monkeypatch.setattr(chunks, "devices", lambda: gpus)


@pytest.mark.usefixtures("a_gpu")
@pytest.mark.parametrize("measure", ["error", "attention-error"])
def test_the_whole_way(measure: str) -> None:
    """Replays and sweeps: one pass, budget by budget, and a policy that the CPU runs."""
    trace = with_values(24, 4, 3)
    texts = ["tova:scores=full", "h2o", "topk"]
    budgets: Any
    for budgets, steps, passes in (([1, 5, 24], True, 0), ("all", False, 2)):
        ours, theirs = (
            replay(trace, texts, budgets, measure=measure, step_errors=steps, engine=engine)
            for engine in ("cuda", "numba")
        )
        assert ours.engine.values.tolist() == ["cuda", "cuda", "numba"]
        assert int(ours.one_pass.sum()) == passes
        for name in theirs:
            assert_close(ours[name], theirs[name])
    ours, theirs = (
        sweep(trace, ",".join(texts), [3, 9], measure=measure, engine=engine)
        for engine in ("cuda", "numba")
    )
    for name in theirs:
        assert_close(ours[name], theirs[name])


@pytest.mark.usefixtures("a_gpu")
def test_auto_knows_that_errors_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = with_values(24, 1, 3)
    seconds = float(plan_work([trace], [parse("recency")], [1]).seconds.sum())
    monkeypatch.setattr(execute, "WORTH_A_GPU", 10 * seconds / cores())
    for measure, engine in (("recall", "numba"), ("attention-error", "numba"), ("error", "cuda")):
        assert replay(trace, "recency", 1, measure=measure).engine.item() == engine


@pytest.mark.usefixtures("a_gpu")
def test_compare_and_sweep_on_the_command_line(run: Run, tmp_path: Path) -> None:
    with_values(24, 2, 3).save(tmp_path / "t")
    words = [str(tmp_path / "t"), "--policies", "recency", "--budgets", "3", "--format", "json"]
    for command in ("compare", "sweep"):
        ours, theirs = (
            json.loads(run(command, *words, "--measure", "error", "--engine", engine).out)
            for engine in ("cuda", "numba")
        )
        assert_close(ours[0]["output_error"], theirs[0]["output_error"])


def test_a_learned_sink_is_refused() -> None:
    trace = with_values(6, 1, 2)
    with (
        mock.patch.object(type(trace), "layer_entry", lambda self, layer: {"sink": True}),
        pytest.raises(UserError, match="learned sink"),
    ):
        cuda.curves([Job(trace.units()[0], parse("recency"), 1, 1)], (), Shim(), errors=EVERY)


@examples(6)
@given(qk_traces(values=True, min_n=2, max_n=14, max_layers=1), st.data())
def test_rows_from_queries_and_keys(trace: Trace, data: st.DataObject) -> None:
    p = a_prompt(data, trace.n)
    one, k = parse("h2o:recent=2,scores=full"), min(3, trace.n)
    jobs = [Job(unit, one, k, p) for unit in trace.units("head")]
    for job, (curve, _) in zip(jobs, cuda.curves(jobs, (), Shim(), errors=EVERY), strict=True):
        check_curve(job, curve)
    for job, (found, _) in zip(jobs, cuda.direct(jobs, Shim(), errors=EVERY), strict=True):
        check_outcome(job, found)
