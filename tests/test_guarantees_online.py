"""C4 and T8: what no online policy can promise."""

from __future__ import annotations

import numpy as np
import pytest
import statements
from statements.online import Policy as OnlinePolicy
from statements.simulating import simulate, stack_run

from h2osim.guarantees import Verdict
from h2osim.guarantees.history import Rows
from h2osim.traces.synthetic import synth


def h2o(rows: Rows, k: int, p: int) -> np.ndarray:
    return simulate(rows, k, p).evicted_at


def scattered(rows: Rows, k: int, p: int) -> np.ndarray:
    """A fixed pseudo-random rank a token: an online policy that looks at nothing."""
    rank = np.random.default_rng(1).permutation(rows.n)
    gone = stack_run(lambda t: [(int(rank[j]), j) for j in range(t + 1)], rows.n, p)
    return np.asarray(gone[k])


@pytest.mark.parametrize("policy", [h2o, scattered])
@pytest.mark.parametrize(("m", "k"), [(4, 2), (7, 1), (12, 5)])
def test_c4_numbers(policy: OnlinePolicy, m: int, k: int) -> None:
    result = statements.online.needle(policy, m, k)
    assert result.verdict == Verdict.HOLDS
    assert result.numbers["mean"] == k / m  # both keep k of the m
    assert result.numbers["worst"] == 0


def clairvoyant(rows: Rows, k: int, p: int) -> np.ndarray:
    """Not online: it keeps what the last row will attend most."""
    future = rows.head_rows(rows.n - 1)[0]
    order = np.argsort(-future[:p], kind="stable")
    gone = np.full(rows.n, rows.n)
    gone[order[k:]] = p - 1
    return gone


def test_c4_can_fail() -> None:
    assert statements.online.needle(clairvoyant, 6, 1).verdict == Verdict.VIOLATED
    assert statements.online.needle(h2o, 3, 3).verdict == Verdict.FAILS


def test_c4_generator() -> None:
    kept = 0
    for place in range(8):
        rows = Rows.of_unit(synth("needle", 12, tokens=8, at=place).units()[0])
        kept += bool(h2o(rows, 2, 8)[place] >= 8)
    assert kept == 2


@pytest.mark.parametrize("policy", [h2o, scattered])
@pytest.mark.parametrize(("m", "k"), [(5, 2), (9, 3), (12, 1)])
def test_t8_holds(policy: OnlinePolicy, m: int, k: int) -> None:
    result = statements.online.no_free_lunch(policy, m, k)
    assert result.verdict == Verdict.HOLDS
    assert result.numbers["value"] < result.numbers["optimum"] * (k / m + 0.02)


def test_t8_can_fail() -> None:
    assert statements.online.no_free_lunch(clairvoyant, 6, 2).verdict == Verdict.VIOLATED
    assert statements.online.no_free_lunch(h2o, 3, 3).verdict == Verdict.FAILS
