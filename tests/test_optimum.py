"""The offline optimum: its solvers, and everything else that can solve it on small units."""

from __future__ import annotations

import dataclasses
import itertools
from functools import cache

import numpy as np
import pytest
from assignment_oracle import least_losses
from drawing import runs_on
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog
from strategies import examples, traces

from h2osim import Trace, UserError, open_trace, replay
from h2osim.attention.fixed_point import UNIT
from h2osim.optima import bracket, solving
from h2osim.optima.bracket import narrow
from h2osim.optima.exact import optimal_curve, running_cost
from h2osim.optima.solving import one_by_one, optimum
from h2osim.policies.registry import all_policies
from h2osim.traces.synthetic import synth
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]
KINDS = ("dirichlet", "sixteenths", "sparse", "powers", "adversarial", "real")


@cache
def real_rows() -> NDArray[np.float64]:
    """The rows of the first 300 tokens of the bundled trace code, of each of its heads."""
    trace = open_trace("code")
    found = np.zeros((len(trace.units("head")), 300, 300))
    for unit, square in zip(trace.units("head"), found, strict=True):
        for t in range(300):
            square[t, : t + 1] = unit.row(t) * UNIT
    return found


def make(n: int, kind: str, seed: int, heads: int = 1) -> Unit:
    rng = np.random.default_rng(seed)
    scores = np.zeros((heads, n, n))
    for h, t in itertools.product(range(heads), range(n)):
        if kind == "dirichlet":
            row = rng.dirichlet(np.full(t + 1, 0.3))
        elif kind == "sixteenths":
            row = rng.multinomial(16, np.full(t + 1, 1 / (t + 1))) / 16
        elif kind == "sparse":
            row = np.zeros(t + 1)
            np.add.at(row, rng.integers(0, t + 1, 2), 0.5)
        elif kind == "real":  # the first tokens of a recorded text
            row = real_rows()[(seed + h) % len(real_rows()), t, : t + 1]
        elif kind == "powers":
            row = rng.integers(0, 2, t + 1) * 2.0 ** -rng.integers(6, 25, t + 1)
            row[t] += 1 - row.sum()
        else:  # every token is wanted once, in an order that forces long exchanges
            row = np.full(t + 1, 1 / 64) * (np.arange(t + 1) % 3 == t % 3)
            row[(t * 7) % (t + 1)] += 1 - row.sum()
        scores[h, t, : t + 1] = row
    # recorded rows are float16 already, and sum to 1 as closely as that allows
    given = scores.astype(np.float16) if kind == "real" else scores
    return Trace.from_scores(given[None], group_size=heads).units()[0]


def rows_of(unit: Unit) -> Ints:
    square = np.zeros((unit.n, unit.n), np.int64)
    for t in range(unit.n):
        square[t, : t + 1] = unit.row(t)
    return square


def value(rows: Ints, gone: NDArray[np.int32], k: int, p: int) -> int:
    """What a schedule keeps, after checking that it is one."""
    n, kept = len(rows), 0
    cache: set[int] = set()
    for t in range(n):
        cache.add(t)
        if t >= p:
            kept += int(rows[t, sorted(cache)].sum())
        cache -= {j for j in cache if gone[j] <= t}
        if p - 1 <= t < n - 1:
            assert len(cache) <= k
    assert (gone >= np.maximum(np.arange(n), 0)).all()
    return kept


def dual(rows: Ints, price: Ints, k: int, p: int) -> int:
    """D(λ), written as in the theory."""
    n = len(rows)
    assert (price >= 0).all() and not price[:p].any()
    bound = k * int(price.sum()) + sum(int(rows[t, t]) for t in range(p, n))
    for j in range(n):
        worth = np.cumsum([rows[t, j] - price[t] for t in range(max(j + 1, p), n)])
        bound += max(0, int(worth.max(initial=0)))
    return bound


def brute(rows: Ints, k: int, p: int) -> int:
    """All schedules: the best value over all sets that can be in the cache."""
    n = len(rows)
    best = {frozenset(range(p)): 0}
    for t in range(p - 1, n):
        if t >= p:
            best = {s | {t}: v + int(rows[t, sorted(s | {t})].sum()) for s, v in best.items()}
        reached: dict[frozenset[int], int] = {}
        for s, v in best.items():
            for keep in range(min(k, len(s)) + 1):
                for chosen in itertools.combinations(sorted(s), keep):
                    key = frozenset(chosen)
                    reached[key] = max(reached.get(key, -1), v)
        best = reached
    return max(best.values())


