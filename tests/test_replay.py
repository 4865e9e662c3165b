"""The public replay: what goes in, what comes out, and what holds for every policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import xarray
from drawing import configured, traces_for
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import examples, traces, turned
from trace_cases import random_trace

import h2osim
from h2osim.policies.parameters import resolve_window
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

POLICIES = sorted(all_policies())


SMALL = random_trace(40, heads=4, group_size=2)


def fails(policies: Any, budgets: Any, *parts: str, trace: Trace = SMALL, **more: Any) -> None:
    """One line that has all of these in it."""
    with pytest.raises(UserError) as error:
        replay(trace, policies, budgets, **more)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# --- what comes out -------------------------------------------------------------------------


def test_dimensions_and_coordinates() -> None:
    found = h2osim.replay(
        SMALL, ["h2o:recent=4", "tova"], [8, 0.1], prompt_len=10, engine="naive", step_recall=True
    )
    assert isinstance(found, xarray.Dataset)
    assert found.recall.dims == ("policy", "layer", "unit", "budget")
    assert found.recall.dtype == np.float64
    assert found.held.dims == found.recall.dims
    assert found.policy.values.tolist() == ["h2o:recent=4", "tova"]
    assert found.layer.values.tolist() == [0, 1]
    assert found.unit.values.tolist() == [0, 1]
    assert found.budget.values.tolist() == [8, 4]
    assert found.fraction.values.tolist() == [0.2, 0.1]
    assert found.step_recall.dims == (*found.recall.dims, "step")
    assert found.step.values.tolist() == list(range(10, 40))
    assert found.evicted_at.dims == (*found.recall.dims, "token")
    assert found.evicted_at.sizes["token"] == 40
    assert {"n": 40, "prompt_len": 10, "share": "group"}.items() <= found.attrs.items()


def test_layers_are_the_models_own_and_can_be_chosen() -> None:
    scores = np.tril(np.ones((3, 1, 4, 4)))
    scores /= scores.sum(-1, keepdims=True)
    trace = Trace.from_scores(scores, layers=[3, 9, 16])
    assert replay(trace, "h2o", 2).layer.values.tolist() == [3, 9, 16]
    # in the trace's order, whatever the order asked for
    assert replay(trace, "h2o", 2, layers=[16, 3]).layer.values.tolist() == [3, 16]
    fails("h2o", 2, "layer 4", "3, 9, 16", trace=trace, layers=[3, 4])
    fails("h2o", 2, "layer (none)", trace=trace, layers=[])


def test_each_way_of_sharing_has_its_units() -> None:
    units = {share: replay(SMALL, "h2o", 4, share=share) for share in ("head", "group", "layer")}
    assert {share: found.sizes["unit"] for share, found in units.items()} == {
        "head": 4,
        "group": 2,
        "layer": 1,
    }
    fails("h2o", 4, "'all'", "head, group, layer", share="all")
    # without a group size every head has a cache of its own
    assert replay(random_trace(heads=4), "h2o", 4).sizes["unit"] == 4


def test_only_what_is_asked_for_is_returned() -> None:
    assert set(replay(SMALL, "h2o", 4).data_vars) == {
        "recall", "kept", "mass", "held", "evicted_at"
    }  # fmt: skip
    assert set(replay(SMALL, "h2o", 4, evictions=False).data_vars) == {
        "recall", "kept", "mass", "held"
    }  # fmt: skip
    assert "step_recall" in replay(SMALL, "h2o", 4, step_recall=True)


def test_policies_may_be_text_or_objects_one_or_many() -> None:
    texts = ["h2o", "decay:gamma=0.5", "tova"]
    objects: list[Any] = [
        all_policies()["h2o"],
        all_policies()["decay"].with_params(gamma=0.5),
        parse("tova"),
    ]
    xarray.testing.assert_identical(replay(SMALL, texts, 4), replay(SMALL, objects, 4))
    one = replay(SMALL, texts[1], 4)
    xarray.testing.assert_identical(one, replay(SMALL, texts, 4).isel(policy=[1]))


# --- budgets, prompts, engines --------------------------------------------------------------


@pytest.mark.parametrize(
    ("budgets", "expected"),
    [
        (7, [7]),
        ([7, 3], [7, 3]),
        (0.1, [4]),
        ([0.1, 4, 4, 0.12], [4]),  # each budget once
        (0.29, [11]),
        (0.001, [1]),  # never below a token
        (1.0, [40]),
        (1, [1]),
        (np.array([5, 6]), [5, 6]),
        (np.array([0.5, 0.25]), [20, 10]),
        ((np.int32(9), np.float32(0.5)), [9, 20]),
    ],
)
def test_budgets_are_tokens_or_fractions(budgets: Any, expected: list[int]) -> None:
    assert replay(SMALL, "recency", budgets).budget.values.tolist() == expected


@pytest.mark.parametrize(
    "budget", [0, -1, 41, 1.5, 64.0, 0.0, -0.1, float("nan"), float("inf"), True, "8", None]
)
def test_other_budgets_are_refused(budget: Any) -> None:
    fails("recency", [budget], "budget")
    fails("recency", [4, budget], "budget")


def test_something_must_be_asked_for() -> None:
    fails("recency", [], "no budget given")
    fails([], 4, "no policy given")
    fails(["h2o", "tova", "h2o"], 4, "each may be given once")
    fails("h20", 4, "did you mean h2o")
    fails("h2o", 4, "unknown engine 'fast'", "naive, numba", engine="fast")
    fails("h2o", "some", "'some'", "'all'")


def test_decoding_starts_where_asked_or_where_the_trace_says() -> None:
    generated = random_trace(40, prompt_len=25)
    assert replay(SMALL, "h2o", 4).prompt_len == 1
    assert replay(generated, "h2o", 4).prompt_len == 25
    assert replay(generated, "h2o", 4, prompt_len=3).prompt_len == 3
    assert replay(SMALL, "h2o", 4, prompt_len=39).prompt_len == 39
    for wrong in (0, -1, 40, 41, True):
        fails("h2o", 4, "prompt length", "1 to 39", prompt_len=wrong)


def test_where_nothing_is_decoded_there_is_no_recall() -> None:
    alone = Trace.from_scores(np.ones((1, 1)))
    all_prompt = random_trace(40, prompt_len=40)
    for engine in ("naive", "numba"):
        assert np.isnan(replay(alone, "h2o", 1, engine=engine).recall.values).all()
        found = replay(all_prompt, "recency", 4, engine=engine)
        assert np.isnan(found.recall.values).all()
        # the prompt's end is cut all the same
        assert (found.evicted_at.values[..., :36] == 39).all()
        assert (found.evicted_at.values[..., 36:] == 40).all()


def test_what_a_policy_needs_must_be_in_the_trace() -> None:
    fails("vatp", 4, "value norms", "h2osim record", "--values")


def test_broken_rows_are_refused() -> None:
    bits = np.full((1, 1, 6), 0x3C00, np.uint16)  # rows of ones: 1, 2, 3
    fails("h2o", 1, "row 1", trace=Trace.from_packed(bits))


# --- what holds for every policy ------------------------------------------------------------


@given(traces(min_n=2), st.integers(1, 24), st.sampled_from(["head", "group", "layer"]))
def test_full_loses_nothing(trace: Trace, p: int, share: str) -> None:
    p = min(p, trace.n - 1)
    found = replay(trace, "full", 1, prompt_len=p, share=share, engine="naive", step_recall=True)
    assert (found.recall == 1).all()
    assert (found.step_recall == 1).all()
    assert (found.evicted_at == trace.n).all()
    assert (found.held == trace.n - 1).all()


@pytest.mark.parametrize("name", POLICIES)
def test_recall_is_the_mass_of_the_tokens_that_are_not_evicted(name: str) -> None:
    """And with it: what is gone stays gone, at most k are held, no step beats its best tokens."""
    policy = all_policies()[name]

    @examples(15)
    @given(traces_for(policy, min_n=2), configured(policy), st.data())
    def check(trace: Trace, one: Any, data: st.DataObject) -> None:
        k = data.draw(st.integers(1, trace.n), "budget")
        p = data.draw(st.just(1) | st.integers(1, trace.n - 1), "prompt_len")
        share = data.draw(st.sampled_from(["head", "group", "layer"]), "share")
        found = replay(
            trace, one, k, prompt_len=p, share=share, engine="naive", step_recall=True
        ).isel(policy=0, budget=0)
        for unit in trace.units(share):
            got = found.sel(layer=unit.layer, unit=unit.index)
            left, held = got.evicted_at.values, int(got.held)
            assert ((np.arange(trace.n) <= left) & (left <= trace.n)).all()
            assert (left >= min(p - 1, trace.n)).all()  # a prompt is kept whole to its end
            kept, most = [], 0
            for t in range(p, trace.n):
                row = unit.row(t)
                attended = np.flatnonzero(left[:t] >= t)
                most = max(most, len(attended))
                kept.append(int(row[attended].sum() + row[t]))
                best = np.sort(row[:t])[::-1][:held].sum() + row[t]
                assert round(float(got.step_recall[t - p]) * int(row.sum())) <= best
                if one.within_budget() and not policy.readmits:
                    stays = np.count_nonzero(left[: t + 1] > t)
                    assert stays <= k
            mass = np.array([int(unit.row(t).sum()) for t in range(p, trace.n)])
            if one.within_budget():
                assert held <= k
            if policy.visible or policy.readmits:
                continue  # attends less, or other tokens, than it holds
            assert held == most
            np.testing.assert_array_equal(got.step_recall, np.array(kept) / mass)
            assert float(got.recall) == sum(kept) / int(mass.sum())

    check()


PROTECTING = [
    name
    for name, policy in sorted(all_policies().items())
    if {param.name for param in policy.params} & {"sinks", "recent"}
]


@pytest.mark.parametrize("name", PROTECTING)
def test_sinks_and_the_recent_window_are_never_evicted(name: str) -> None:
    """Where the budget has room for them; a window is a number of the newest tokens."""
    policy = all_policies()[name]
    params = {param.name for param in policy.params}
    chosen: dict[str, Any] = {"sinks": 2, "recent": 3, "window": 3}
    # RoCo protects as many as `robust` has room for; Scissorhands cuts to half of the budget
    chosen |= {"robust": 0.5}
    one = policy.with_params(**{name: chosen[name] for name in chosen if name in params})

    @examples(15)
    @given(traces_for(policy, min_n=8), st.integers(12, 16), st.integers(1, 20))
    def check(trace: Trace, k: int, p: int) -> None:
        k, p = min(k, trace.n), min(p, trace.n - 1)
        assume(k >= 12)
        left = replay(trace, one, k, prompt_len=p, engine="naive").evicted_at.values
        if "sinks" in params:
            assert (left[..., :2] == trace.n).all()
        if "recent" in params:
            alive = left - np.arange(trace.n)
            assert ((alive >= 3) | (left == trace.n)).all()

    check()


def test_streaming_keeps_its_sinks_for_ever() -> None:
    """A cache stored in another order than the text's must not lose them after some steps."""
    trace = random_trace(layers=1, heads=1, n=300)
    for p in (1, 100):
        found = replay(trace, "streaming:sinks=4", 16, prompt_len=p).isel(policy=0, budget=0)
        left = found.evicted_at.values[0, 0]
        assert (left[:4] == 300).all()
        assert (left[-12:] == 300).all()
        np.testing.assert_array_equal(left[4:-12], np.maximum(np.arange(4, 288) + 12, p - 1))


