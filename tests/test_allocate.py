"""Splits of cache slots over units: the best one, and the rules it is compared with."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from h2osim import UserError, budgets_of, replay, synth
from h2osim.optima.allocating import RULES, allocate
from h2osim.optima.allocation_curves import BY, grid_of
from h2osim.optima.solving import optimum
from h2osim.optima.split_rules import adakv_of_scores, adakv_split, equal_split, pyramid_split
from h2osim.optima.splitting import best_split, concave_hull
from h2osim.replays.results import check
from h2osim.traces.trace import Trace


def every_split(curves: np.ndarray, slots: int, low: int, high: int) -> int:
    splits = itertools.product(range(low, high + 1), repeat=len(curves))
    return max(
        sum(int(curves[u, k]) for u, k in enumerate(split))
        for split in splits
        if sum(split) == slots
    )


@given(data=st.data(), count=st.integers(1, 4), n=st.integers(1, 6), concave=st.booleans())
@settings(max_examples=150, deadline=None)
def test_best_split(data: st.DataObject, count: int, n: int, concave: bool) -> None:
    gains = data.draw(
        st.lists(st.lists(st.integers(-3, 9), min_size=n + 1, max_size=n + 1), min_size=count,
                 max_size=count)
    )  # fmt: skip
    low = data.draw(st.integers(1, n))
    high = data.draw(st.integers(low, n))
    slots = data.draw(st.integers(count * low, count * high))
    steps = np.array(gains, np.int64)
    if concave:
        steps[:, 1:] = -np.sort(-steps[:, 1:], axis=1)
    curves = np.cumsum(steps, axis=1)
    expected = every_split(curves, slots, low, high)
    for method in ("auto", "dp", "hull"):
        split, limit = best_split(curves, slots, method, low, high)
        assert split.sum() == slots and ((split >= low) & (split <= high)).all()
        value = int(curves[np.arange(count), split].sum())
        assert value <= expected <= limit
        if concave or method != "hull":
            assert value == expected == limit


@given(st.lists(st.integers(-20, 20), min_size=2, max_size=20))
def test_concave_hull(values: list[int]) -> None:
    curve = np.array(values, np.int64)
    corners = concave_hull(curve)
    assert corners[0] == 1 and corners[-1] == len(curve) - 1
    hull = np.interp(np.arange(1, len(curve)), corners, curve[corners])
    # np.interp rounds; the integers stay below 2**53
    assert (hull >= curve[1:] - 1e-9).all()
    assert (np.diff(np.diff(curve[corners]) / np.diff(corners)) < 0).all()


@given(layers=st.integers(1, 6), per_layer=st.integers(1, 5), n=st.integers(1, 40), data=st.data())
@settings(deadline=None)
def test_rules_spend_everything(layers: int, per_layer: int, n: int, data: st.DataObject) -> None:
    count = layers * per_layer
    slots = data.draw(st.integers(count, count * n))
    for split in (
        equal_split(slots, np.full(count, n)),
        pyramid_split(slots, layers, per_layer, n),
        pyramid_split(slots, layers, per_layer, n, reverse=True),
        adakv_of_scores(np.arange(count * 3).reshape(count, 3), slots, n, 0.2, min(2, n)),
    ):
        assert split.sum() == slots and ((split >= 1) & (split <= n)).all()
    assert np.ptp(equal_split(slots, np.full(count, n))) <= 1


def test_pyramid_splits_what_lies_outside_the_window() -> None:
    """KVCache-Factory: from 2 (b - w) - min to min = (b - w) // beta in equal steps, w on top."""
    split = pyramid_split(4000 + 4 * 8, 4, 1, 10_000)
    low, high = 1000 // 20, 2000 - 1000 // 20
    steps = (high - low) // 3
    theirs = np.array([high - i * steps + 8 for i in range(4)])
    assert split.sum() == 4032 and np.abs(split - theirs).max() <= 1  # their step is rounded down
    assert split[-1] == 58  # the last layer holds the window and a beta-th of the rest
    upside = pyramid_split(4032, 4, 1, 10_000, reverse=True)
    assert upside.tolist() == split[::-1].tolist()
    # a first layer that has the whole text: the line is flatter
    flat = pyramid_split(4 * 108, 4, 2, 60)
    assert flat.sum() == 432 and flat.max() == 60 and flat[-1] == 48
    assert np.ptp(pyramid_split(4 * 8, 4, 1, 100)) == 0  # no more than windows


