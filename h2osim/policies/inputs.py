"""Numbers and vectors per token that a policy may ask for (``Policy.inputs``, ``Policy.vectors``).

Each is ``f(unit, values)``, float64 [n] or [n, width], computed once with NumPy before a run and
handed to every engine, so that engines cannot differ in them. Of vectors those of a unit's KV heads
(of queries: of its heads) stand side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import UNIT
from h2osim.policies.rotary import beside, rotary_of
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit

Values = Mapping[str, int | float]
Numbers = NDArray[np.float64]


def checked(found: Any, policy: str, name: str, shape: tuple[int | None, ...]) -> Numbers:
    """What a policy's function gave for an input, as float64 of this shape, contiguous.

    None in the shape: a width from 1 on.

    UserError for another shape, for what is no real number, and for NaN: engines would read beyond
    its end, or disagree on an order that NaN does not have.
    """
    try:
        array = np.asarray(found)
    except ValueError:  # lists of unequal lengths
        array = np.asarray(None)
    where = f"policy {policy}: its input {name}"
    expected = f"[{', '.join('width' if n is None else str(n) for n in shape)}]"
    if array.dtype.kind not in "fiub":
        kind = array.dtype if array.shape else type(found).__name__
        raise UserError(f"{where}: found {kind}, expected {expected} real numbers")
    if array.ndim != len(shape) or any(
        x < 1 if n is None else x != n for x, n in zip(array.shape, shape, strict=True)
    ):
        raise UserError(f"{where}: found shape {list(array.shape)}, expected {expected}")
    numbers = np.ascontiguousarray(array, np.float64)
    if np.isnan(numbers).any():
        token = -1 if shape[-1] is not None else -2
        place = int(np.argwhere(np.isnan(numbers))[0][token])
        raise UserError(f"{where}, token {place}: found NaN, expected a number")
    return numbers


def noise(unit: Unit, values: Values) -> Numbers:
    """A number in [0, 1) per token: the splitmix64 hash of ``seed`` and the position."""
    z = np.arange(1, unit.n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(int(values["seed"]) * 0xD1342543DE82EF95 % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(((z ^ (z >> np.uint64(31))) >> np.uint64(11)) * 2.0**-53, np.float64)


def gumbel(unit: Unit, values: Values) -> Numbers:
    """Standard Gumbel noise from :func:`noise`: the m largest of score + noise are a sample of m
    without replacement from softmax(score).
    """
    return np.asarray(-np.log(-np.log(noise(unit, values) + 2.0**-54)), np.float64)


def total(unit: Unit, values: Values) -> Numbers:
    """The attention mass that the token receives in the whole text: sum over t of A[t, j]."""
    return np.asarray(unit.column_sums() * UNIT, np.float64)


def place(unit: Unit, values: Values) -> Numbers:
    """The token's place by :func:`total`: 0 for the most, the newer first among equals."""
    order = np.lexsort((-np.arange(unit.n), -unit.column_sums()))
    found = np.empty(unit.n)
    found[order] = np.arange(unit.n)
    return found


def value_norm(unit: Unit, values: Values) -> Numbers:
    """The L1 norm of the token's value vector, summed over the unit's KV heads."""
    return unit.value_norms()


def value_length(unit: Unit, values: Values) -> Numbers:
    """The L2 norm of the token's value vector, summed over the unit's KV heads."""
    return unit.value_norms(order=2)


def value_range(unit: Unit, values: Values) -> Numbers:
    """The largest less the smallest entry of the token's value, summed over the unit's KV heads."""
    found = unit.values().astype(np.float64)
    return np.asarray(np.add.accumulate(found.max(axis=2) - found.min(axis=2), axis=0)[-1])


def key_norm(unit: Unit, values: Values) -> Numbers:
    """The L2 norm of the token's key, summed over the unit's KV heads."""
    return unit.key_norms()


def output_norm(unit: Unit, values: Values) -> Numbers:
    """The L1 norm of W_o v, the token's value as a head adds it to the residual stream, mean over
    the unit's heads.
    """
    return unit.output_norms()


def key(unit: Unit, values: Values) -> Numbers:
    """Keys after RoPE."""
    return _beside(unit.keys())


def value(unit: Unit, values: Values) -> Numbers:
    """Values."""
    return _beside(unit.values())


def query(unit: Unit, values: Values) -> Numbers:
    """Queries after RoPE."""
    return _beside(unit.queries())


def plain_query(unit: Unit, values: Values) -> Numbers:
    """Queries before RoPE."""
    return _beside(unit.plain_queries())


def paired_key(unit: Unit, values: Values) -> Numbers:
    """Keys after RoPE, of each KV head first one dimension of every pair that RoPE turns, then the
    other; see :mod:`h2osim.policies.rotary`.
    """
    return beside(rotary_of(unit).complex(unit.keys()))


def paired_query(unit: Unit, values: Values) -> Numbers:
    """Queries before RoPE, in the order of :func:`paired_key`."""
    return beside(rotary_of(unit).complex(unit.plain_queries()))


def key_direction(unit: Unit, values: Values) -> Numbers:
    """Each KV head's key after RoPE, divided by its L2 norm; 0 where that is 0."""
    keys = unit.keys().astype(np.float64)
    lengths = np.sqrt(np.add.accumulate(keys * keys, axis=2)[:, :, -1:])
    return _beside(keys / np.where(lengths == 0, 1, lengths))


def _beside(vectors: NDArray[Any]) -> Numbers:
    """Vectors [heads, n, d] side by side, float64 [n, heads x d]."""
    return vectors.transpose(1, 0, 2).reshape(vectors.shape[1], -1).astype(np.float64)
