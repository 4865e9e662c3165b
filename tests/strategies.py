"""Every hypothesis strategy for traces.

`sixteenth_traces` is the one that finds disagreements: all probabilities are multiples of 1/16, so
every row sums to exactly 1 (no rounding anywhere) and ties and zeros are everywhere.
`softmax_traces` looks like a model's: float16 rows with sinks, locality and small entries that
flush to zero. `qk_traces` stores queries and keys instead of rows. `traces` draws any of the three.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from h2osim.traces.trace import Trace

ATOMS = 16
"""A row of `sixteenths` is this many atoms of mass 1/16, thrown on its tokens."""


def examples(count: int) -> settings:
    """A decorator for tests that need other than the usual number of draws.

    `count` in the `ci` profile, 100 times as many in `nightly`.
    """
    return settings(max_examples=count * max(1, settings().max_examples // 50))


@st.composite
def sixteenths(
    draw: st.DrawFn,
    *,
    min_n: int = 1,
    max_n: int = 24,
    max_heads: int = 3,
    max_layers: int = 2,
    n: int | None = None,
    heads: int | None = None,
    layers: int | None = None,
) -> np.ndarray:
    """Attention [layers, heads, n, n] of multiples of 1/16, float64; shrinks to all on token 0."""
    n = draw(st.integers(min_n, max_n)) if n is None else n
    heads = draw(st.integers(1, max_heads)) if heads is None else heads
    layers = draw(st.integers(1, max_layers)) if layers is None else layers
    rows = layers * heads * n
    # few, heavy atoms make rows with two or three entries; many make rows full of small ties
    atoms = draw(st.sampled_from([1, 2, 4, 8, ATOMS]))
    thrown = draw(st.binary(min_size=rows * atoms, max_size=rows * atoms))
    places = np.frombuffer(thrown, dtype=np.uint8).reshape(layers, heads, n, atoms)
    columns = places % np.arange(1, n + 1)[:, None]  # row t has t+1 tokens
    scores = np.zeros((layers, heads, n, n))
    layer, head, row, _ = np.indices(columns.shape)
    np.add.at(scores, (layer, head, row, columns), 1 / atoms)
    return scores


@st.composite
def softmax_scores(
    draw: st.DrawFn,
    *,
    min_n: int = 1,
    max_n: int = 24,
    max_heads: int = 3,
    max_layers: int = 2,
    dtype: Any = np.float32,
) -> np.ndarray:
    """Attention [layers, heads, n, n] as of a model: a softmax of random logits.

    With a sink on the first token, a preference for near tokens and a sharpness that are drawn:
    from flat rows to rows where most entries are below what float16 can hold.
    """
    n = draw(st.integers(min_n, max_n))
    shape = (draw(st.integers(1, max_layers)), draw(st.integers(1, max_heads)), n, n)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = rng.standard_normal(shape) * draw(st.sampled_from([0.0, 1.0, 4.0, 16.0]))
    logits[..., 0] += draw(st.sampled_from([0.0, 3.0]))
    row, column = np.indices((n, n))
    logits = logits - draw(st.sampled_from([0.0, 0.3])) * (row - column)
    logits[..., column > row] = -np.inf
    logits = logits.astype(np.float32)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray((weights / weights.sum(axis=-1, keepdims=True)).astype(dtype))


@st.composite
def sixteenth_traces(draw: st.DrawFn, *, norms: bool = False, **sizes: Any) -> Trace:
    """A trace of `sixteenths`, with any group size that divides the heads."""
    return _trace(draw, draw(sixteenths(**sizes)), norms)


@st.composite
def softmax_traces(draw: st.DrawFn, *, norms: bool = False, **sizes: Any) -> Trace:
    """A trace of `softmax_scores`, rounded to float16."""
    return _trace(draw, draw(softmax_scores(**sizes)), norms)


def turned(plain: np.ndarray) -> np.ndarray:
    """Vectors [..., n, d] after RoPE as in Llama, to the base 100; a lone dimension stays."""
    half = plain.shape[-1] // 2
    angle = np.arange(plain.shape[-2])[:, None] * 100.0 ** -(np.arange(half) / max(1, half))
    x, y, lone = np.split(plain, [half, 2 * half], axis=-1)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.concatenate([x * cos - y * sin, y * cos + x * sin, lone], axis=-1)


@st.composite
def qk_traces(
    draw: st.DrawFn,
    *,
    min_n: int = 1,
    max_n: int = 24,
    max_heads: int = 3,
    max_layers: int = 2,
    values: bool = False,
) -> Trace:
    """A trace of queries and keys, with or without softcap and sliding window."""
    n = draw(st.integers(min_n, max_n))
    layers, heads = draw(st.integers(1, max_layers)), draw(st.integers(1, max_heads))
    kv_heads = heads // draw(st.sampled_from([g for g in range(1, heads + 1) if heads % g == 0]))
    size = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    plain = rng.standard_normal((layers, heads, n, size)) * draw(st.sampled_from([0.0, 1.0, 8.0]))
    return Trace.from_qk(
        turned(plain),
        rng.standard_normal((layers, kv_heads, n, size)),
        v=rng.standard_normal((layers, kv_heads, n, size)) if values else None,
        q_plain=plain if values else None,
        wv_norm1=rng.random((layers, heads, n)) if values else None,
        scale=draw(st.sampled_from([0.5, 1.0])),
        softcap=draw(st.sampled_from([None, 2.0])),
        window=draw(st.one_of(st.none(), st.integers(1, n))),
        prompt_len=draw(st.one_of(st.none(), st.integers(1, n))),
    )


def traces(*, norms: bool = False, **sizes: Any) -> st.SearchStrategy[Trace]:
    """Any trace of rows; `norms` for rules that weigh by the norms of values and keys.

    sizes: min_n, max_n, max_heads, max_layers.
    """
    return st.one_of(sixteenth_traces(norms=norms, **sizes), softmax_traces(norms=norms, **sizes))


def _trace(draw: st.DrawFn, scores: np.ndarray, norms: bool) -> Trace:
    layers, heads, n, _ = scores.shape
    group_size = draw(st.sampled_from([g for g in range(1, heads + 1) if heads % g == 0]))
    tensors: dict[str, Any] = {}
    if norms:
        shape = (layers, heads // group_size, n)
        size = int(np.prod(shape))
        for name in ("v_norm1", "v_norm2", "k_norm2"):
            drawn = draw(st.binary(min_size=size, max_size=size))
            # multiples of 1/16 again: products with the scores stay exact, and tie
            tensors[name] = (np.frombuffer(drawn, np.uint8) % 64 / 16).reshape(shape)
    return Trace.from_scores(
        scores,
        group_size=group_size,
        prompt_len=draw(st.one_of(st.none(), st.integers(1, n))),
        **tensors,
    )
