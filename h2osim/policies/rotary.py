"""The rotary embedding (RoPE) of a layer, read off from its queries before and after it.

RoPE turns pairs of a vector's dimensions by an angle that grows with the position. Models differ in
which dimensions are a pair, how fast each pair turns, how many turn at all, and by what factor they
are stretched. All of that is in the recorded queries, so no model's code is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit

Complex = NDArray[np.complex128]

ROWS = 512
"""Rows that are looked at: what float32 rounds off then turns a pair by some 1e-10 a position."""
MISSED = 1e-3
"""Share of the queries' squared length that may stay unexplained: bfloat16 rounds off 4e-6."""


@dataclass(frozen=True)
class Rotary:
    """pairs: int [2, pairs], the dimensions that turn together. angle: radians a position [pairs].
    stretch: what their length is multiplied by [pairs].
    """

    pairs: NDArray[np.intp]
    angle: NDArray[np.float64]
    stretch: NDArray[np.float64]

    def complex(self, vectors: NDArray[Any]) -> Complex:
        """Vectors [..., d] as complex numbers [..., pairs]: to turn a pair is to multiply it."""
        x = _even(vectors)
        return np.asarray(x[..., self.pairs[0]] + 1j * x[..., self.pairs[1]])

    def turn(self, positions: NDArray[Any]) -> Complex:
        """What a vector at each of these positions [...] is multiplied by, [..., pairs]."""
        return np.asarray(self.stretch * np.exp(1j * positions[..., None] * self.angle))


def rotary_of(unit: Unit) -> Rotary:
    """The embedding of a unit's layer; UserError where its queries are not turned in pairs."""
    plain, turned = (_even(x[:, :ROWS]) for x in (unit.plain_queries(), unit.queries()))
    places = np.arange(plain.shape[1])
    best, least = None, np.inf
    for pairs in _pairings(plain, turned):
        found = _fitted(pairs, plain, turned)
        off = found.complex(turned) - found.complex(plain) * found.turn(places)
        missed = float((np.abs(off) ** 2).sum())
        if missed < least:
            best, least = found, missed
    if best is None or least > MISSED * float((turned**2).sum()):
        raise UserError(
            f"trace {unit.trace.name}, {unit.label}: its queries are not those before RoPE, turned "
            "pair by pair by angles that grow with the position"
        )
    return best


def beside(z: Complex) -> NDArray[np.float64]:
    """Complex [heads, n, pairs] as float64 [n, heads x 2 pairs]: of each head the real parts, then
    the imaginary ones, so that a dot product is the real part of x times the conjugate of y.
    """
    both = np.concatenate([z.real, z.imag], axis=2)
    return np.ascontiguousarray(both.transpose(1, 0, 2).reshape(z.shape[1], -1))


def _even(vectors: NDArray[Any]) -> NDArray[np.float64]:
    """float64, with a 0 more where the number of dimensions is odd."""
    x = vectors.astype(np.float64)
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, x.shape[-1] % 2)])


def _pairings(plain: NDArray[Any], turned: NDArray[Any]) -> Iterator[NDArray[np.intp]]:
    """The pairs that there may be: dimension c with that of the other half, or with its neighbour;
    of all dimensions, or of the first ones where the last are never turned.
    """
    d = plain.shape[2]
    moved = np.flatnonzero((plain != turned).any(axis=(0, 1)))
    last = int(moved[-1]) + 1 if len(moved) else d
    for turning in dict.fromkeys((d, last + last % 2)):
        rest = np.arange(turning, d).reshape(-1, 2).T
        both = np.arange(turning)
        for pairs in (both.reshape(2, -1), both.reshape(-1, 2).T):
            yield np.concatenate([pairs, rest], axis=1)


def _fitted(pairs: NDArray[np.intp], plain: NDArray[Any], turned: NDArray[Any]) -> Rotary:
    """How fast each pair turns: by least squares over rows, each as much as its queries are long.

    A row's angle is known up to whole turns, and those follow from the rows before it.
    """
    still = Rotary(pairs, np.zeros(pairs.shape[1]), np.ones(pairs.shape[1]))
    z, w = still.complex(plain), still.complex(turned)
    both, size = (w * z.conj()).sum(axis=0), (np.abs(z) ** 2).sum(axis=0)  # [rows, pairs]
    angle, along, weight = np.zeros((3, pairs.shape[1]))
    for t in range(1, len(both)):
        ahead = np.angle(both[t] * np.exp(-1j * angle * t))
        along += size[t] * t * (angle * t + ahead)
        weight += size[t] * t * t
        angle = np.divide(along, weight, out=np.zeros_like(angle), where=weight > 0)
    length = size.sum(axis=0)
    stretch = np.divide(
        np.abs(both).sum(axis=0), length, out=np.ones_like(length), where=length > 0
    )
    return Rotary(pairs, angle, stretch)
