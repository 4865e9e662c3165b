"""One pass for every budget gives exactly what a run for each budget gives (theorem T7)."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
from drawing import BUNDLED, can_be_inclusive, inclusive, runs_on, traces_for
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces

import h2osim
from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.parameters import shared
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays.plan import one_pass_pays
from h2osim.replays.replaying import replay
from h2osim.traces import unit
from h2osim.traces.trace import Trace

INCLUSIVE = [name for name, policy in sorted(all_policies().items()) if can_be_inclusive(policy)]

Case = tuple[Trace, Configured, int, str]


@st.composite
def cases(draw: st.DrawFn, name: str, traces: st.SearchStrategy[Trace]) -> Case:
    trace = draw(traces)
    share = draw(st.sampled_from(["group", "head", "layer"]))
    heads = max(len(one.heads) for one in trace.units(share))
    p = draw(st.just(1) | st.integers(1, trace.n - 1))
    return trace, draw(inclusive(all_policies()[name], heads)), p, share


def assert_one_pass_is_many_runs(case: Case) -> xarray.Dataset:
    trace, one, p, share = case
    each = replay(trace, one, range(1, trace.n + 1), prompt_len=p, share=share, step_recall=True)
    curve = replay(trace, one, "all", prompt_len=p, share=share, evictions=True)
    assert curve.one_pass.all() and not each.one_pass.any()
    for name in ("evicted_at", "held", "recall"):
        np.testing.assert_array_equal(curve[name].values, each[name].values, name)
    return curve


@pytest.mark.parametrize("name", INCLUSIVE)
def test_one_pass_is_a_run_for_each_budget(name: str) -> None:
    """Evictions, recall and keys held, at every budget; recall grows with the budget."""

    @examples(30)
    @given(cases(name, traces_for(all_policies()[name], min_n=2, max_n=16)))
    def check(case: Case) -> None:
        curve = assert_one_pass_is_many_runs(case)
        assert (curve.recall.diff("budget") >= 0).all()
        assert (curve.recall.isel(budget=-1) == 1).all()

    check()


@pytest.mark.parametrize("name", INCLUSIVE)
def test_rows_made_block_by_block_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @examples(8)
    @given(cases(name, qk_traces(values=True, min_n=2, max_n=16)), st.integers(1, 7))
    def check(case: Case, rows: int) -> None:
        monkeypatch.setattr(unit, "BLOCK_ROWS", rows)
        assert_one_pass_is_many_runs(case)

    check()


@pytest.mark.parametrize("name", INCLUSIVE)
def test_some_budgets_are_read_off_the_same_pass(name: str) -> None:
    """In the order asked for; the definition agrees."""

    @examples(8)
    @given(
        cases(name, traces_for(all_policies()[name], min_n=4, max_n=16)),
        st.lists(st.integers(1, 16), min_size=1, unique=True),
    )
    def check(case: Case, budgets: list[int]) -> None:
        trace, one, p, share = case
        budgets = [k for k in budgets if k <= trace.n] or [1]
        expected = replay(trace, one, budgets, prompt_len=p, share=share, engine="naive")
        found = replay(trace, one, budgets, prompt_len=p, share=share)
        assert bool(found.one_pass.all()) == one_pass_pays(budgets, trace.n)
        assert found.budget.values.tolist() == budgets
        for name in ("evicted_at", "held", "recall"):
            np.testing.assert_array_equal(found[name].values, expected[name].values, name)

    check()


@pytest.mark.parametrize("heads", [127, 128, 130])
def test_many_heads_that_all_attend_one_token(heads: int) -> None:
    """Their sum passes 2**31 at 128 heads; ranks and masses must not wrap around."""
    scores = np.zeros((heads, 4, 4))
    scores[:, :, 0] = 1
    trace = Trace.from_scores(scores, group_size=heads)
    assert trace.units()[0].row(3)[0] == heads * 2**24
    assert_one_pass_is_many_runs((trace, parse("h2o:recent=0,scores=full"), 1, "group"))
    naive = replay(trace, "h2o:recent=0,scores=full", "all", engine="naive", evictions=True)
    assert (naive.evicted_at[..., 0] == 4).all() and (naive.recall == 1).all()
    one_pass = replay(trace, "h2o:recent=0,scores=full", "all", evictions=True)
    for name in ("evicted_at", "held", "recall"):
        np.testing.assert_array_equal(one_pass[name], naive[name], name)


def sparse(n: int) -> Trace:
    scores = np.tril(np.random.default_rng(n).gamma(0.1, size=(1, 2, n, n)) + 1e-4)
    return Trace.from_scores(scores / scores.sum(-1, keepdims=True), group_size=2)


def every_fourth(k: int, size: int, t: int) -> int:
    return k if t % 4 == 0 else size


def by_score(score: float) -> float:
    return score


def test_tokens_that_wait_for_the_next_eviction_are_held() -> None:
    """A rule that evicts in every fourth step has up to three tokens beyond its budget."""
    rare = Policy(
        "rare", "", "", by_score, state=("score",), update=accumulate, keep=every_fourth,
        params=(shared("scores", "full"),), inclusive=True,
    )  # fmt: skip
    curve = assert_one_pass_is_many_runs((sparse(24), rare.with_params(), 1, "group"))
    assert curve.held.sel(budget=5).values.tolist() == [[[8]]]


def test_all_budgets_are_the_default_way_for_all() -> None:
    trace = sparse(60)
    found = replay(trace, ["h2o:recent=8,scores=full", "h2o", "tova:scores=full"], "all")
    assert found.one_pass.values.tolist() == [True, False, True]
    assert found.budget.values.tolist() == list(range(1, 61))
    assert "evicted_at" not in found  # n * n numbers a unit, only when asked for
    single = replay(trace, "h2o:recent=8,scores=full", 12)
    assert not single.one_pass.any()
    np.testing.assert_array_equal(single.recall.values, found.recall.sel(budget=[12])[:1])


def test_a_policy_outside_the_theorem_runs_budget_by_budget() -> None:
    trace = sparse(30)
    found = replay(trace, "h2o", "all", evictions=True)
    naive = replay(trace, "h2o", "all", evictions=True, engine="naive")
    assert not found.one_pass.any()
    for name in ("evicted_at", "held", "recall"):
        np.testing.assert_array_equal(found[name], naive[name])


def test_progress_of_a_pass_grows_to_the_total() -> None:
    calls: list[tuple[float, float]] = []
    replay(
        sparse(60),
        ["h2o:recent=8,scores=full", "h2o"],
        "all",
        progress=lambda done, total, _: calls.append((done, total)),
    )
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]


@pytest.mark.parametrize("name", BUNDLED)
def test_one_pass_over_a_real_trace(name: str) -> None:
    """Every inclusive policy at a sample of budgets, in the first and the last layer."""
    trace = h2osim.open_trace(name)
    layers = [trace.layers[0], trace.layers[-1]]
    texts = [
        one
        for one in INCLUSIVE
        if runs_on(all_policies()[one], trace)
    ]
    fixed: dict[str, str | int] = {"scores": "full", "recent": 32}
    chosen = []
    for one in texts:
        names = {param.name for param in all_policies()[one].params} & set(fixed)
        chosen.append(all_policies()[one].with_params(**{name: fixed[name] for name in names}))
    p = trace.prompt_len or trace.n // 4
    curve = replay(trace, chosen, "all", prompt_len=p, layers=layers, evictions=True)
    assert curve.one_pass.all()
    assert (curve.recall.diff("budget") >= 0).all()
    budgets = [1, 2, 5, 31, 32, 33, 77, p - 1, p, p + 1, trace.n // 2, trace.n - 1, trace.n]
    for part in (budgets[::3], budgets[1::3], budgets[2::3]):
        each = replay(trace, chosen, part, prompt_len=p, layers=layers, step_recall=True)
        assert not each.one_pass.any()
        for data in ("evicted_at", "held", "recall"):
            np.testing.assert_array_equal(curve[data].sel(budget=part), each[data], data)
