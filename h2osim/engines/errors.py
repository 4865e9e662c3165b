"""What a step's output loses with the keys that it does not attend: output and attention error.

In a decode step t a head attends G_t of its keys. With a the head's row (normalised) and â the same
row over G_t alone, renormalised (0 elsewhere; 0 everywhere if G_t has no mass),

    o = sum_j a_j v_j,    o_S = sum_j â_j v_j,

    output_error      = mean_h  sum_t |o - o_S|^2 / sum_t |o|^2
    output_error_abs  = mean_h  mean_t |o - o_S|
    attention_error   = mean_h  mean_t  sum_j (a_j - â_j)^2
    residual_error    = mean_t  |sum_h W_h (o - o_S)|^2 / |x|^2

over the unit's heads h and the decode steps t; W_h is a head's part of the layer's output
projection and x the residual stream before the layer. :mod:`~h2osim.engines.naive` computes them as
they stand here. The loops of this module add up what is *missing* instead (docs/output-error.md):

    o_S - o = -1/r sum_{j not in G_t} a_j (v_j - o),    r the share of mass that G_t has,

which is exactly 0 where nothing is missing, and which one walk up the stack of an inclusive policy
gives for every budget. Behind the projection the heads add up before the norm is taken; with
W = Q R, the columns of Q orthonormal, |sum_h W_h d_h| = |sum_h R_h d_h|: the loops carry R_h v_j,
which is no longer than the outputs of the unit's heads together, and shorter for the first of them
because R is triangular. Decisions are not touched: they
are exact, as in any replay. The errors are sums of float64 numbers; what is small in G_t is a
difference of what is large outside, so a step's relative rounding error is about 1e-16 / r. As r is
0 or at least 2^-24, engines agree to 1e-7 of an error (to 1e-12 in practice), and to 1e-12 where it
is nearly 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.engines.results import Errors
from h2osim.support.errors import UserError
from h2osim.traces.unit import Block, Unit

Floats = NDArray[np.float64]

OUTPUT = ("output_error", "output_error_abs")
ATTENTION = ("attention_error",)
RESIDUAL = ("residual_error",)
#: Variables that need more of a trace than its scores: values, and the output projection too.
NEEDS_VALUES = frozenset((*OUTPUT, *RESIDUAL))
NEEDS_RESIDUAL = frozenset(RESIDUAL)
#: Bytes of the lists of missing tokens of a block.
LISTS_BYTES = 8 * 2**20


def head_values(unit: Unit) -> tuple[Floats, NDArray[np.int64]]:
    """The unit's values, float64 [KV heads, n, d], and each query head's place among them."""
    values = np.ascontiguousarray(unit.values(), np.float64)
    return values, np.arange(len(unit.heads)) // (len(unit.heads) // len(unit.kv))


def refuse_sinks(units: Iterable[Unit]) -> None:
    """UserError where a layer has a learned sink."""
    for unit in units:
        if unit.trace.layer_entry(unit.layer).get("sink"):
            raise UserError(
                f"trace {unit.trace.name}: layer {unit.layer} has a learned sink, for which output "
                f"and attention error are not defined here; expected recall alone"
            )


def triangle_of(unit: Unit) -> list[Floats]:
    """R_h of each query head, transposed, float64 [d, size]: see the module's text.

    R is triangular, so head h has the first d (h + 1) coordinates alone.
    """
    w = unit.projections().astype(np.float64)
    heads, d, width = w.shape
    r = np.asarray(np.linalg.qr(w.reshape(heads * d, width).T, mode="r")).T.reshape(heads, d, -1)
    return [np.ascontiguousarray(one[:, : d * (h + 1)]) for h, one in enumerate(r)]


class Outputs:
    """The full outputs of a unit's rows, block after block; shared by all that is replayed on it.

    ``names`` are the variables wanted. ``out`` float64 [heads, rows, d], ``whole`` and ``squares``
    int64 [heads, rows] (fixed point: mass of a row, sum of its squares) are those of the block read
    last; ``power`` float64 [heads, n] is |o|^2 of every row so far, 0 for rows of the prompt.
    Of the residual error, ``projected`` float64 [n, all heads' coordinates] is R_h v, with
    ``ends`` int64 [heads] where each head's end, ``out`` [rows, the same] is R_h o, and
    ``residual`` float64 [n] is |x|^2.
    """

    def __init__(self, unit: Unit, prompt_len: int, names: Collection[str]):
        refuse_sinks([unit])
        heads, n = len(unit.heads), unit.n
        self.names, self.prompt_len = names, prompt_len
        self.values, self.kv = np.zeros((1, n, 0)), np.zeros(heads, np.int64)
        if NEEDS_VALUES.intersection(names):
            self.values, self.kv = head_values(unit)
        if NEEDS_RESIDUAL.intersection(names):
            self.triangle = triangle_of(unit)
            self.ends = np.cumsum([r.shape[1] for r in self.triangle])
            self.projected = self._behind(self.values[self.kv])
            self.residual = unit.residual_norms().astype(np.float64) ** 2
        self.power = np.zeros((heads, n))

    def read(self, block: Block) -> None:
        """Work out the outputs of a block's new rows."""
        from h2osim.engines import error_loops

        shape = len(self.kv), block.stop - block.start
        self.out = np.zeros((*shape, self.values.shape[2]))
        self.whole, self.squares = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        error_loops.outputs(
            block.bits, block.first, block.start, block.stop, self.prompt_len,
            self.values, self.kv, self.out, self.whole, self.squares, self.power,
        )  # fmt: skip
        if NEEDS_RESIDUAL.intersection(self.names):
            self.out = self._behind(self.out)

    def _behind(self, vectors: Floats) -> Floats:
        """R_h of vectors [heads, many, d], [many, all coordinates]."""
        return np.hstack([one @ r for one, r in zip(vectors, self.triangle, strict=True)])

    def rows_at_a_time(self) -> int:
        """How many rows a block should have, so that the lists of missing tokens stay small."""
        return max(32, LISTS_BYTES // (4 * self.power.shape[1]))


class RunErrors:
    """Errors of a run at one budget, or (``every``) of a pass over all budgets.

    An engine lists in ``missing`` uint32 [rows, n] the tokens that each row of a block does not
    attend, ``counts`` of them; a pass over all budgets lists its stack from the top, of which the
    budget k has all but the first k missing.
    """

    def __init__(self, outputs: Outputs, every: bool):
        self._outputs, self._every = outputs, every
        heads, n = outputs.power.shape
        columns = n + 1 if every else n - outputs.prompt_len
        # squared distance, distance, attention error: of each budget, or of each step
        self._sums = np.zeros((3, heads, columns))
        self._residual = np.zeros(columns)

    def room(self, block: Block) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Empty lists for a block's rows."""
        rows = block.stop - block.start
        return np.zeros((rows, block.stop), np.uint32), np.zeros(rows, np.int64)

    def add(self, block: Block, missing: NDArray[np.uint32], counts: NDArray[np.int64]) -> None:
        """Take in a block of which the lists are filled, after ``outputs`` has read it."""
        from h2osim.engines import error_loops

        full = self._outputs
        if NEEDS_RESIDUAL.intersection(full.names):
            error_loops.add_residuals(
                block.bits, block.first, block.start, block.stop, full.prompt_len, missing, counts,
                full.projected, full.ends, full.out, full.whole, full.residual, self._every,
                self._residual,
            )  # fmt: skip
            return
        error_loops.add_errors(
            block.bits, block.first, block.start, block.stop, full.prompt_len, missing, counts,
            full.values, full.kv, full.out, full.whole, full.squares, self._every, self._sums,
        )  # fmt: skip

    def result(self) -> Errors:
        """The errors wanted, by variable."""
        full = self._outputs
        power = full.power.sum(axis=1)
        steps = full.power.shape[1] - full.prompt_len
        if NEEDS_RESIDUAL.intersection(full.names):
            total = self._residual[1:] if self._every else self._residual.sum()
            return Errors(residual_mean(total, steps).of, {RESIDUAL[0]: self._residual})
        if self._every:
            return summed(self._sums[:, :, 1:], power, steps, full.names)
        return run_errors(self._sums, power, full.names)


def residual_mean(total: Any, steps: int) -> Errors:
    """The residual error from its sum over ``steps`` decode steps, at each budget."""
    return Errors({RESIDUAL[0]: total / steps if steps else np.full(np.shape(total), np.nan)})


def schedule_errors(
    unit: Unit, evicted_at: NDArray[np.int32], prompt_len: int, names: Collection[str]
) -> Errors:
    """Errors of a schedule: the step after which each token leaves, n if never."""
    outputs = Outputs(unit, prompt_len, names)
    run = RunErrors(outputs, every=False)
    for block in unit.blocks(rows=outputs.rows_at_a_time()):
        outputs.read(block)
        missing, counts = run.room(block)
        for row, t in enumerate(range(block.start, block.stop)):
            gone = np.flatnonzero(evicted_at[:t] < t)
            missing[row, : len(gone)], counts[row] = gone, len(gone)
        run.add(block, missing, counts)
    return run.result()


def run_errors(sums: Floats, power: Floats, names: Collection[str]) -> Errors:
    """The variables of a run at one budget, from those of each step [3, heads, steps]."""
    steps = sums.shape[2]
    found = summed(sums.sum(axis=2, keepdims=True), power, steps, names)
    each = summed(sums * steps, power, steps, names)
    return Errors({name: one[0] for name, one in found.of.items()}, each.of)


def summed(sums: Floats, power: Floats, steps: int, names: Collection[str]) -> Errors:
    """The variables from sums [3, heads, …, budgets] over ``steps`` decode steps.

    power [heads, …]: of |o|^2.

    A head whose output is 0 throughout has a relative error of 0 if nothing is lost, else NaN.
    """
    if not steps:
        return Errors({name: np.full(sums.shape[2:], np.nan) for name in names})
    squared, distance, attention = sums
    whole = np.broadcast_to(power[..., None], squared.shape)
    relative = np.divide(squared, whole, out=np.full(squared.shape, np.nan), where=whole > 0)
    relative[squared == 0] = 0.0
    found = {
        "output_error": relative.mean(axis=0),
        "output_error_abs": distance.mean(axis=0) / steps,
        "attention_error": attention.mean(axis=0) / steps,
    }
    return Errors({name: found[name] for name in names})