def theirs(scores: np.ndarray, base: int, window: int, floor: float) -> np.ndarray:
    """Ada-KV's capacities in the authors' words (FFY0/AdaKV): round, then the window on top."""
    heads, length = scores.shape
    top = np.argsort(-scores.ravel(), kind="stable")[: heads * base] // length
    count = np.bincount(top, minlength=heads)
    return np.round(count * (1 - floor) + int(base * floor)).astype(int) + window


@given(seed=st.integers(0, 200), base=st.integers(1, 200), window=st.integers(1, 9))
@settings(deadline=None)
def test_adakv_is_the_authors_up_to_their_rounding(seed: int, base: int, window: int) -> None:
    scores = np.random.default_rng(seed).pareto(1.5, (4, 400)) * [[1], [2], [4], [1]]
    found = adakv_of_scores((scores * 1e6).astype(np.int64), 4 * (base + window), 1000, 0.2, window)
    assert found.sum() == 4 * (base + window) and (found >= window).all()
    # they round each head and the floor, so that their total may miss the budget
    assert np.abs(found - theirs(scores, base, window, 0.2)).max() <= 2


def test_adakv_pools_and_leaves_the_window_out() -> None:
    n = 60
    scores = np.zeros((2, n, n))
    for t in range(n):
        scores[0, t, 0] = 1.0
        scores[1, t, : t + 1] = 1 / (t + 1)
    units = Trace.from_scores(scores).units("head")
    split = adakv_split(units, 40, 1, 50, floor=0.2, window=8, kernel=3)
    assert split.sum() == 40 and split[0] < split[1]
    # outside: 24 slots; the largest scores are token 0 of unit 0 and its neighbour, 22 of unit 1
    assert split.tolist() == [8 + round(0.8 * 2 + 0.2 * 12), 8 + round(0.8 * 22 + 0.2 * 12)]
    moved = scores.copy()
    moved[0, 42:50, 0], moved[0, 42:50, 45] = 0.5, 0.5  # attention inside the window is no score
    moved[0, 42:45, 0], moved[0, 42:45, 45] = 1.0, 0.0
    again = Trace.from_scores(moved).units("head")
    assert adakv_split(again, 40, 1, 50, window=8, kernel=3).tolist() == split.tolist()


def test_allocate_is_exact_for_mass() -> None:
    trace = synth("powerlaw", 64, seed=5)
    units = trace.units("head")
    slots = 10 * len(units)
    policies = ["optimum", "h2o:recent=2,scores=full", "streaming"]
    found = allocate(trace, slots, policies=policies, share="head")
    check(found)
    assert list(found["split"].values) == list(RULES[:-1])
    assert (found["slots"].sum(("layer", "unit")) == slots).all()
    best = found["overall"].sel(split="best")
    # quotients of integers by one whole, each rounded once
    assert (found["overall"] >= best - 1e-12).all()
    assert np.allclose(best, found["least"], atol=1e-15)
    assert (best >= best.sel(policy="optimum") - 1e-12).all()
    # the numbers are those of the optimum and of the replay at these budgets
    for name, run in (
        ("optimum", optimum(trace, [budgets_of(found, policy="optimum")[0]], share="head")),
        (
            "streaming",
            replay(trace, "streaming", budgets_of(found, policy="streaming"), share="head"),
        ),
    ):
        kept = int(run["kept"].sum())
        assert float(best.sel(policy=name, budget=10 / 64)) == 1 - kept / int(run["mass"].sum())
        slots_of = found["slots"].sel(policy=name, split="best").values[0]
        assert (run["slots"].values[:, :, 0] == slots_of).all()


VALUED = Trace.from_scores(
    *(lambda a: (a / a.sum(-1, keepdims=True),))(
        np.tril(np.random.default_rng(3).pareto(1.0, (2, 2, 24, 24)) + 1e-3)
    ),
    v=np.random.default_rng(4).normal(size=(2, 2, 24, 4)),
    v_norm2=None,
)


@pytest.mark.parametrize("by", [by for by in BY if by != "residual-error"])
def test_losses_are_those_of_a_replay_under_the_budgets(by: str) -> None:
    found = allocate(VALUED, 0.25, policies="h2o", by=by, prompt_len=5, points=24)
    check(found)
    budgets = budgets_of(found)[0]
    assert budgets.mean == 0.25 and found["slots"].sel(split="best").sum() == 4 * 6
    run = replay(VALUED, "h2o", budgets, prompt_len=5, measure=BY[by][0], step_recall=True)
    loss = found["loss"].sel(split="best").values[0, 0]
    known: dict[str, Any] = {"recall": 1 - run["recall"], "log-recall": -np.log(run["recall"])}
    expected = known[by] if by in known else run[BY[by][1]]
    if by != "value":
        # float64 of one kernel against another
        assert np.allclose(loss, expected.values[0, :, :, 0], rtol=1e-9)
    # no exchange of a slot between two units loses less: dp is exact
    best = found["overall"].sel(split="best").item()
    assert best <= found["overall"].min().item() + 1e-12
    bounded = allocate(
        VALUED, 0.25, policies="h2o", by=by, prompt_len=5, points=24, least=0.5, most=1.5
    )
    slots = bounded["slots"].sel(split="best").values
    assert slots.min() >= 3 and slots.max() <= 9 and slots.sum() == 24
    assert bounded["overall"].sel(split="best").item() >= best - 1e-12