def assignment(unit: Unit, k: int, p: int) -> int:
    """Scipy on the rectangular cost matrix of steps and tokens: the least loss."""
    n = unit.n
    rows = rows_of(unit)
    steps = [max(t, p - 1) for t in range(k, n - 1)]
    if not steps:
        return 0
    cost = np.full((len(steps), n - 1), 1 << 50)
    for i, t in enumerate(steps):
        cost[i, : t + 1] = rows[max(p, t + 1) :, : t + 1].sum(axis=0)
    return int(cost[linear_sum_assignment(cost)].sum())


@given(n=st.integers(2, 7), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=40, deadline=None)
def test_brute_force(n: int, kind: str, seed: int, data: st.DataObject) -> None:
    unit, p = make(n, kind, seed), data.draw(st.integers(1, n - 1))
    k = data.draw(st.integers(1, n))
    expected = brute(rows_of(unit), k, p)
    assert optimal_curve(unit, p).kept[k] == expected
    found = narrow(unit, k, p, 0.0)
    assert found.lower <= expected <= found.upper


@given(
    n=st.integers(2, 40), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32),
    heads=st.integers(1, 3), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_budget_is_optimal_and_proved(
    n: int, kind: str, seed: int, heads: int, data: st.DataObject
) -> None:
    unit, p = make(n, kind, seed, heads), data.draw(st.integers(1, n - 1))
    rows = rows_of(unit)
    loss = [assignment(unit, k, p) for k in range(n + 1)]
    assert (least_losses(rows, p) == loss).all()
    solved = optimal_curve(unit, p, wanted=range(n + 1))
    assert solved.whole == int(rows[p:].sum()) == solved.kept[n]
    assert (np.diff(solved.kept, 2) <= 0).all()  # concave
    for k in range(n + 1):
        assert solved.kept[k] == solved.whole - loss[k]
        assert value(rows, solved.evicted_at[k], k, p) == solved.kept[k]
        assert dual(rows, solved.price[k], k, p) == solved.kept[k]


@given(
    n=st.integers(65, 140), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32),
    data=st.data(),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_several_blocks(n: int, kind: str, seed: int, data: st.DataObject) -> None:
    """More steps than share a bound, whole and up to some budget."""
    unit, p = make(n, kind, seed), data.draw(st.sampled_from([1, 2, 63, 64, n // 2, n - 1]))
    asked, most = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2)))
    rows, every = rows_of(unit), optimal_curve(unit, p)
    assert (every.kept == every.whole - least_losses(rows, p)).all()
    some = optimal_curve(unit, p, most=most, wanted=[asked])
    assert (some.kept[: most + 1] == every.kept[: most + 1]).all()
    assert (some.kept[most + 1 : n - 1] == -1).all()
    assert value(rows, some.evicted_at[asked], asked, p) == every.kept[asked]
    assert dual(rows, some.price[asked], asked, p) == every.kept[asked]


