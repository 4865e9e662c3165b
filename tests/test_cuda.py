"""The CUDA engine: the text of its kernels, run on the CPU, gives what the naive engine gives.

`cuda_shim` runs the very text that a GPU runs, under the engine's own host code; decisions are
compared with ==. Where there is a GPU and CuPy, the same tests run on it.
"""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import (
    DIRECT,
    STACK,
    a_prompt,
    busy_unit,
    check_curves,
    check_direct,
    curves_by,
    devices,
    kernels,
    needs_compiler,
)
from cuda_shim import Shim
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import square
from strategies import examples, qk_traces, traces

from h2osim import cuda
from h2osim.cuda.bracket import brackets
from h2osim.cuda.kernels.depths import Depths
from h2osim.cuda.rows import load_rows
from h2osim.engines.request import Job
from h2osim.engines.stack import StackRun
from h2osim.optima.bracket import narrow
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace


@needs_compiler
@pytest.mark.parametrize("name", [*DIRECT, "tova:heads=max,when=every:2"])
@examples(8)
@given(data=st.data())
def test_direct_kernel_is_naive(name: str, data: st.DataObject) -> None:
    trace = data.draw(traces(norms=True, max_n=16, max_layers=1))
    configured = parse(name)
    share = data.draw(st.sampled_from(["head", "group", "layer"]))
    p, n = a_prompt(data, trace.n), trace.n
    budgets = data.draw(st.sets(st.integers(1, n), min_size=1, max_size=3))
    jobs = [Job(unit, configured, k, p) for unit in trace.units(share)[:2] for k in budgets]
    check_direct(data.draw(st.sampled_from(devices())), jobs)


@needs_compiler
@pytest.mark.parametrize("text", ["tova", "tova:heads=max", "h2o:heads=max"])
def test_the_heads_of_a_unit_count_by_their_sum_or_by_the_largest(text: str) -> None:
    # row 3, in sixteenths: sums 14, 1, 10, 7; largest 8, 1, 9, 6
    heads = [square((16,), (8, 8), row, last) for row, last in (
        ((6, 7, 3), (8, 1, 1, 6)), ((6, 0, 10), (6, 0, 9, 1))
    )]  # fmt: skip
    (unit,) = Trace.from_scores(np.array(heads)).units("layer")
    for device in devices():
        check_direct(device, [Job(unit, parse(text), 2, 1)])


@needs_compiler
@pytest.mark.parametrize("text", STACK)
@examples(8)
@given(data=st.data())
def test_kernels_of_curves_are_naive_at_every_budget(text: str, data: st.DataObject) -> None:
    trace = data.draw(traces(norms=True, max_n=16, max_heads=1, max_layers=2))
    jobs = [Job(unit, parse(text), 1, a_prompt(data, trace.n)) for unit in trace.units()[:1]]
    device = data.draw(st.sampled_from(devices()))
    kernel = data.draw(st.sampled_from(kernels(device, jobs)))
    check_curves(device, jobs, list(range(1, trace.n + 1)), 1, kernel)


@needs_compiler
@examples(8)
@given(data=st.data())
def test_configurations_that_share_a_block(data: st.DataObject) -> None:
    trace = data.draw(traces(max_n=14, max_heads=2, max_layers=1))
    p = a_prompt(data, trace.n)
    some = ["decay:gamma=0.5,recent=1,scores=full", "decay:gamma=1,recent=0,scores=full,sinks=1"]
    some += ["decay:gamma=0.9,recent=2,scores=full"]
    jobs = [Job(u, parse(text), 1, p) for u in trace.units("layer") for text in some]
    # in shared memory, and in device memory where there is too little of it
    device: cuda.Device = data.draw(st.sampled_from([*devices(), Shim(shared=64)]))
    kernel = data.draw(st.sampled_from(kernels(device, jobs)))
    check_curves(device, jobs, [1, trace.n], 2, kernel)


def check_large(
    device: cuda.Device, jobs: list[Job], budgets: list[int], together: int | None, kernel: type
) -> None:
    """A kernel against the numba stack engine, which the naive engine vouches for."""
    found = curves_by(kernel, device, jobs, budgets, together)
    for job, (curve, mass) in zip(jobs, found, strict=True):
        run = StackRun(job, budgets)
        for block in job.unit.blocks():
            run.feed(block)
        expected = run.result()
        assert curve.kept.tolist() == expected.kept.tolist()
        assert curve.held.tolist() == expected.held.tolist()
        assert curve.evicted_at.tolist() == expected.evicted_at.tolist()
        assert mass == int(run.masses.sum())


@needs_compiler
@examples(40)
@given(data=st.data())
def test_kernels_of_scores_are_the_stack_engine(data: st.DataObject) -> None:
    trace = data.draw(traces(max_n=70, max_heads=2, max_layers=1))
    n, p = trace.n, a_prompt(data, trace.n)
    texts = []
    gammas = st.sampled_from([None, 0.0, 0.5, 0.98, 1.0])
    all_h2o = data.draw(st.booleans())
    for _ in range(data.draw(st.integers(1, 3), label="configurations")):
        recent, sinks = (data.draw(st.integers(0, n + 1)) for _ in range(2))
        gamma = None if all_h2o else data.draw(gammas)
        name = "h2o:" if gamma is None else f"decay:gamma={gamma},"
        texts.append(f"{name}recent={recent},sinks={sinks},scores=full")
    jobs = [Job(u, parse(text), 1, p) for u in trace.units("layer") for text in texts]
    budgets = data.draw(st.sets(st.integers(1, n), max_size=4).map(sorted))
    device = data.draw(st.sampled_from(devices()))
    kernel = data.draw(st.sampled_from(kernels(device, jobs)))
    check_large(device, jobs, budgets, data.draw(st.integers(1, 2)), kernel)


