"""Units, policies and comparisons for tests of the CUDA engine."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from cuda_shim import COMPILER, Shim
from hypothesis import strategies as st

from h2osim import cuda
from h2osim.cuda import run
from h2osim.engines import naive
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

GPU = cuda.available()
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
DIRECT = sorted(n for n, p in all_policies().items() if not cuda.refusal(parse(n), 1))
STACK = [
    "h2o:recent=0,scores=full", "h2o:recent=3,sinks=2,scores=full", "h2o:recent=2,when=prompt",
    "decay:recent=1,scores=full", "tova:scores=full", "recency", "streaming:sinks=2", "full",
    "lazy:window=4,scores=full", "future", "random", "h2o-mean:recent=2,scores=full", "h2o-alg1",
    "vatp:recent=2,scores=full,sinks=1", "two-speed:recent=2,scores=full,value=0.5,join=max",
]  # fmt: skip


def devices() -> list[cuda.Device]:
    """The shim, its threads in either order, and the GPU if there is one."""
    return [Shim(0), Shim(1), *(cuda.devices()[:1] if GPU else ())]


def a_prompt(data: st.DataObject, n: int) -> int:
    return data.draw(st.integers(1, max(1, n - 1)), label="prompt")


def check_direct(device: cuda.Device, jobs: list[Job]) -> None:
    for job, (found, masses) in zip(jobs, cuda.direct(jobs, device), strict=True):
        expected = naive.run(job)
        assert found.kept.tolist() == expected.kept.tolist()
        assert found.evicted_at.tolist() == expected.evicted_at.tolist()
        assert found.held == expected.held
        assert masses.tolist() == job.unit.row_masses()[job.prompt_len :].tolist()


def kernels(device: cuda.Device, jobs: list[Job]) -> list[type]:
    """Every kernel for all budgets that can run all of the jobs."""
    return [one for one in run.KERNELS if all(one.fits(device, job) for job in jobs)]


def curves_by(
    kernel: type, device: cuda.Device, jobs: list[Job], budgets: list[int], together: int | None
) -> list[tuple[Curve, int]]:
    with mock.patch.object(run, "KERNELS", (kernel,)):
        return cuda.curves(jobs, budgets, device, together=together)


def check_curves(
    device: cuda.Device, jobs: list[Job], budgets: list[int], together: int, kernel: type
) -> None:
    found = curves_by(kernel, device, jobs, budgets, together)
    for job, (curve, mass) in zip(jobs, found, strict=True):
        assert mass == int(job.unit.row_masses()[job.prompt_len :].sum())
        for b, k in enumerate(budgets):
            expected = naive.run(Job(job.unit, job.configured, k, job.prompt_len))
            assert int(curve.kept[k - 1]) == int(expected.kept.sum())
            assert int(curve.held[k - 1]) == expected.held
            assert curve.evicted_at[b].tolist() == expected.evicted_at.tolist()


def busy_unit(n: int, seed: int, heads: int = 1) -> Unit:
    """Rows of few entries, so that tokens overtake one another all the time."""
    rng = np.random.default_rng(seed)
    scores = np.zeros((1, heads, n, n))
    for h in range(heads):
        for t in range(n):
            np.add.at(scores[0, h, t], rng.integers(max(0, t - 90), t + 1, 4), 0.25)
    return Trace.from_scores(scores).units("layer")[0]
