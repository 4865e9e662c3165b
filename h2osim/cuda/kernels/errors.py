"""The kernels of output and attention error, run after those that decide (docs/output-error.md).

:mod:`~h2osim.cuda.kernels.residuals` has those of residual error. `outputs` computes what the
heads' whole rows give. `depth_errors` adds up the errors of every budget from the order in which
`stack` has the tokens; `budget_errors` those of a job at its budget from the evictions of `direct`.
Sums over a step's tokens are float64 and taken one token after the other, from the bottom of the
stack or from the oldest token on. Sums over steps are taken by blocks of steps. The order depends
on the number of tokens, heads and jobs of a call alone, so the same call gives the same bits.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from h2osim.cuda.device import Device, kernel_text
from h2osim.cuda.rows import DeviceRows
from h2osim.engines.errors import NEEDS_RESIDUAL, NEEDS_VALUES, refuse_sinks, run_errors, summed
from h2osim.engines.results import Errors
from h2osim.policies.declaration import Policy
from h2osim.traces.unit import Unit

#: Thread blocks that keep a GPU busy, and the most that share the steps of a head.
BLOCKS, SLICES = 1024, 8
#: Coordinates of the values that a lane of a warp has, unless a warp has too few lanes.
COORDINATES = 8


def error_rows(n: int) -> int:
    """Rows whose stacks are on the device at a time, 4 n bytes each."""
    return max(32, min(256, 2**18 // n))


def value_size(units: Iterable[Unit], names: Collection[str]) -> int:
    """The most coordinates of a value in some units; 0 where no value is needed."""
    if not NEEDS_VALUES.intersection(names):
        return 0
    tensors = {unit.layer: unit.trace.tensors(unit.layer) for unit in units}
    trace = next(iter(units)).trace
    return max(
        trace.tensor(layer, "v" if "v" in stored else "v_q8").shape[2]
        for layer, stored in tensors.items()
    )


def error_bytes(unit: Unit, size: int, jobs: int, every: bool, names: Collection[str]) -> int:
    """Bytes of device memory for the errors of ``jobs`` jobs of a unit; ``size``: `value_size`."""
    n, heads, rows = unit.n, len(unit.heads), error_rows(unit.n)
    width = 2 * size + 4 * COORDINATES  # padded
    each = 24 * heads * (n + 1) * SLICES + 4 * rows * n if every else 24 * heads * n
    behind = heads * (heads + 1) // 2 * width if NEEDS_RESIDUAL.intersection(names) else 0
    return (
        4 * len(unit.kv) * n * width + 8 * heads * (rows * (width + 2) + n)
        + 8 * behind * (n + rows + size) + jobs * each
    )  # fmt: skip


class Outputs:
    """The outputs of the rows of some units, block after block; all jobs on them share it.

    ``names``: the variables wanted. ``size``: `value_size` of the call's units, and ``jobs``: how
    many it has. For the kernels of errors, ``constants``, and after :meth:`read` their arguments
    ``given``. They are called after ``kind``; ``sums`` is the shape of what they add up for a job,
    by head where there is one sum a head.
    """

    kind = "errors"
    constants: dict[str, int]
    sums: tuple[int, ...]
    by_head: int

    def __init__(
        self,
        device: Device,
        units: Sequence[Unit],
        prompt_len: int,
        names: Collection[str],
        size: int,
        jobs: int,
    ):
        refuse_sinks(units)
        self.device, self.p, self.names = device, prompt_len, names
        self.n, self.heads, many = units[0].n, len(units[0].heads), len(units)
        self.constants = shape = errors_shape(device, self.n, self.heads, size, jobs)
        self.sums, self.by_head = (3,), self.heads
        self._threads, self._steps = shape["T"], shape["T"] // shape["LANES"]
        self._width = shape["LANES"] * shape["DIMS"]
        self._text = kernel_text("errors", shape)
        group = self.heads // len(units[0].kv)
        self._values = [
            self._padded(units),
            device.array(np.arange(many * self.heads, dtype=np.int32) // group),
        ]
        self._power = device.full((many * self.heads, self.n), np.float64)

    def _padded(self, units: Sequence[Unit]) -> Any:
        """The units' values on the device, each with as many coordinates as lanes can have."""
        each = len(units[0].kv) * self.n * self._width
        target = self.device.empty(max(1, len(units) * each), np.float32)

        def put(i: int) -> None:
            values = units[i].values()
            padded = np.zeros((*values.shape[:2], self._width), np.float32)
            padded[..., : values.shape[2]] = values
            self.device.put(padded.reshape(-1), target, i * each)

        if each:
            with self.device.copying:
                self.device.each(put, range(len(units)))
        return target

    def read(self, rows: DeviceRows) -> None:
        """Compute the outputs of the new rows."""
        heads = len(self._power)
        many = heads * (rows.stop - rows.start)
        out = self.device.empty(max(1, many * self._width), np.float64)
        sums = self.device.empty(2 * many, np.int64)
        self.given = [rows.bits, rows.bases, *self._values, out, sums, self._power]
        self.device.launch(
            self._text, "outputs", -(-many // self._steps), self._threads, 0,
            [*self.given, *map(np.int32, (heads, self.n, rows.start, rows.stop))],
        )  # fmt: skip

    def power(self, unit_of: Sequence[int]) -> np.ndarray:
        """float64 [heads, jobs]: the sum of |o|^2 over the decode steps."""
        found = self.device.host(self._power)[:, self.p :].sum(axis=1).reshape(-1, self.heads)
        return np.asarray(found[np.asarray(unit_of)].T)

    def curves(self, sums: np.ndarray, unit_of: Sequence[int]) -> list[Errors]:
        """The errors of each job, from sums [jobs, heads, 3, budgets]."""
        power = self.power(unit_of)
        found = summed(sums.transpose(2, 1, 0, 3), power, self.n - self.p, self.names)
        return [Errors({name: x[i] for name, x in found.of.items()}) for i in range(len(unit_of))]

    def runs(self, sums: np.ndarray, unit_of: Sequence[int]) -> list[Errors]:
        """The errors of each job, of all steps and of each, from sums [3, jobs, heads, steps]."""
        power = self.power(unit_of)
        return [run_errors(sums[:, i], power[:, i], self.names) for i in range(len(unit_of))]


def read_in_parts(blocks: Iterable[DeviceRows], outputs: Outputs | None) -> Iterator[DeviceRows]:
    """The rows; where errors are wanted `error_rows` at a time, after ``outputs`` has read them."""
    for rows in blocks:
        if outputs is None:
            yield rows
            continue
        many = error_rows(outputs.n)
        for start in range(rows.start, rows.stop, many):
            part = replace(rows, start=start, stop=min(start + many, rows.stop))
            outputs.read(part)
            yield part


def errors_shape(device: Device, n: int, heads: int, size: int, jobs: int) -> dict[str, int]:
    """The constants of the kernels; ``size``: coordinates of a value, ``jobs``: of a call."""
    # a power of two, so that a warp has whole steps
    lanes = min(device.warp, 1 << max(0, -(-size // COORDINATES) - 1).bit_length())
    if not size:
        lanes = device.warp
    threads = min(256, device.threads)
    slices = min(SLICES, -(-BLOCKS // (jobs * heads)), -(-error_rows(n) * lanes // threads))
    return {
        "T": threads, "LANES": lanes, "DIMS": 4 * -(-size // (4 * lanes)), "HEADS": heads,
        "SLICES": slices,
    }  # fmt: skip


class DepthErrors:
    """Every budget's errors of jobs whose stacks are in ``orders`` after each block of rows."""

    def __init__(self, outputs: Outputs, unit_of: Sequence[int]):
        self._outputs, self._unit_of = outputs, unit_of
        device, n, shape = outputs.device, outputs.n, outputs.constants
        self._text = kernel_text(outputs.kind, shape)
        self._units = device.array(np.array(unit_of, np.int32))
        self.orders = device.empty(len(unit_of) * error_rows(n) * n, np.int32)
        blocks = len(unit_of), outputs.by_head, shape["SLICES"]
        self._sums = device.full((*blocks, *outputs.sums, n + 1), np.float64)

    def add(self, rows: DeviceRows) -> None:
        """Take in a block, after ``outputs`` has read it and ``orders`` are filled."""
        full = self._outputs
        grid = len(self._unit_of) * full.by_head * full.constants["SLICES"]
        full.device.launch(
            self._text, f"depth_{full.kind}", grid, full.constants["T"], 0,
            [*full.given, self._units, self.orders, self._sums,
             *map(np.int32, (full.n, full.p, rows.start, rows.stop))],
        )  # fmt: skip

    def result(self) -> list[Errors]:
        """The errors of each job at every budget."""
        full = self._outputs
        return full.curves(full.device.host(self._sums).sum(axis=2)[..., 1:], self._unit_of)


class BudgetErrors:
    """Errors of the steps of jobs of a policy, each at its budget.

    ``given``: units, budgets, parameters and evictions, as `direct` takes them.
    """

    def __init__(
        self, outputs: Outputs, unit_of: Sequence[int], policy: Policy, given: Sequence[Any]
    ):
        self._outputs, self._unit_of = outputs, unit_of
        self._text = kernel_text(f"budget_{outputs.kind}", outputs.constants, policy)
        self._shape = *outputs.sums, len(unit_of), outputs.by_head, outputs.n - outputs.p
        self._errors = outputs.device.full(max(1, int(np.prod(self._shape))), np.float64)
        self._given = [*given, self._errors]

    def add(self, rows: DeviceRows) -> None:
        """Take in a block, after ``outputs`` has read it and it has been replayed."""
        full, jobs, shape = self._outputs, len(self._unit_of), self._outputs.constants
        many = jobs * full.by_head * (rows.stop - max(rows.start, full.p))
        if many > 0:
            full.device.launch(
                self._text, f"budget_{full.kind}", -(-many * shape["LANES"] // shape["T"]),
                shape["T"], 0,
                [*full.given, *self._given,
                 *map(np.int32, (jobs, full.n, full.p, rows.start, rows.stop))],
            )  # fmt: skip

    def result(self) -> list[Errors]:
        """The errors of each job, of all steps and of each."""
        full, size = self._outputs, int(np.prod(self._shape))
        sums = full.device.host(self._errors)[:size].reshape(self._shape)
        return full.runs(sums, self._unit_of)
