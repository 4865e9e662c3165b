"""The direct kernel under policies that no registered one is like, and jobs that share a launch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_shim import COMPILER, Shim
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, traces

from h2osim import cuda
from h2osim.cuda import run
from h2osim.engines import naive
from h2osim.engines.request import Job
from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def every_third(pos: int, t: int) -> bool:
    """A token is hidden in every third step of its own."""
    return (pos + t) % 3 != 0 or pos == t


def remember(score: float, old: float, a: float, a_old: float) -> tuple[float, float]:
    """What it got now and, with half the weight, `window` steps ago; and the sum of the latter."""
    return 0.5 * score + a - 0.25 * a_old, old + a_old


def by_both(score: float, old: float) -> float:
    return score + 0.125 * old


def long_gone(window: int) -> int:
    return window


def looking_back(**more: Any) -> Policy:
    """A policy that looks back `window` rows, and whatever else."""
    return Policy(
        name="mine", summary="", source="", state=("score", "old"), update=remember, rank=by_both,
        params=(shared("window", 2), shared("scores", "cached")), lag="window", **more,
    )  # fmt: skip


POLICIES = {
    "looks back": looking_back(),
    "hides and looks back": looking_back(visible=every_third),
    "lingers and looks back": looking_back(linger=long_gone),
    "hides, lingers and looks back": looking_back(visible=every_third, linger=long_gone),
}


def check_direct(jobs: list[Job]) -> None:
    for job, (found, _) in zip(jobs, cuda.direct(jobs, Shim()), strict=True):
        expected = naive.run(job)
        assert found.evicted_at.tolist() == expected.evicted_at.tolist()
        assert found.kept.tolist() == expected.kept.tolist()
        assert found.held == expected.held


@pytest.mark.parametrize("name", POLICIES)
def test_policies_that_do_several_unusual_things(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @examples(25)
    @given(
        traces(min_n=3, max_n=14, max_layers=1), st.sampled_from(["full", "cached"]),
        st.integers(1, 5), st.integers(1, 6), st.data(),
    )  # fmt: skip
    def check(trace: Trace, scores: str, window: int, rows: int, data: st.DataObject) -> None:
        monkeypatch.setattr(run, "block_rows", lambda n: rows)
        one = POLICIES[name].with_params(scores=scores, window=window)
        p = data.draw(st.just(1) | st.integers(1, trace.n - 1))
        units = trace.units("layer")
        check_direct([Job(unit, one, data.draw(st.integers(1, trace.n)), p) for unit in units])

    check()


def random_rows(n: int, seed: int = 0) -> np.ndarray:
    """Attention [1, 2, n, n] of two heads in which little is equal."""
    scores = np.tril(np.random.default_rng(seed).gamma(0.3, size=(1, 2, n, n)) + 1e-3)
    return scores / scores.sum(-1, keepdims=True)


def test_jobs_that_look_back_by_different_numbers_of_rows_share_a_launch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows made on the device come a few at a time, with as many older ones as any job asks for."""
    monkeypatch.setattr(run, "block_rows", lambda n: 4)
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 2, 30, 4)).astype(np.float16)
    unit = Trace.from_qk(q, k, scale=0.5).units("layer")[0]
    for sizes in ((1, 9), (9, 1)):
        ones = [POLICIES["looks back"].with_params(window=window) for window in sizes]
        check_direct([Job(unit, one, 4, 1) for one in ones])


def test_full_and_cached_rows_share_a_launch() -> None:
    """A row is renormalised over what is cached only for the job that observes it so."""
    unit = Trace.from_scores(random_rows(30)).units("layer")[0]
    text = "decay:gamma=0.5,recent=1,scores="
    jobs = [Job(unit, parse(text + scores), 6, 1) for scores in ("full", "cached")]
    assert len({tuple(naive.run(job).evicted_at.tolist()) for job in jobs}) == 2
    check_direct(jobs)


def test_units_with_inputs_of_their_own_share_a_launch() -> None:
    """Value norms of the second unit follow those of the first in one array."""
    norms = np.random.default_rng(1).gamma(0.3, size=(1, 2, 30))
    trace = Trace.from_scores(random_rows(30), v_norm1=norms, group_size=1)
    jobs = [Job(unit, parse("vatp:recent=2,sinks=0"), 6, 1) for unit in trace.units("head")]
    check_direct(jobs)