@pytest.mark.parametrize("text", ["tova", "h2o:recent=0", "decay:recent=0", "h2o-mean:recent=0"])
def test_among_equals_the_oldest_goes(text: str) -> None:
    """All attention is on the first token, the others tie: a window beside it."""
    n = 24
    rows = np.zeros((n, n))
    rows[:, 0] = 1
    for engine in ("naive", "numba"):
        left = replay(Trace.from_scores(rows), text, 5, engine=engine).evicted_at.values.ravel()
        assert left.tolist() == [n, *(min(j + 4, n) for j in range(1, n))]


@pytest.mark.parametrize("name", POLICIES)
def test_a_replay_is_the_same_every_time(name: str) -> None:
    rng = np.random.default_rng(0)
    q_plain = rng.standard_normal((1, 2, 30, 4))
    k, v = rng.standard_normal((2, 1, 1, 30, 4))
    norms = np.ones((1, 2, 30))
    trace = Trace.from_qk(
        turned(q_plain), turned(k), v=v, q_plain=q_plain, wv_norm1=norms, scale=0.5
    )
    first, second = (replay(trace, name, [3, 8], prompt_len=10, engine="naive") for _ in range(2))
    xarray.testing.assert_identical(first, second)


def test_a_share_of_the_budget_is_the_same_as_its_tokens() -> None:
    for k in (5, 7, 10):
        recent = resolve_window(0.3, k)
        both = replay(SMALL, ["h2o:recent=0.3", f"h2o:recent={recent}"], k, engine="naive")
        assert (both.evicted_at[0] == both.evicted_at[1]).all()