def test_value_weighted_mass_is_that_of_the_optimum_by_value() -> None:
    """A policy that is the optimum's equal keeps no more of the weights than the optimum."""
    best = allocate(VALUED, 0.25, by="value", prompt_len=5)
    alone = optimum(VALUED, budgets_of(best), weights="value", prompt_len=5)
    lost = 1 - int(alone["kept"].sum()) / int(alone["mass"].sum())
    assert best["overall"].sel(split="best").item() == lost
    future = allocate(VALUED, 0.25, by="value", prompt_len=5, policies="future", points=24)
    assert future["overall"].sel(split="best").item() >= lost


def test_several_traces_have_one_split_and_their_own_oracles() -> None:
    texts = [synth("powerlaw", 48, seed=s, heads=4, layers=2) for s in (1, 2)]
    longer = synth("powerlaw", 70, seed=3, heads=4, layers=2)
    found = allocate(
        [*texts, longer], [0.25, 0.1], policies="h2o:scores=full,recent=2", by="recall"
    )
    check(found)
    share = found["slots_share"].sel(split="best")
    assert np.ptp(share.values, axis=0).max() == 0
    # their mean is exact up to float64 sums
    assert np.allclose(share.mean(("layer", "unit")), [[0.25, 0.1]], atol=1e-12)
    total = found["slots"].sum(("layer", "unit"))
    for o, n in enumerate((48, 48, 70)):
        for b, each in enumerate((0.25, 0.1)):
            assert (total.isel(trace=o, budget=b) == 8 * int(each * n)).all()
    overall = found["overall"].mean("trace")
    assert (overall.sel(split="oracle") <= overall.sel(split="best") + 1e-12).all()
    assert (found["overall"].sel(split="oracle") >= found["least"] - 1e-12).all()
    alone = allocate(texts[0], 0.25, policies="h2o:scores=full,recent=2")
    oracle = found["slots"].sel(split="oracle", budget=0.25).isel(trace=0)
    assert (oracle.values == alone["slots"].sel(split="best", budget=0.25).values).all()
    mean = budgets_of(found, "oracle")[0].budgets
    assert np.allclose(mean, found["slots_share"].sel(split="oracle")[:, 0, 0].mean("trace"))


@given(m=st.integers(2, 3000), points=st.integers(2, 80))
def test_a_grid_has_both_ends(m: int, points: int) -> None:
    grid = grid_of(m, points)
    assert (
        grid[0] == 1 and grid[-1] == m and grid == sorted(set(grid)) and len(grid) <= max(2, points)
    )


def test_mistakes() -> None:
    trace = synth("powerlaw", 64, seed=0)
    count = len(trace.units())
    longer = synth("powerlaw", 65, seed=0)
    for arguments, options, said in (
        ((trace, count - 1), {}, "total .*expected"),
        ((trace, count * 64 + 1), {}, "total .*expected"),
        ((trace, [0.1, 0.1]), {}, "each once"),
        ((trace, 1.5), {}, "total: budget 1.5"),
        ((trace, "50%prompt"), {}, "expected a share of the text"),
        (([trace, longer], count), {}, "several lengths"),
        ((trace, 0.1), {"method": "guess"}, "method"),
        ((trace, 0.1), {"floor": 2.0}, "floor"),
        ((trace, 0.1), {"least": 2.0}, "least 2"),
        ((trace, 0.1), {"by": "luck"}, "by 'luck'"),
        ((trace, 0.1), {"by": "attention-error"}, "the offline optimum keeps mass"),
        ((trace, 0.1), {"by": "error", "policies": "h2o"}, "no values"),
        ((trace, 0.1), {"policies": ["h2o", "h2o"]}, "each once"),
    ):
        with pytest.raises(UserError, match=said):
            allocate(*arguments, **options)
    with pytest.raises(UserError, match="name one policy"):
        budgets_of(allocate(trace, 0.1, policies=["optimum", "tova"]))
    with pytest.raises(ValueError, match="slots"):
        best_split(np.zeros((2, 4), np.int64), 1)
