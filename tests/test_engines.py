"""Every engine makes the same evictions as the naive one, exactly, for every policy there is.

A policy file added to `h2osim/policies` is drawn here without any change: its parameters from their
declarations, and traces with the data that it needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xarray
from drawing import BUNDLED, NORMS, asks, configured, long_but, traces_for
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces

from h2osim.policies.arithmetic import accumulate
from h2osim.policies.declaration import Array, Configured, Policy
from h2osim.policies.parameters import shared
from h2osim.policies.registry import all_policies
from h2osim.replays.replaying import replay
from h2osim.support.parameters import Param
from h2osim.traces import unit
from h2osim.traces.catalogue import open_trace
from h2osim.traces.trace import Trace

POLICIES = sorted(all_policies())


@dataclass(frozen=True)
class Case:
    """What is replayed; shown when engines differ."""

    trace: Trace
    policy: Configured
    budgets: list[int]
    prompt_len: int
    share: str

    def replayed(self, engine: str) -> xarray.Dataset:
        return replay(
            self.trace,
            self.policy,
            self.budgets,
            prompt_len=self.prompt_len,
            share=self.share,
            engine=engine,
            step_recall=True,
        )


@st.composite
def cases(draw: st.DrawFn, policy: Policy, traces: st.SearchStrategy[Trace]) -> Case:
    trace = draw(traces)
    return Case(
        trace,
        draw(configured(policy)),
        draw(st.lists(st.integers(1, trace.n), min_size=1, max_size=3, unique=True)),
        draw(st.just(1) | st.integers(1, trace.n - 1)),
        draw(st.sampled_from(["group", "head", "layer"])),
    )


def assert_same(expected: xarray.Dataset, found: xarray.Dataset) -> None:
    """The same evictions and the same integers (their quotients are rounded once)."""
    for name in ("evicted_at", "held", "step_recall", "recall"):
        np.testing.assert_array_equal(found[name].values, expected[name].values, name)


#: Rules that see vectors compile for seconds each: these stand for all of them in the quick tests.
FEW = ("caote", "keydiff", "rkv")
SLOW = {name for name in POLICIES if all_policies()[name].vectors} - {*FEW}


@pytest.mark.parametrize("name", long_but(POLICIES, *({*POLICIES} - SLOW)))
def test_numba_replays_as_the_definition_says(name: str) -> None:
    policy = all_policies()[name]

    @examples(25)
    @given(cases(policy, traces_for(policy, min_n=2)))
    def check(case: Case) -> None:
        assert_same(case.replayed("naive"), case.replayed("numba"))

    check()


def seen_now_and_then(age: int, t: int) -> bool:
    return age == 0 or (t - age) % 3 != t % 2


def changes(score: float, a: float, a_old: float) -> float:
    return score + 3.0 * a - 2.0 * a_old


def least(score: float, age: int, recent: int) -> float:
    if age < recent:
        return math.inf
    return score


def spent(score: float, age: int, t: int) -> float:
    return -math.inf if t % 3 == 0 and age > 0 and score < 0.75 else score  # several at once


def two_short(k: int, size: int) -> int:
    return max(1, k - 2) if size > k else size


def of_two_heads(
    positions: Array, ranks: Array, head_scores: Array, head_row: Array, t: int, heads: int
) -> None:
    for i in range(len(positions)):
        j = positions[i]
        ranks[i] = head_scores[0][j] - 2.0 * head_row[heads - 1][j] / (t - j + 1)


def band(k: int) -> int:
    return 1 + k // 2


def by_thirds(pos: int) -> float:
    return float(pos % 3)  # a third of all tokens ties, whatever attention they get


LAG = Param("lag", 2, "", "int", 1)
SCORES = shared("scores", "cached")
#: Rules that no registered policy puts together.
MIXED: dict[str, dict[str, Any]] = {
    "hides and looks back": dict(update=changes, rank=least, visible=seen_now_and_then, lag="lag"),
    "lingers and looks back": dict(update=changes, rank=least, linger=band, lag="lag"),
    "expires and looks back": dict(update=changes, rank=spent, expires=True, lag="lag"),
    "hides and lingers": dict(
        update=accumulate, rank=least, visible=seen_now_and_then, linger=band
    ),
    "hides, by head": dict(rank_cache=of_two_heads, visible=seen_now_and_then),
    "two short, by head": dict(rank_cache=of_two_heads, keep=two_short),
    "expires, hides, two short": dict(
        update=accumulate, rank=spent, expires=True, visible=seen_now_and_then, keep=two_short
    ),
    "re-admits and looks back": dict(update=changes, rank=least, readmits=True, lag="lag"),
    "re-admits among equals": dict(rank=by_thirds, readmits=True),
}


@pytest.mark.parametrize("name", long_but(MIXED, "re-admits and looks back", "hides, by head"))
def test_rules_in_any_mixture(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(
        name="mixed",
        summary="",
        source="",
        state=("score",) if "update" in MIXED[name] else (),
        params=(LAG, SCORES, shared("recent", 0)),
        **MIXED[name],
    )

    @examples(40)
    @given(cases(policy, traces_for(policy, min_n=2)), st.integers(1, 7))
    def check(case: Case, rows: int) -> None:
        monkeypatch.setattr(unit, "BLOCK_ROWS", 1000)
        expected = case.replayed("naive")
        monkeypatch.setattr(unit, "BLOCK_ROWS", rows)
        assert_same(expected, case.replayed("numba"))

    check()


@pytest.mark.parametrize("name", POLICIES)
def test_rows_made_block_by_block_change_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queries and keys become rows a few at a time; rules that look back see across blocks."""
    policy = all_policies()[name]

    @examples(8)
    @given(cases(policy, qk_traces(values=True, min_n=2)), st.integers(1, 7))
    def check(case: Case, rows: int) -> None:
        monkeypatch.setattr(unit, "BLOCK_ROWS", 1000)
        expected = case.replayed("naive")
        monkeypatch.setattr(unit, "BLOCK_ROWS", rows)
        assert_same(expected, case.replayed("numba"))

    check()


@pytest.mark.parametrize("name", [n for n in POLICIES if asks(all_policies()[n]) <= NORMS])
@pytest.mark.parametrize("trace", BUNDLED[:2])
def test_numba_replays_real_attention_as_the_definition_says(trace: str, name: str) -> None:
    """Long rows of many small numbers; one layer, a prompt and a budget of 5 %."""
    recorded = open_trace(trace)
    layer = recorded.layers[len(recorded.layers) // 2]
    found = [
        replay(
            recorded, name, 0.05, prompt_len=100, layers=[layer], engine=engine, step_recall=True
        )
        for engine in ("naive", "numba")
    ]
    assert_same(*found)
