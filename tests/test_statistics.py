"""The intervals and tests of paired comparisons."""

from __future__ import annotations

import numpy as np
import pytest

from h2osim.report.statistics import (
    can_tell,
    holm,
    mean_interval,
    paired_p,
    ties_with_best,
    what_intervals_say,
)


def test_one_text_has_no_interval() -> None:
    found = mean_interval(np.array([0.3]), geometric=True)
    assert found.mean == pytest.approx(0.3)  # exp(log x)
    assert np.isnan(found.low) and np.isnan(found.high)


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(60):
        found = mean_interval(rng.lognormal(0, 0.5, 30), geometric=True, seed=i)
        hits += found.low <= 1.0 <= found.high
    assert 51 <= hits <= 60


def test_paired_p_counts_sign_flips() -> None:
    a, b = np.exp([1.0, 2, 3, 4, 5]), np.exp([0.0, 1, 2, 3, 4])
    assert paired_p(a, b) == 2 / 2**5
    assert paired_p(a, a) == 1.0


def test_holm_steps_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}


def test_few_texts_tell_nothing() -> None:
    a = np.exp(np.arange(6.0))
    assert not can_tell(5, 2) and can_tell(6, 2)  # 2 / 2**5 is above .05, 2 / 2**6 below
    assert not can_tell(6, 3) and not can_tell(9, 1)
    assert ties_with_best({"a": a[:5], "b": 9 * a[:5]}) == {"a", "b"}
    assert ties_with_best({"a": a, "b": 9 * a}) == {"a"}


def test_ties_are_ties() -> None:
    rng = np.random.default_rng(1)
    base = rng.lognormal(0, 1, 12)
    losses = {"best": base, "same": base * rng.lognormal(0.001, 0.2, 12), "worse": base * 3}
    assert ties_with_best(losses) == {"best", "same"}


def test_shares_are_compared_by_their_difference() -> None:
    a, b = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.95]), np.array([0.4, 0.5, 0.6, 0.7, 0.8, 0.85])
    assert paired_p(a, b, geometric=False) == 2 / 2**6
    assert paired_p(a, -b, geometric=True) == 1.0  # no logarithms
    assert ties_with_best({"a": a, "b": b}, geometric=False, largest=True) == {"a"}
    assert ties_with_best({"a": a, "b": b}, geometric=False) == {"b"}
    assert mean_interval(a).mean == a.mean()


def test_a_zero_has_a_geometric_mean_of_zero_without_interval() -> None:
    found = mean_interval(np.array([0.0, 1.0, 2.0]), geometric=True)
    assert found.mean == 0 and np.isnan(found.low)


def test_sampled_permutations_tell_no_more_than_their_number() -> None:
    """The least p of 9999 sampled sign flips is 2e-4, however many texts there are."""
    assert can_tell(40, 250) and not can_tell(40, 252)


def test_with_one_text_the_reason_is_said() -> None:
    assert "one text, so no interval and no test" in what_intervals_say(1, 5)
    assert "too few" in what_intervals_say(3, 5, "trace")
    assert "paired test, Holm" in what_intervals_say(12, 5, "trace")
