"""T10: an output error in a layer, the logits and the predictions, on small random decoders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import statements
from hypothesis import given
from hypothesis import strategies as st
from statements import decoder as small
from statements.lipschitz import (
    SILU_SLOPE,
    LayerWeights,
    head_factor,
    log10_product,
    spectral,
)
from statements.logits import divergence

from h2osim.guarantees import Verdict


def drawn(seed: int, layers: int = 2, size: float = 1.0, eps: float = 1e-5) -> small.Decoder:
    """A random decoder: 4 heads on 2 KV heads of size 3, a stream of 8, an MLP of 10, 7 logits."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return size * rng.standard_normal(shape)

    found = [
        LayerWeights(
            matrix(4, 3, 8), matrix(2, 3, 8), matrix(2, 3, 8), matrix(8, 12), matrix(10, 8),
            matrix(10, 8), matrix(8, 10), 3**-0.5,
        )
        for _ in range(layers)
    ]  # fmt: skip
    return small.Decoder(found, matrix(7, 8), eps)


def stream(seed: int, n: int = 6) -> np.ndarray:
    return np.random.default_rng(seed + 1000).standard_normal((n, 8))


def masks(seed: int, layers: int, n: int = 6) -> list[np.ndarray]:
    """Keys that are left to each row; its own always."""
    rng = np.random.default_rng(seed + 2000)
    return [(rng.random((4, n, n)) < 0.6) | np.eye(n, dtype=bool) for _ in range(layers)]


def scalar(weight: float, eps: float, layers: int = 1) -> small.Decoder:
    """One dimension, one head that copies its own token, no MLP, a head of 1."""
    nothing = np.zeros((1, 1))
    layer = LayerWeights(
        nothing[None], nothing[None], np.ones((1, 1, 1)), np.full((1, 1), weight), nothing,
        nothing, nothing, 1.0,
    )  # fmt: skip
    return small.Decoder([layer] * layers, np.ones((1, 1)), eps)


def at(value: float) -> np.ndarray:
    return np.array([[value]])


@given(st.integers(0, 2**20), st.integers(1, 3), st.sampled_from([0.05, 0.3, 1.0]))
def test_t10_holds(seed: int, layers: int, size: float) -> None:
    decoder, x = drawn(seed, layers, size), stream(seed)
    result = statements.logits.logit_movement(decoder, x, cached=masks(seed, layers))
    assert result.verdict == Verdict.HOLDS, result
    rng = np.random.default_rng(seed)
    errors = [rng.standard_normal(x.shape) * 10 ** rng.uniform(-6, 1) for _ in range(layers)]
    assert statements.logits.logit_movement(decoder, x, errors=errors).verdict == Verdict.HOLDS


@given(st.lists(st.tuples(st.floats(-30, 30), st.floats(-9, 9)), min_size=1, max_size=8))
def test_t10_relative_entropy(rows: list[tuple[float, float]]) -> None:
    z, change = np.array(rows).T
    found = divergence(z, z + change)
    slack = 1e-11 * (1 + found["width"])
    p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    after = z + change - (z + change).max()
    plain = float(p @ (np.log(p) - after + math.log(np.exp(after).sum())))
    # KL written out loses what cancels: 1e-16 times the width of the logits
    assert found["kl"] == pytest.approx(plain, abs=1e-11)
    assert -slack <= found["kl"] <= found["bound"] + slack
    assert found["low"] - slack <= found["kl"] <= found["high"] * (1 + 1e-9) + slack


def test_t10_remainder_is_quadratic() -> None:
    for seed in range(5):
        decoder, x = drawn(seed, 2, 0.3), stream(seed)
        errors, _ = small.output_errors(decoder, x, masks(seed, 2))
        full, estimate = small.run(decoder, x).logits, small.first_order(decoder, x, errors)
        far, near = (
            np.abs(small.run(decoder, x, [s * e for e in errors]).logits - full - s * estimate)
            for s in (1e-3, 5e-4)
        )
        assert 3.9 < far.max() / near.max() < 4.1


