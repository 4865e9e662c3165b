"""What a key is worth to the output, in the place of its attention: rows for `optimum`.

If one token j were all that step t lacks, its head's output would move by a_j / (1 - a_j) times
|v_j - o_t|. So with weights

    W[t, j] = A[t, j] * |v_j - o_t|,    o_t = sum_j A[t, j] v_j / sum_j A[t, j],

what a schedule loses of W bounds from above, up to the factor 1/r_t, how far it moves the output
(the triangle inequality in proofs/10-output-error.md). W is a sum over tokens like the mass, so the
optimum stays an assignment, and solvers, prices and certificates work on it unchanged. To make it
exact, W is divided by a power of two per layer that no weight can exceed, at least twice the
longest value, and rounded to float16: a row of integers again (multiples of 2^-24 of that power).
The loops keep one order of operations, so the integers are the same on every machine.
"""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.engines.errors import head_values
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

WEIGHTS = ("mass", "value")
_ROWS = 256


class Weighted:
    """A trace whose rows are W (:class:`~h2osim.traces.unit.Recording`); a layer is made once."""

    def __init__(self, trace: Trace):
        self.stores: tuple[str, ...] = ("scores",)
        self._trace, self.name = trace, trace.name
        self.path: Path | None = None
        self._made: dict[int, NDArray[np.uint16]] = {}
        self._locks = {layer: threading.Lock() for layer in trace.layers}
        # facts, messages and checks of a layer are the trace's
        self.layer_entry, self.where = trace.layer_entry, trace.where
        self.check_layer = trace.check_layer

    def tensors(self, layer: int) -> tuple[str, ...]:
        """The rows alone."""
        return ("scores",)

    def tensor(self, layer: int, name: str) -> NDArray[Any]:
        """Weights of all heads of a layer, uint16 [heads, packed]."""
        if name != "scores":
            raise KeyError(name)
        with self._locks[layer]:
            if layer not in self._made:
                unit = next(u for u in self._trace.units("layer") if u.layer == layer)
                self._made[layer] = weights_of(unit)
            return self._made[layer]


def weighed(trace: Trace, share: str, weights: str) -> list[Unit]:
    """The units of a trace with rows of these weights; UserError where values are missing."""
    units = trace.units(share)
    if weights not in WEIGHTS:
        raise UserError(f"unknown weights {weights!r}; expected {' or '.join(WEIGHTS)}")
    if weights == "mass":
        return units
    for unit in units:
        if not unit.has_values:
            raise UserError(
                f"weights value: trace {trace.name} has no values ({unit.label}); record it with "
                "h2osim record … --values"
            )
    rows = Weighted(trace)
    return [replace(unit, trace=rows, _memo={}) for unit in units]


def scale_of(unit: Unit) -> float:
    """The power of two that a layer's weights are divided by: at least twice its longest value."""
    values, _ = head_values(unit)
    largest = float(np.abs(values).max(initial=0.0))
    # The norm's last digit may depend on the machine; sqrt(d) * largest, rounded up, bounds it.
    _, exponent = math.frexp(2 * largest * math.ceil(math.sqrt(values.shape[2])))
    return 2.0**exponent


def weights_of(unit: Unit) -> NDArray[np.uint16]:
    """Patterns of W / scale, uint16 [heads, packed], of a unit that is a whole layer."""
    from h2osim.optima import weighing_loops

    values, kv = head_values(unit)
    scale = scale_of(unit)
    bits = np.empty((len(unit.heads), tri(unit.n)), np.uint16)
    for block in unit.blocks(rows=_ROWS):
        here = slice(tri(block.start), tri(block.stop))
        room = np.zeros((len(unit.heads), tri(block.stop) - tri(block.start)))
        weighing_loops.weigh(
            block.bits, block.first, block.start, block.stop, values, kv, scale, room
        )
        bits[:, here] = room.astype(np.float16).view(np.uint16)
    bits.flags.writeable = False
    return bits
