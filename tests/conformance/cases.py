"""The layers that h2osim and its peers are shown alike, made with NumPy alone.

A case is drawn by NumPy's legacy generator, whose numbers never change. In ``rows`` cases attention
is made of logits and rounded to float16, so that both sides read the same numbers; ``vectors``
cases have queries, keys and values in sixteenths, of which attention follows; in ``turned`` cases
RoPE has turned the queries.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Case:
    """A layer of ``heads`` query heads that share ``groups`` caches; p of n tokens are prompt."""

    name: str
    kind: str
    n: int
    p: int
    heads: int
    groups: int
    seed: int
    d: int = 16

    @cached_property
    def rows(self) -> np.ndarray:
        """Attention, float16 [heads, n, n], lower triangular: sinks, locality, heavy tokens."""
        draw = np.random.RandomState(self.seed)
        logits = draw.randn(self.heads, self.n, self.n)
        logits += 1.5 * draw.randn(self.groups, 1, self.n).repeat(self.heads // self.groups, axis=0)
        back = np.arange(self.n)[:, None] - np.arange(self.n)
        logits += 2.0 * np.exp(-np.maximum(back, 0) / 6)
        logits[:, :, 0] += 2.0
        weights = np.where(back >= 0, np.exp(logits), 0.0)
        return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float16)

    @cached_property
    def vectors(self) -> dict[str, np.ndarray]:
        """float32: q [heads, n, d], k and v [groups, n, d], in sixteenths; w_o [heads, d, D].

        In ``turned`` cases q_plain has the queries before RoPE.
        """
        draw = np.random.RandomState(self.seed)
        group = self.heads // self.groups
        mean = draw.randn(self.groups, 1, self.d)
        k = draw.randn(self.groups, self.n, self.d) + 0.7 * mean
        k[:, 1::7] = k[:, 0:-1:7] + 0.3 * draw.randn(*k[:, 1::7].shape)  # some keys are alike
        q = draw.randn(self.heads, self.n, self.d) + 0.7 * mean.repeat(group, axis=0)
        scale = np.exp(0.5 * draw.randn(self.groups, self.n, 1))
        v = draw.randn(self.groups, self.n, self.d) * scale
        w_o = draw.randn(self.heads, self.d, self.heads * self.d) / 4
        found = {"q": q, "k": k, "v": v, "w_o": w_o}
        found = {name: (np.round(16 * x) / 16).astype(np.float32) for name, x in found.items()}
        if self.kind == "turned":
            found |= {"q_plain": found["q"], "q": turned(found["q"])}
        return found

    @property
    def digest(self) -> str:
        """The first digits of a sha256 of all that the case shows."""
        shown = [self.rows] if self.kind == "rows" else list(self.vectors.values())
        return hashlib.sha256(b"".join(x.tobytes() for x in shown)).hexdigest()[:16]


def turned(x: np.ndarray) -> np.ndarray:
    """Vectors [heads, n, d] under RoPE: a dimension and that of the other half are a pair."""
    half = x.shape[-1] // 2
    angles = np.arange(x.shape[1])[:, None] * BASE ** (-np.arange(half) / half)
    z = (x[..., :half] + 1j * x[..., half:].astype(np.float64)) * np.exp(1j * angles)
    return np.concatenate([z.real, z.imag], axis=-1).astype(np.float32)


#: The longest wave of RoPE has about this many tokens.
BASE = 10_000.0

CASES = {
    case.name: case
    for case in (
        Case("rows-mha", "rows", n=80, p=60, heads=3, groups=3, seed=1),
        Case("rows-gqa", "rows", n=80, p=60, heads=6, groups=2, seed=2),
        Case("rows-mqa", "rows", n=64, p=40, heads=4, groups=1, seed=3),
        Case("decode", "rows", n=48, p=1, heads=2, groups=2, seed=4),
        Case("decode-long", "rows", n=96, p=1, heads=4, groups=2, seed=7),
        Case("vectors-mha", "vectors", n=80, p=60, heads=3, groups=3, seed=5),
        Case("vectors-gqa", "vectors", n=80, p=60, heads=6, groups=2, seed=6),
        Case("turned-mha", "turned", n=80, p=60, heads=3, groups=3, seed=8),
        Case("turned-gqa", "turned", n=80, p=60, heads=6, groups=2, seed=9),
    )
}