def test_t10_is_tight() -> None:
    # one dimension, a tiny stream: every factor is reached in the limit
    decoder = scalar(2.0, eps=1.0, layers=3)
    errors = [at(1e-6), at(0.0), at(0.0)]
    found = statements.logits.logit_movement(decoder, at(0.0), errors=errors).numbers
    # the limit of a tiny step: what is left out is of relative size 1e-6
    assert found["movement"] == pytest.approx(9e-6)
    assert 10 ** found["log10_bound"] == pytest.approx(9e-6)
    assert found["first_order"] == pytest.approx(9e-6)
    # w**2 / 8: two equal probabilities, a small change; w: a large one on a small probability
    assert divergence([0, 0], [0.01, 0])["kl"] == pytest.approx(0.01**2 / 8, rel=1e-4)
    rare = divergence([0, math.log(1e-3)], [0, 900])
    assert 0.99 < rare["kl"] / rare["bound"] <= 1
    # the slope of silu
    x = np.linspace(2.39, 2.41, 2001)
    sigmoid = 1 / (1 + np.exp(-x))
    assert 1.0998 < (sigmoid * (1 + x * (1 - sigmoid))).max() < SILU_SLOPE


def test_t10_can_fail() -> None:
    # the norm's factor with s of the full run alone: from 1 to -1e-3
    decoder = scalar(0.0, eps=1e-8)
    error = [at(-1.001)]
    moved = statements.logits.logit_movement(decoder, at(1.0), errors=error).numbers["movement"]
    # 1 to -1e-3, up to the norm's epsilon
    assert moved == pytest.approx(2, abs=0.01)
    claimed = log10_product([(0.0, 0.0)], head_factor(decoder.head, 1.0), [1.001])
    assert 10**claimed < 1.01 < moved
    # a large error: the estimate is not a bound (it sees the slope at 1, which is nearly 0)
    assert statements.logits.logit_movement(decoder, at(1.0), errors=error).numbers["apart"] < 1e-6
    # errors taken at the full run's inputs: adding them is another run
    deep, x, left = drawn(5, 2, 0.3), stream(5), masks(5, 2)
    at_full = [
        small.attend(w, before, deep.eps, mask) - small.attend(w, before, deep.eps)
        for w, before, mask in zip(deep.layers, small.run(deep, x).before, left, strict=True)
    ]
    evicted = small.run(deep, x, cached=left).logits
    assert np.abs(small.run(deep, x, at_full).logits - evicted).max() > 1e-2
    errors, _ = small.output_errors(deep, x, left)
    # float64, another order of sums
    assert np.abs(small.run(deep, x, errors).logits - evicted).max() < 1e-12
    # the values' part of attention's factor alone: an undecided row decides, and moves by more
    one = np.ones((1, 1, 1))
    w = LayerWeights(1000 * one, one, one, one[0], 0 * one[0], 0 * one[0], 0 * one[0], 1.0)
    before, after = np.array([[1.0], [0.0]]), np.array([[1.0], [0.1]])
    assert abs(small.attend(w, after, 1.0) - small.attend(w, before, 1.0))[1, 0] > 0.3
    # half the variance without its correction: an unlikely token that gains
    rare = divergence([0, math.log(1e-3)], [0, math.log(1e-3) + 9])
    assert rare["kl"] > 2 and rare["variance"] / 2 < 0.05
    with pytest.raises(ValueError, match="errors or cached"):
        statements.logits.logit_movement(deep, x)


def test_t10_no_error_no_movement() -> None:
    decoder, x = drawn(1), stream(1)
    found = statements.logits.logit_movement(decoder, x, errors=[0 * x, 0 * x])
    assert found.verdict == Verdict.HOLDS and found.numbers["log10_bound"] == -math.inf
    assert found.numbers["movement"] == found.numbers["kl"] == 0
    wide = np.random.default_rng(0).standard_normal((3, 9))
    # eigenvalues of the Gram matrix against singular values: 1e-16 of the largest, squared
    assert spectral(wide) == pytest.approx(np.linalg.norm(wide, 2))
    assert spectral(wide.T) == pytest.approx(np.linalg.norm(wide, 2))
