"""Inclusion, S_t(k) within S_t(k+1): where it is declared it holds, where it is not it fails.

A policy is inclusive where neither its ranks nor the time of its evictions depend on the cache or
the budget (theorem T7). Whether it says so is up to its declaration; here it is looked at.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import asks, can_be_inclusive, configured, inclusive, traces_for
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, turned

from h2osim.policies.declaration import Configured
from h2osim.policies.registry import all_policies
from h2osim.policies.text import parse
from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace

POLICIES = sorted(all_policies())
DECLARED = [name for name in POLICIES if can_be_inclusive(all_policies()[name])]

#: Nested although the rank or the size asks for the budget, so no single pass finds them and they
#: do not declare it: the sets they take their caches from grow with k, whatever the rows are.
#: h2o-lmeval: the k - R - 1 heaviest by recorded rows and a band of R keys, both growing with k.
#: h2o-global, h2o-hindsight: the first k - R columns of a fixed order and a window of R.
#: nacl: the m best and the next b of a fixed noisy order, where k + 1 adds one to m or to b.
#: chunkkv: the first chunks of a fixed order, as many as k has room for.
#: lagkv, dropkv, snapkv-kvfactory: the first k of an order fixed at the prompt's end (one pass has
#: neither vectors nor state by head).
#: criticalkv: the m first of one order and the next of another, where k + 1 adds one to either.
#: quest: nothing is evicted.
NESTED = {
    "h2o-lmeval", "h2o-global", "h2o-hindsight", "nacl", "chunkkv", "lagkv", "dropkv", "criticalkv",
    "quest", "snapkv-kvfactory",
}  # fmt: skip

VIOLATIONS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "violations.json").read_text(encoding="utf-8")
)


def evictions(
    trace: Trace, one: str | Configured, p: int, share: str, engine: str = "numba"
) -> np.ndarray:
    """`evicted_at` [unit, budget, token] at every budget, each from a run of its own."""
    found = replay(
        trace,
        one,
        range(1, trace.n + 1),
        prompt_len=p,
        share=share,
        engine=engine,
        step_recall=True,  # not to be had from one pass
    )
    assert not found.one_pass.any()
    left: np.ndarray = found.evicted_at.values
    return left.reshape(-1, trace.n, trace.n)


def violates(left: np.ndarray) -> bool:
    """Whether some token leaves a cache earlier than the next smaller one."""
    return bool((left[:, 1:] < left[:, :-1]).any())


@st.composite
def cases(draw: st.DrawFn, name: str, declared: bool) -> tuple[Trace, Configured, int, str]:
    policy = all_policies()[name]
    trace = draw(traces_for(policy, min_n=2, max_n=16))
    share = draw(st.sampled_from(["group", "head", "layer"]))
    p = draw(st.just(1) | st.integers(1, trace.n - 1))
    heads = max(len(unit.heads) for unit in trace.units(share))
    one = draw(inclusive(policy, heads) if declared else configured(policy))
    return trace, one, p, share


@pytest.mark.parametrize("name", DECLARED)
def test_declared_inclusion_holds(name: str) -> None:
    @examples(40)
    @given(cases(name, declared=True))
    def check(case: tuple[Trace, Configured, int, str]) -> None:
        trace, one, p, share = case
        assert not violates(evictions(trace, one, p, share))

    check()


@pytest.mark.parametrize("name", sorted(NESTED))
def test_these_are_nested_all_the_same(name: str) -> None:
    engine = "naive" if asks(all_policies()[name]) else "numba"  # what sees vectors compiles long

    @examples(40 if engine == "numba" else 8)
    @given(cases(name, declared=False))
    def check(case: tuple[Trace, Configured, int, str]) -> None:
        trace, one, p, share = case
        assert not violates(evictions(trace, one, p, share, engine))

    check()


@pytest.mark.parametrize("case", VIOLATIONS, ids=lambda case: case["policy"])
def test_a_kept_trace_violates_inclusion_where_it_is_not_declared(case: dict[str, Any]) -> None:
    """The rows are whole numbers; each is divided by its sum. `because` says what does it."""
    if "vectors" in case:
        given = {name: np.array([rows], float) for name, rows in case["vectors"].items()}
        plain = given.get("plain")
        q = given["q"] if plain is None else turned(plain)
        trace = Trace.from_qk(q, given["k"], v=given["v"], q_plain=plain, scale=1.0)
        _check_violation(case, trace, q.shape[1])
        return
    heads, n = len(case["heads"]), len(case["heads"][0])
    scores = np.zeros((heads, n, n))
    for h, rows in enumerate(case["heads"]):
        for t, row in enumerate(rows):
            scores[h, t, : t + 1] = np.array(row) / sum(row)
    norms = None if case["v_norm1"] is None else np.array([case["v_norm1"]], float)
    trace = Trace.from_scores(scores, group_size=heads, v_norm1=norms)
    _check_violation(case, trace, heads)


def _check_violation(case: dict[str, Any], trace: Trace, heads: int) -> None:
    assert not parse(case["policy"]).inclusive(heads)
    assert case["because"]
    # rules that see vectors take long to compile; that engines agree is looked at elsewhere
    for engine in ("naive",) if "vectors" in case else ("naive", "numba"):
        assert violates(evictions(trace, case["policy"], 1, "group", engine))


def test_every_policy_holds_is_nested_or_has_a_violation() -> None:
    """By default; and where parameters decide, a violation shows that each of them matters."""
    shown = {parse(case["policy"]).policy.name for case in VIOLATIONS}
    for name in POLICIES:
        one = parse(name)
        if not one.inclusive(1) or not one.inclusive(2):
            assert name in shown | NESTED, f"{name}: keep a violating trace in violations.json"
    assert not shown & NESTED
    texts = {case["policy"] for case in VIOLATIONS}
    assert {"h2o:scores=full", "h2o:recent=1", "tova"} <= texts  # window, cached, heads in a layer


@pytest.mark.parametrize("text", ["h2o", "h2o:recent=1", "h2o:scores=full", "h2o-alg2", "roco"])
def test_violations_are_easy_to_find(text: str) -> None:
    """The search above would find what it looks for."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = 8
        scores = np.zeros((1, n, n))
        for t in range(n):
            np.add.at(scores[0, t], rng.integers(0, t + 1, 4), 0.25)
        if violates(evictions(Trace.from_scores(scores), text, 1, "group")):
            return
    pytest.fail("no violation in 300 random traces")
