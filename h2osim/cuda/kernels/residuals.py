"""The kernels of residual error: those of output error behind the output projection.

With W = Q R (:mod:`h2osim.engines.errors`), `project_values` and `project_outputs` make R_h v and
R_h o of the values and the outputs. `depth_residuals` and `budget_residuals` then go through a
row's tokens as `depth_errors` and `budget_errors` do, in the same order, but with all heads of a
unit, which add up before the norm is taken.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from h2osim.cuda.device import Device, kernel_text
from h2osim.cuda.kernels.errors import BLOCKS, SLICES, Outputs, error_rows, errors_shape
from h2osim.cuda.rows import DeviceRows
from h2osim.engines.errors import NEEDS_RESIDUAL, RESIDUAL, residual_mean, triangle_of
from h2osim.engines.results import Errors
from h2osim.traces.unit import Unit

#: Vectors that a thread projects (`ROWS` of residuals.cu).
ROWS = 4


def residuals_shape(device: Device, n: int, heads: int, size: int, jobs: int) -> dict[str, int]:
    """The constants of the kernels; ``size``: coordinates of a value, ``jobs``: of a call."""
    lanes = min(device.warp, 1 << (max(1, size // 4).bit_length() - 1))
    threads = min(256, device.threads)
    slices = min(SLICES, -(-BLOCKS // jobs), -(-error_rows(n) * lanes // threads))
    part = 2 * -(-size // (2 * lanes))
    vectors = errors_shape(device, n, heads, size, jobs)
    return {
        "T": threads, "LANES": lanes, "PART": part, "HEADS": heads, "SLICES": slices, "SIZE": size,
        "WIDTH": vectors["LANES"] * vectors["DIMS"],
    }  # fmt: skip


def row_size(heads: int, part: int) -> int:
    """Coordinates of all heads behind the projection; ``part``: of a head's own, padded."""
    return heads * (heads + 1) // 2 * part


class Residuals(Outputs):
    """What :class:`~h2osim.cuda.kernels.errors.Outputs` is, behind the output projection."""

    kind = "residuals"

    def __init__(
        self,
        device: Device,
        units: Sequence[Unit],
        prompt_len: int,
        names: Collection[str],
        size: int,
        jobs: int,
    ):
        super().__init__(device, units, prompt_len, names, size, jobs)
        self.constants = residuals_shape(device, self.n, self.heads, size, jobs)
        self.sums, self.by_head = (), 1
        self._many = len(units)
        self._part = self.constants["PART"] * self.constants["LANES"]
        self._row = row_size(self.heads, self._part)
        self._size = size
        self._project = kernel_text("residuals", self.constants)
        self._triangles = device.empty(len(units) * size * self._row, np.float64)
        with device.copying:
            device.each(lambda i: self._put(units[i], i), range(len(units)))
        norms = np.stack([unit.residual_norms() for unit in units]).astype(np.float64)
        self._streams = device.array(norms**2)
        self._projected = device.empty(len(units) * self.n * self._row, np.float64)
        self._launch("project_values", [*self._values, self._triangles, self._projected], self.n)

    def _put(self, unit: Unit, place: int) -> None:
        """Put a unit's R on the device, each part padded."""
        found = np.zeros((self._size, self._row))
        for h, triangle in enumerate(triangle_of(unit)):
            size, start = len(triangle), row_size(h, self._part)
            for part in range(h + 1):
                own = triangle[:, part * size : (part + 1) * size]
                found[:size, start + part * self._part :][:, : own.shape[1]] = own
        self.device.put(found.reshape(-1), self._triangles, place * found.size)

    def _launch(self, name: str, given: list[object], many: int) -> None:
        """Project ``many`` vectors of each head."""
        threads = self._many * -(-many // ROWS) * self._row
        size = self.constants["T"]
        self.device.launch(
            self._project, name, -(-threads // size), size, 0,
            [*given, np.int32(self._many), np.int32(many)],
        )  # fmt: skip

    def read(self, rows: DeviceRows) -> None:
        """Compute the outputs of the new rows, and project them."""
        super().read(rows)
        bits, bases, _, _, out, sums, _ = self.given
        many = rows.stop - rows.start
        projected = self.device.empty(self._many * many * self._row, np.float64)
        self._launch("project_outputs", [out, self._triangles, projected], many)
        self.given = [bits, bases, self._projected, projected, sums, self._streams]

    def curves(self, sums: np.ndarray, unit_of: Sequence[int]) -> list[Errors]:
        """The errors of each job, from sums [jobs, 1, budgets]."""
        return [residual_mean(one, self.n - self.p) for one in sums[:, 0]]

    def runs(self, sums: np.ndarray, unit_of: Sequence[int]) -> list[Errors]:
        """The errors of each job, of all steps and of each, from sums [jobs, 1, steps]."""
        return [
            Errors(residual_mean(one.sum(), len(one)).of, {RESIDUAL[0]: one}) for one in sums[:, 0]
        ]


def outputs_of(
    device: Device,
    units: Sequence[Unit],
    prompt_len: int,
    names: Collection[str],
    size: int,
    jobs: int,
) -> Outputs:
    """What reads the rows for the errors wanted."""
    kind = Residuals if NEEDS_RESIDUAL.intersection(names) else Outputs
    return kind(device, units, prompt_len, names, size, jobs)
