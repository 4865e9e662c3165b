"""Replay as it grows: rows arrive one at a time, and the caches must not depend on what follows.

A state machine inserts tokens (rows in sixteenths, so that ties are everywhere), and after each one
compares the engines on what has been seen so far: the same evictions as the plain-Python engine,
the same decisions as at the step before (an online policy cannot look ahead), at most k tokens
left, the protected ones among them. `simulate` of the guarantees is a third opinion on plain H2O.
"""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from statements.simulating import simulate

from h2osim.guarantees.history import Rows
from h2osim.policies.text import parse
from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace

POLICIES = (
    "h2o:recent=0,scores=full",
    "h2o:recent=2,scores=full",
    "h2o",
    "h2o:sinks=1,recent=1",
    "tova",
    "decay:recent=1",
)
STEPS = 16


class Growing(RuleBasedStateMachine):
    """Tokens arrive; the caches of several policies and budgets are followed."""

    @initialize(heads=st.integers(1, 2), budget=st.integers(2, 6), prompt=st.integers(1, 5))
    def start(self, heads: int, budget: int, prompt: int) -> None:
        self.heads, self.k, self.p = heads, budget, prompt
        self.rows: list[np.ndarray] = []
        self.before: dict[str, np.ndarray] = {}
        self.insert_spread()

    def append(self, row: np.ndarray) -> None:
        self.rows.append(row)

    def insert_spread(self) -> None:
        row = np.zeros((self.heads, len(self.rows) + 1))
        row[:, -1] = 1
        self.append(row)

    @rule(data=st.data())
    def insert(self, data: st.DataObject) -> None:
        """A token with any attention: 16 atoms a head."""
        t = len(self.rows)
        row = np.zeros((self.heads, t + 1))
        for head in range(self.heads):
            atoms = data.draw(st.sampled_from([1, 2, 4, 16]))
            for place in data.draw(
                st.lists(st.integers(0, t), min_size=atoms, max_size=atoms), label="atoms"
            ):
                row[head, place] += 1 / atoms
        self.append(row)

    @rule(share=st.sampled_from([0.25, 0.5, 1.0]), back=st.integers(0, 30))
    def favour(self, share: float, back: int) -> None:
        """A token that looks at one older one, which may be gone already."""
        t = len(self.rows)
        row = np.zeros((self.heads, t + 1))
        row[:, max(0, t - 1 - back)] += share
        row[:, t] += 1 - share
        self.append(row)

    @invariant()
    def engines_agree_and_nothing_is_taken_back(self) -> None:
        n = len(self.rows)
        if n < 2 or n <= self.p:
            return
        matrix = np.zeros((self.heads, n, n))
        for t, row in enumerate(self.rows):
            matrix[:, t, : t + 1] = row
        trace = Trace.from_scores(matrix, group_size=self.heads, prompt_len=self.p)
        k = min(self.k, n)
        slow = replay(trace, POLICIES, k, engine="naive")
        fast = replay(trace, POLICIES, k, engine="numba")
        assert np.array_equal(slow.evicted_at, fast.evicted_at)
        assert np.array_equal(slow.recall, fast.recall)
        for text in POLICIES:
            gone = slow.evicted_at.sel(policy=text).values.ravel()
            self.check_cache(text, gone, n, k)
            if text in self.before:
                old = self.before[text]
                known = old < n - 1  # decided at a step both have seen
                assert np.array_equal(old[known], gone[: n - 1][known]), text
                assert np.all(gone[: n - 1][~known] >= n - 1), text
            if k == self.k:
                self.before[text] = gone
        plain = simulate(Rows.of(np.rint(matrix * 16).astype(int)), k, self.p)
        found = slow.evicted_at.sel(policy=POLICIES[0]).values.ravel()
        assert plain.evicted_at.tolist() == found.tolist()

    def check_cache(self, text: str, gone: np.ndarray, n: int, k: int) -> None:
        numbers = parse(text).numbers(k)
        for t in range(self.p - 1, n):
            held = np.flatnonzero(gone[: t + 1] > t)
            assert len(held) == min(k, t + 1), (text, t)
            assert set(range(min(int(numbers.get("sinks", 0)), t + 1))) <= set(held), (text, t)
            newest = int(numbers.get("recent", 0))
            assert set(range(max(0, t + 1 - newest), t + 1)) <= set(held), (text, t)


Growing.TestCase.settings = settings(
    max_examples=settings().max_examples // 4, stateful_step_count=STEPS
)
TestGrowing = Growing.TestCase