@needs_compiler
@pytest.mark.parametrize("recent", [0, 3, 40])
@pytest.mark.parametrize("prompt", [pytest.param(1, marks=pytest.mark.nightly), 50])
@pytest.mark.parametrize("heads", [1, 3])
def test_kernels_where_much_moves(recent: int, prompt: int, heads: int) -> None:
    """Several lines, tokens that overtake one another in all of them, ties of infinite ranks."""
    unit = busy_unit(140, recent, heads)
    texts = [f"h2o:recent={recent},scores=full"]
    texts += [f"decay:gamma={gamma},recent={recent},scores=full" for gamma in (0.0, 0.9)]
    texts += [f"decay:recent={recent},sinks=3,scores=full", f"h2o-mean:recent={recent},scores=full"]
    texts += ["future"] if heads == 1 else []
    jobs = [Job(unit, parse(text), 1, prompt) for text in texts]
    for device in devices():
        for job in jobs:
            for kernel in kernels(device, [job]):
                check_large(device, [job], [], 1, kernel)
                check_large(device, [job], [1, 7, 60, 140], 1, kernel)
        check_large(device, jobs[1:3], [], 2, Depths)


@needs_compiler
def test_kernels_count_past_32_bits() -> None:
    """One token that gets all there is: 300 rows of 2^24 each."""
    scores = np.zeros((300, 300))
    scores[:, 0] = 1.0
    job = Job(Trace.from_scores(scores).units()[0], parse("h2o:recent=1,scores=full"), 1, 1)
    for device in devices():
        for kernel in kernels(device, [job]):
            check_large(device, [job], [1, 2, 300], 1, kernel)


@needs_compiler
def test_windows_of_any_size_share_a_launch() -> None:
    unit = busy_unit(90, 5)
    texts = [f"decay:gamma=0.9,recent={recent},scores=full" for recent in (0, 1, 30, 89, 200)]
    jobs = [Job(unit, parse(text), 1, 20) for text in texts]
    for device in devices():
        check_large(device, jobs, [3, 40], None, Depths)
    texts = [f"h2o:recent={r},sinks={s},scores=full" for r, s in ((0, 0), (70, 3), (5, 0), (99, 1))]
    jobs = [Job(unit, parse(text), 1, 20) for text in texts]
    for device in devices():
        for budgets in ([], [3, 40]):
            check_large(device, jobs, budgets, 3, Depths)


@needs_compiler
@examples(15)
@given(data=st.data())
def test_rows_from_queries_and_keys_have_the_bits_of_rows_py(data: st.DataObject) -> None:
    trace = data.draw(qk_traces(max_n=40, max_layers=2))
    units = trace.units()
    device = data.draw(st.sampled_from(devices()))
    block, lag = data.draw(st.integers(1, 16)), data.draw(st.integers(0, 5))
    theirs = [list(unit.blocks(block, lag)) for unit in units]
    for i, rows in enumerate(load_rows(device, units, block, lag)):
        bits, size = device.host(rows.bits), theirs[0][i].bits.size
        for u in range(len(units)):
            expected = theirs[u][i]
            assert (rows.start, rows.stop, rows.first) == (
                expected.start, expected.stop, expected.first,
            )  # fmt: skip
            assert bits[u * size : (u + 1) * size].tolist() == expected.bits.reshape(-1).tolist()


@needs_compiler
@examples(15)
@given(data=st.data())
def test_bounds_hold_the_optimum_and_prove_it(data: st.DataObject) -> None:
    trace = data.draw(traces(max_n=14, max_heads=2, max_layers=2))
    n, p = trace.n, a_prompt(data, trace.n)
    k = data.draw(st.integers(1, n), label="budget")
    units = trace.units("layer")
    device = data.draw(st.sampled_from(devices()))
    for unit, found in zip(units, brackets(units, k, p, 1e-3, 64, device), strict=True):
        exact = narrow(unit, k, p, 0.0)
        assert exact.lower == exact.upper
        assert found.lower <= exact.lower <= found.upper and found.whole == exact.whole
        # the schedule is feasible and keeps what it says; the prices prove what they say
        gone, kept, dual = found.evicted_at, 0, k * int(found.price.sum())
        first = min(max(k, p - 1), n - 1)
        worth, best = np.zeros(n, np.int64), np.zeros(n, np.int64)
        for t in range(p, n):
            row = unit.row(t)
            older = np.flatnonzero(gone[:t] >= t)
            assert len(older) <= max(k, 0) or t <= first
            kept += int(row[older].sum() + row[t])
            dual += int(row[t])
            worth[:t] += row[:t] - (found.price[t] if t > first else 0)
            best[:t] = worth[:t] if t <= first else np.maximum(best[:t], worth[:t])
        assert (kept, dual + int(best.sum())) == (found.lower, found.upper)
