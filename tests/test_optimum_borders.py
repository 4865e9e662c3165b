"""The solvers of the optimum where one unit of mass decides, and how their answers are put."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statements.optimum import assignment_value
from strategies import examples

from h2osim.attention.triangle import tri
from h2osim.guarantees.history import Rows
from h2osim.optima import solving
from h2osim.optima.bracket import narrow
from h2osim.optima.exact import optimal_curve
from h2osim.traces.synthetic import synth
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit


def of_small_numbers(n: int, most: int, seed: int) -> Unit:
    """A unit whose entries are 0 ... most of the smallest float16: no two values are far apart.

    Its rows do not sum to 1, which only a trace's check would mind.
    """
    bits = np.random.default_rng(seed).integers(0, most + 1, (1, 1, tri(n)), np.uint16)
    return Trace.from_packed(bits).units()[0]


@examples(40)
@given(st.integers(2, 24), st.sampled_from([1, 2, 5]), st.integers(0, 2**32), st.data())
def test_one_unit_of_mass_makes_the_difference(
    n: int, most: int, seed: int, data: st.DataObject
) -> None:
    unit, p = of_small_numbers(n, most, seed), data.draw(st.integers(1, n - 1))
    kept = optimal_curve(unit, p).kept
    rows = Rows.of_unit(unit)
    for k in range(n + 1):
        assert kept[k] == assignment_value(rows, k, p)
    k = data.draw(st.integers(1, n))
    found = narrow(unit, k, p, 0.0)
    assert found.lower <= kept[k] <= found.upper


@given(st.integers(66, 140), st.integers(0, 2**32))
@examples(10)
def test_small_numbers_over_several_blocks_of_nodes(n: int, seed: int) -> None:
    unit = of_small_numbers(n, 3, seed)
    kept = optimal_curve(unit, 1).kept
    rows = Rows.of_unit(unit)
    for k in (0, 1, 2, n // 3, n - 3):
        assert kept[k] == assignment_value(rows, k, 1)


@given(st.integers(2, 24), st.integers(0, 2**32), st.data())
@examples(20)
def test_a_token_that_stays_leaves_at_n(n: int, seed: int, data: st.DataObject) -> None:
    """Nothing leaves after the last row: a schedule has no reason to say so, and does not."""
    unit, p = of_small_numbers(n, 5, seed), data.draw(st.integers(1, n - 1))
    k = data.draw(st.integers(1, n))
    for gone in (
        narrow(unit, k, p, 0.0).evicted_at,
        optimal_curve(unit, p, wanted=[k]).evicted_at[k],
    ):
        assert not (gone == n - 1).any()
        assert (gone == n).sum() >= min(k, n - 1)
        left = np.arange(1, n + 1) - np.bincount(gone, minlength=n + 1)[:n].cumsum()
        assert (left[p - 1 : n - 1] <= k).all()


def test_one_bracket_that_does_not_close_is_solved_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """`exact` means gap 0 for every budget asked for, not for some of them."""
    trace = synth("powerlaw", 40, seed=1)
    expected = solving.optimum(trace, [3, 9], method="exact")
    real = narrow

    def wide_at_nine(unit: Unit, k: int, *rest: object) -> object:
        found = real(unit, k, *rest)  # type: ignore[arg-type]
        return found if k != 9 else SimpleNamespace(**{**vars(found), "lower": found.lower - 1})

    monkeypatch.setattr(solving, "narrow", wide_at_nine)
    monkeypatch.setattr(solving, "one_by_one", lambda *_: True)
    found = solving.optimum(trace, [3, 9], method="exact")
    for name in ("kept", "bound"):
        np.testing.assert_array_equal(found[name], expected[name])
