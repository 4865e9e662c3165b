"""How much a layer of a decoder can stretch the difference of two runs: Lipschitz factors.

A layer is x -> y = x + A(x) -> y + M(y), A attention and M a gated MLP, each behind an RMS norm

    N(x) = g * x / s(x),   s(x) = sqrt(mean(x**2) + eps).

The gains g are folded into the weights that follow, so that the norm itself is x / s(x). Every
factor holds for the pair of runs whose largest norms it is given, not for all inputs: attention has
no factor for all inputs (Kim, Papamakarios and Mnih, arXiv 2006.04710). Differences are measured
by the longest row, matrices by their largest singular value. Proof: proofs/25.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SILU_SLOPE = 1.0999
"""No slope of silu(x) = x / (1 + exp(-x)) is larger; the largest is 1.09984 at x = 2.3994."""


@dataclass(frozen=True)
class LayerWeights:
    """The matrices of one layer, gains folded in.

    query [heads, d_h, d]; key [kv_heads, d_h, d]; value [kv_heads, d_v, d]; output
    [d, heads * d_v]; gate and up [f, d]; down [d, f]. Consecutive query heads share a KV head.
    scale: what logits of attention are multiplied by.
    """

    query: Array
    key: Array
    value: Array
    output: Array
    gate: Array
    up: Array
    down: Array
    scale: float


@dataclass(frozen=True)
class LayerNorms:
    """What two runs, the first and the moved one, show of one layer.

    rms_attention, rms_mlp: the least s(x) of the rows that differ, in either run, before attention
    and before the MLP. key [kv_heads]: longest key of the first run; query [heads], value
    [kv_heads]: longest of the moved run. up: largest entry of the first run; gate: largest
    silu(gate) of the moved one; both as absolute values.
    """

    rms_attention: float
    rms_mlp: float
    key: Array
    query: Array
    value: Array
    up: float
    gate: float


def spectral(matrix: Array) -> float:
    """The largest singular value of a matrix."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(small @ small.T)[-1])))


def attention_factor(weights: LayerWeights, seen: LayerNorms) -> float:
    """Factor of A: |W_o| sqrt(sum over heads of c_h**2) / s, with

    c_h = |W_v| + max|v| * scale * (|W_q| max|k| + |W_k| max|q|).
    """
    group = len(weights.query) // len(weights.key)
    key = [spectral(w) for w in weights.key]
    value = [spectral(w) for w in weights.value]
    heads = []
    for h, w in enumerate(weights.query):
        g = h // group
        logits = weights.scale * (spectral(w) * seen.key[g] + key[g] * seen.query[h])
        heads.append(value[g] + seen.value[g] * logits)
    return spectral(weights.output) * float(np.linalg.norm(heads)) / seen.rms_attention


def mlp_factor(weights: LayerWeights, seen: LayerNorms) -> float:
    """Factor of M: |W_down| (1.0999 |W_gate| max|up| + |W_up| max|silu(gate)|) / s."""
    inside = SILU_SLOPE * spectral(weights.gate) * seen.up + spectral(weights.up) * seen.gate
    return spectral(weights.down) * inside / seen.rms_mlp


def head_factor(head: Array, rms: float) -> float:
    """Factor of the last norm and the head [vocabulary, d], gain folded in: longest row / s.

    From the longest row of the residual stream to the largest logit.
    """
    return float(np.linalg.norm(head, axis=1).max()) / rms


def log10_product(
    factors: Sequence[tuple[float, float]], head: float, errors: Sequence[float]
) -> float:
    """Decimal logarithm of the bound on the largest change of a logit.

    factors: of attention and of the MLP, a layer; errors: longest row of what is added to the
    output of a layer's attention, after its output matrix. The bound is head * d_L with

        d_l = (1 + M_l) * ((1 + A_l) * d_{l-1} + e_l),   d_0 = 0.

    Logarithms, since the product may exceed every float. -inf if there is no error.
    """
    found = -np.inf
    for (attention, mlp), error in zip(factors, errors, strict=True):
        stretched = found + np.log1p(attention)
        added = np.log(error) if error > 0 else -np.inf
        found = np.logaddexp(stretched, added) + np.log1p(mlp)
    return float((found + np.log(head)) / np.log(10)) if head > 0 else -np.inf
