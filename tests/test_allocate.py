"""Splits of cache slots over units: the best one, and the rules it is compared with."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from h2osim import UserError, replay, synth
from h2osim.optima.allocating import (
    RULES,
    adakv_split,
    allocate,
    best_split,
    concave_hull,
    equal_split,
    pyramid_split,
)
from h2osim.optima.solving import optimum
from h2osim.traces.trace import Trace


def every_split(curves: np.ndarray, slots: int) -> int:
    count, n = curves.shape[0], curves.shape[1] - 1
    splits = itertools.product(range(1, n + 1), repeat=count)
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
    slots = data.draw(st.integers(count, count * n))
    steps = np.array(gains, np.int64)
    if concave:
        steps[:, 1:] = -np.sort(-steps[:, 1:], axis=1)
    curves = np.cumsum(steps, axis=1)
    expected = every_split(curves, slots)
    for method in ("auto", "dp", "hull"):
        split, limit = best_split(curves, slots, method)
        assert split.sum() == slots and ((split >= 1) & (split <= n)).all()
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
    ):
        assert split.sum() == slots and ((split >= 1) & (split <= n)).all()
    assert np.ptp(equal_split(slots, np.full(count, n))) <= 1


def test_pyramid() -> None:
    split = pyramid_split(4000, 4, 1, 10_000, beta=20.0)
    assert split.tolist() == [1950, 1317, 683, 50]


def test_adakv_gives_more_where_scores_are_spread() -> None:
    n = 40
    scores = np.zeros((2, n, n))
    for t in range(n):
        scores[0, t, 0] = 1.0
        scores[1, t, : t + 1] = 1 / (t + 1)
    trace = Trace.from_scores(scores)
    split = adakv_split(trace.units("head"), 20, 1, 30, floor=0.2, window=8)
    assert split.sum() == 20 and split[0] < split[1] and split[0] >= 2


def test_allocate() -> None:
    trace = synth("powerlaw", 64, seed=5)
    units = trace.units("head")
    slots = 10 * len(units)
    found = allocate(trace, slots, policies=["h2o:recent=2,scores=full", "streaming"], share="head")
    assert list(found["split"].values) == list(RULES)
    assert (found["slots"].sum(("layer", "unit")) == slots).all()
    best = found["overall"].sel(split="best")
    # two quotients of integers by one whole, each rounded once
    assert (found["overall"] <= best + 1e-12).all()
    assert np.allclose(best.sel(policy="optimum"), found["upper"].sel(policy="optimum"), atol=0)
    # as above
    assert (best <= found["upper"] + 1e-12).all()
    # as above
    assert (found["overall"] <= found["overall"].sel(policy="optimum") + 1e-12).all()
    # the numbers are those of the optimum and of the replay at these budgets
    equal = found.sel(split="equal")
    alone = optimum(trace, [10], share="head")["recall"].isel(budget=0)
    assert np.array_equal(equal["recall"].sel(policy="optimum").values, alone.values)
    run = replay(trace, "streaming", [10], share="head")["recall"].isel(policy=0, budget=0)
    assert np.array_equal(equal["recall"].sel(policy="streaming").values, run.values)


def test_mistakes() -> None:
    trace = synth("powerlaw", 64, seed=0)
    count = len(trace.units())
    with pytest.raises(UserError, match="slots"):
        allocate(trace, count - 1)
    with pytest.raises(UserError, match="slots"):
        allocate(trace, count * 64 + 1)
    with pytest.raises(UserError, match="method"):
        allocate(trace, count, method="guess")
    with pytest.raises(UserError, match="floor"):
        allocate(trace, count, floor=2.0)
    with pytest.raises(ValueError, match="slots"):
        best_split(np.zeros((2, 4), np.int64), 1)