@given(n=st.integers(2, 60), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_kept_tokens_stay_kept_at_larger_budgets(n: int, kind: str, seed: int) -> None:
    """What the run rests on: one more token is kept to the end, none is given up."""
    found = optimal_curve(make(n, kind, seed), 1, wanted=range(n + 1)).evicted_at
    for k in range(n):
        assert (found[k + 1][found[k] == n] == n).all()
        assert (found[k] == n).sum() == k + 1 if k < n - 1 else (found[k] == n).all()


@given(
    n=st.integers(2, 60), kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32),
    gap=st.sampled_from([0.0, 1e-4, 1e-2]), data=st.data(),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_bracket_contains_the_optimum(
    n: int, kind: str, seed: int, gap: float, data: st.DataObject
) -> None:
    unit, p = make(n, kind, seed, 2), data.draw(st.integers(1, n - 1))
    rows, k = rows_of(unit), data.draw(st.integers(1, n))
    found = narrow(unit, k, p, gap)
    exact = int(optimal_curve(unit, p, most=k).kept[k])
    assert found.lower <= exact <= found.upper <= found.whole
    assert value(rows, found.evicted_at, k, p) == found.lower
    assert dual(rows, found.price, k, p) == found.upper
    assert found.upper - found.lower <= gap * found.upper


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("p", [1, 30])
def test_bracket_when_auctions_give_up(kind: str, p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only make it faster: shortest paths alone end at the optimum too."""
    monkeypatch.setattr(bracket, "RAISES", 1)
    unit = make(48, kind, 7)
    every = optimal_curve(unit, p).kept
    for k in (1, 5, 20, 40):
        found = narrow(unit, k, p, 0.0)
        assert found.lower == found.upper == every[k]


@pytest.mark.parametrize("kind", KINDS)
def test_min_cost_flow_and_linear_program(kind: str) -> None:
    import networkx as nx

    unit, p, k = make(12, kind, 5), 3, 4
    rows, n = rows_of(unit), unit.n
    solved = int(optimal_curve(unit, p, most=k).kept[k])

    # k slots are unit paths. Token j enters a slot after step j, or with the prompt; it leaves
    # after step e, and the slot is free for a token that enters after e or later.
    graph = nx.DiGraph()
    for j in range(n):
        graph.add_edge(("in", j), ("out", j), capacity=1, weight=0)
        graph.add_edge("begin", ("in", j), capacity=1, weight=0)
        if j >= p:
            graph.add_edge(("free", j), ("in", j), capacity=1, weight=0)
        for e in range(max(j, p - 1), n):
            worth = int(rows[max(p, j + 1) : e + 1, j].sum())
            after = ("free", e) if e < n - 1 else "end"
            graph.add_edge(("out", j), ("left", j, e), capacity=1, weight=-worth)
            graph.add_edge(("left", j, e), after, capacity=1, weight=0)
    for t in range(p - 1, n - 1):
        graph.add_edge(("free", t), ("free", t + 1) if t + 1 < n - 1 else "end", weight=0)
    graph.add_edge("begin", "end", capacity=k, weight=0)
    graph.nodes["begin"]["demand"], graph.nodes["end"]["demand"] = -k, k
    flow = nx.min_cost_flow_cost(graph)
    assert -flow + sum(int(rows[t, t]) for t in range(p, n)) == solved

    # the program itself: x[t, j] = 1 while j is held after step t
    cells = [(t, j) for t in range(p - 1, n - 1) for j in range(t + 1)]
    place = {cell: i for i, cell in enumerate(cells)}
    gain = [-float(rows[t + 1, j]) for t, j in cells]
    upper, limits = [], []
    for t in range(p - 1, n - 1):
        line = np.zeros(len(cells))
        line[[place[t, j] for j in range(t + 1)]] = 1
        upper.append(line)
        limits.append(float(k))
    for (t, j), i in place.items():
        if (t - 1, j) in place:
            line = np.zeros(len(cells))
            line[i], line[place[t - 1, j]] = 1, -1
            upper.append(line)
            limits.append(0.0)
    found = linprog(gain, np.array(upper), limits, bounds=(0, 1), method="highs")
    assert round(-found.fun) + sum(int(rows[t, t]) for t in range(p, n)) == solved


@examples(12)
@given(data=st.data())
def test_between_every_policy_and_top_k(data: st.DataObject) -> None:
    """At every budget: whatever holds no more than the budget keeps no more than the optimum."""
    trace = data.draw(traces(norms=True, min_n=2, max_n=12, max_heads=2, max_layers=1))
    p = data.draw(st.integers(1, trace.n - 1), label="prompt")
    share = data.draw(st.sampled_from(["head", "layer"]))
    best = optimum(trace, "all", prompt_len=p, share=share)["recall"]
    names = [name for name, policy in all_policies().items() if runs_on(policy, trace)]
    found = replay(trace, names, "all", prompt_len=p, share=share, engine="naive")
    above = found["recall"].sel(policy="topk", drop=True)
    assert (best <= above).all()
    within = (found["held"] <= found["budget"]) & (found["policy"] != "topk")
    assert (within.any(["layer", "unit", "budget"]) | (found["policy"] == "topk")).all()
    assert ((found["recall"] <= best) | ~within).all()


def test_dataset() -> None:
    trace = synth("powerlaw", 128, seed=3)
    exact = optimum(trace, [8, 0.25], method="exact")
    close = optimum(trace, [8, 0.25], method="bracket", gap=1e-3)
    assert dict(exact.sizes) == {
        "layer": len(trace.layers), "unit": exact.sizes["unit"], "budget": 2, "token": 128,
        "step": 128,
    }  # fmt: skip
    assert (exact["lower"] == exact["upper"]).all()
    assert (close["lower"] <= exact["recall"]).all() and (exact["recall"] <= close["upper"]).all()
    assert ((close["upper"] - close["lower"]) <= 1e-3 * close["upper"]).all()
    every = optimum(trace, "all")
    assert "evicted_at" not in every and every.sizes["budget"] == 128
    assert (every["recall"].sel(budget=[8, 32]) == exact["recall"]).all()
    many = optimum(trace, list(range(1, 20)), method="exact")
    assert (many["recall"] == every["recall"].sel(budget=range(1, 20))).all()
    assert (many["price"] >= 0).all()


@pytest.mark.parametrize("p", [1, 24])
def test_the_way_does_not_change_the_result(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = synth("powerlaw", 96, seed=5)
    budgets = [3, 24, 60, 95]
    found = {}
    for closing in (True, False):
        monkeypatch.setattr(solving, "one_by_one", lambda *_, way=closing: way)
        found[closing] = optimum(trace, budgets, prompt_len=p)
    for name in ("kept", "bound", "mass", "recall", "lower", "upper"):
        assert (found[True][name] == found[False][name]).all()
    for at, unit in enumerate(trace.units()):
        rows = rows_of(unit)
        for result in found.values():
            units = result.sizes["unit"]
            one = result.isel(layer=at // units, unit=at % units)
            for b, k in enumerate(budgets):
                best = int(one["kept"][b])
                assert value(rows, one["evicted_at"][b].values, k, p) == best
                assert dual(rows, one["price_fixed"][b].values, k, p) == best


def test_one_bracket_that_stays_open_sends_all_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of three budgets are closed; exact means all of them."""
    trace = synth("powerlaw", 96, seed=5)
    closed = {k: narrow(trace.units()[0], k, 1, 0.0) for k in (3, 24, 60)}
    wide = dataclasses.replace(closed[24], upper=closed[24].upper + 1)
    for some in ({24: wide}, {}):
        monkeypatch.setattr(solving, "one_by_one", lambda *_: True)
        monkeypatch.setattr(solving, "narrow", lambda unit, k, *_, s=some: {**closed, **s}[k])
        found = optimum(trace, [*closed], method="exact", layers=[0])
        assert (found["bound"] == found["kept"]).all()


def test_the_cheaper_way_is_taken() -> None:
    n = 4096
    assert one_by_one(n, [n // 5]) and not one_by_one(n, range(1, n // 20))
    assert one_by_one(16384, [64, 512]) and not one_by_one(16384, range(1, 512))
    assert running_cost(n, n // 20) < running_cost(n, n - 2) < running_cost(n, n - 1)
    assert running_cost(n, n - 1) == running_cost(n, n)


def test_schedules_are_what_a_replay_would_count() -> None:
    trace = synth("powerlaw", 96, seed=4)
    found = optimum(trace, [12], prompt_len=20)
    for at, unit in enumerate(trace.units()):
        one = found.isel(layer=at // found.sizes["unit"], unit=at % found.sizes["unit"], budget=0)
        rows = rows_of(unit)
        assert value(rows, one["evicted_at"].values, 12, 20) == int(one["kept"])
        price = one["price_fixed"].values
        assert (price == one["price"].values * 2**24).all() and price.any()
        assert dual(rows, price, 12, 20) == int(one["bound"]) == int(one["kept"])


def test_one_token() -> None:
    trace = Trace.from_scores(np.ones((1, 1, 1, 1)))
    found = optimum(trace, "all")
    assert np.isnan(found["recall"].values).all()


def test_mistakes() -> None:
    trace = synth("powerlaw", 64, seed=0)
    for wrong in (
        {"method": "guess"}, {"gap": 1.0}, {"gap": -0.1}, {"prompt_len": 64}, {"layers": [99]},
        {"share": "row"},
    ):  # fmt: skip
        with pytest.raises(UserError):
            optimum(trace, [8], **wrong)
    with pytest.raises(UserError):
        optimum(trace, [0])


@pytest.mark.parametrize("name", ["prose", "code", "chat"])
def test_bundled_traces(name: str) -> None:
    """Solvers that share nothing but the problem agree on real attention, scipy as well."""
    trace = open_trace(name)
    p = trace.prompt_len or 1
    for number, unit in enumerate(trace.units()):
        solved = optimal_curve(unit, p)
        assert (np.diff(solved.kept, 2) <= 0).all()
        for share in (20, 5):
            k = max(1, unit.n // share)
            closed, close = narrow(unit, k, p, 0.0), narrow(unit, k, p, 1e-4)
            assert closed.lower == closed.upper == solved.kept[k]
            assert close.lower <= solved.kept[k] <= close.upper
            assert close.upper - close.lower <= 1e-4 * close.upper and close.readings <= 30
        if number == 0:
            assert assignment(unit, unit.n // 5, p) == solved.whole - solved.kept[unit.n // 5]


def test_bench() -> None:
    pytest.importorskip("lap")
    from h2osim.bench.optimum import measure

    lines = measure(synth("powerlaw", 96, seed=1).units()[0])
    assert len(lines) == 18 and all(line.value >= 0 for line in lines)
