"""A small decoder in float64, to look at what an error in one layer does to the logits (T10).

Residual stream, RMS norms, causal attention with grouped heads, gated MLP, last norm and head: the
architecture of Llama and SmolLM2 without rotary embedding, which turns queries and keys and
changes no length. Every operation is analytic and written so that it accepts complex numbers:
a derivative along E is the imaginary part of a run at i h E, divided by h, exact but for rounding
(the complex step of Squire and Trapp, SIAM Review 40, 1998).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statements.lipschitz import (
    LayerNorms,
    LayerWeights,
    attention_factor,
    head_factor,
    log10_product,
    mlp_factor,
)

Array = NDArray[Any]

STEP = 1e-30
"""The complex step: its square is lost beside 1, so that nothing but the derivative is left."""


@dataclass(frozen=True)
class Decoder:
    """layers: their weights, gains folded in; head [vocabulary, d]; eps: of the norms."""

    layers: Sequence[LayerWeights]
    head: Array
    eps: float


@dataclass(frozen=True)
class Ran:
    """One run of n tokens.

    logits [n, vocabulary]; before, between: the residual stream [n, d] that enters attention and
    the MLP, a layer; last [n, d] before the last norm; attended [n, d]: what attention put out, a
    layer, before the error is added.
    """

    logits: Array
    before: list[Array]
    between: list[Array]
    last: Array
    attended: list[Array]


def rms(x: Array, eps: float) -> Array:
    """s(x) of each row."""
    return np.sqrt((x * x).mean(axis=-1) + eps)


def silu(x: Array) -> Array:
    """Sigmoid-weighted unit: x / (1 + exp(-x))."""
    return x / (1 + np.exp(-x))


def attend(weights: LayerWeights, x: Array, eps: float, cached: Array | None = None) -> Array:
    """Causal attention [n, d] of a residual stream [n, d].

    cached: bool [heads, n, n], which keys each row may see; a row sees its own at least. None: the
    full cache.
    """
    n, heads = len(x), len(weights.query)
    u = x / rms(x, eps)[:, None]
    group = heads // len(weights.key)
    seen = np.tril(np.ones((n, n), bool))
    outputs = []
    for h in range(heads):
        q, k, v = (
            u @ w.T for w in (weights.query[h], weights.key[h // group], weights.value[h // group])
        )
        logits = weights.scale * (q @ k.T)
        allowed = seen if cached is None else seen & cached[h]
        largest = np.where(allowed, logits.real, -np.inf).max(axis=1, keepdims=True)
        a = np.where(allowed, np.exp(np.where(allowed, logits - largest, 0)), 0)
        outputs.append((a / a.sum(axis=1, keepdims=True)) @ v)
    return np.concatenate(outputs, axis=1) @ weights.output.T


def run(
    decoder: Decoder,
    x: Array,
    errors: Sequence[Array] | None = None,
    cached: Sequence[Array] | None = None,
) -> Ran:
    """Run x [n, d]; errors [n, d] a layer are added to what attention puts out."""
    before, between, attended = [], [], []
    for i, layer in enumerate(decoder.layers):
        before.append(x)
        found = attend(layer, x, decoder.eps, None if cached is None else cached[i])
        attended.append(found)
        x = x + found + (0 if errors is None else errors[i])
        between.append(x)
        u = x / rms(x, decoder.eps)[:, None]
        x = x + (silu(u @ layer.gate.T) * (u @ layer.up.T)) @ layer.down.T
    logits = (x / rms(x, decoder.eps)[:, None]) @ decoder.head.T
    return Ran(logits, before, between, x, attended)


def output_errors(decoder: Decoder, x: Array, cached: Sequence[Array]) -> tuple[list[Array], Ran]:
    """What eviction adds to the output of each layer's attention, and the evicted run.

    The error of a layer is taken at the input that the evicted layers below it produce.
    """
    evicted = run(decoder, x, cached=cached)
    pairs = zip(decoder.layers, evicted.before, evicted.attended, strict=True)
    return [found - attend(w, at, decoder.eps) for w, at, found in pairs], evicted


def first_order(decoder: Decoder, x: Array, errors: Sequence[Array]) -> Array:
    """The derivative of the logits [n, vocabulary] along the errors, at the run without any."""
    step = [1j * STEP * error for error in errors]
    return run(decoder, x.astype(complex), step).logits.imag / STEP


def log10_bound(decoder: Decoder, x: Array, errors: Sequence[Array]) -> float:
    """Decimal logarithm of the product bound on the largest change of a logit."""
    full, moved = run(decoder, x), run(decoder, x, errors)
    factors = []
    for i, w in enumerate(decoder.layers):
        seen = _norms(w, full, moved, i, decoder.eps)
        factors.append((attention_factor(w, seen), mlp_factor(w, seen)))
    last = min(_least(full.last, decoder.eps), _least(moved.last, decoder.eps))
    longest = [float(np.linalg.norm(error, axis=1).max()) for error in errors]
    return log10_product(factors, head_factor(decoder.head, last), longest)


def _least(x: Array, eps: float) -> float:
    return float(rms(x, eps).min())


def _norms(w: LayerWeights, full: Ran, moved: Ran, i: int, eps: float) -> LayerNorms:
    u, away = (ran.before[i] / rms(ran.before[i], eps)[:, None] for ran in (full, moved))
    inner, far = (ran.between[i] / rms(ran.between[i], eps)[:, None] for ran in (full, moved))

    def longest(matrices: Array, rows: Array) -> Array:
        return np.array([np.linalg.norm(rows @ m.T, axis=1).max() for m in matrices])

    return LayerNorms(
        rms_attention=min(_least(ran.before[i], eps) for ran in (full, moved)),
        rms_mlp=min(_least(ran.between[i], eps) for ran in (full, moved)),
        key=longest(w.key, u),
        query=longest(w.query, away),
        value=longest(w.value, away),
        up=float(np.abs(inner @ w.up.T).max()),
        gate=float(np.abs(silu(far @ w.gate.T)).max()),
    )
