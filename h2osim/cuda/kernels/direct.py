"""The kernel `direct`: replays one policy at given budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from h2osim.cuda.device import Device, kernel_text
from h2osim.cuda.kernels.arguments import job_arrays
from h2osim.cuda.kernels.errors import BudgetErrors, Outputs
from h2osim.cuda.rows import DeviceRows
from h2osim.engines.request import Job
from h2osim.engines.results import Errors, Outcome
from h2osim.policies.declaration import Policy
from h2osim.policies.roles import arguments


class Direct:
    """Replays jobs of one policy; ``unit_of``: the index of each job's unit in the rows.

    ``outputs``: what has read each block of rows before, where errors are wanted.
    """

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        outputs: Outputs | None = None,
    ):
        job = jobs[0]
        n, p, heads = job.unit.n, job.prompt_len, len(job.unit.heads)
        policy = job.configured.policy
        self._device, self._jobs = device, jobs
        self._threads = min(device.threads, 128)
        self._text = kernel_text("direct", {"T": self._threads}, policy)
        self._each = direct_bytes(policy, n, heads)
        self._evicted_at = device.full((len(jobs), n), np.int32, n)
        self._kept = device.full((len(jobs), max(1, n - p)), np.int64)
        self._progress = device.full((len(jobs), 2), np.int32)
        units_budgets = [
            device.array(np.array(unit_of, np.int32)),
            device.array(np.array([j.budget for j in jobs], np.int32)),
        ]
        parameters = job_arrays(device, jobs)
        self._given = [
            *units_budgets,
            device.array(np.array([_shown(j) for j in jobs], np.int32)),
            device.array(np.array([j.configured.lag() for j in jobs], np.int32)),
            *parameters,
            self._evicted_at,
            self._kept,
            self._progress,
        ]
        self._errors = None
        if outputs is not None:
            given = [*units_budgets, *parameters, self._evicted_at]
            self._errors = BudgetErrors(outputs, unit_of, policy, given)
        self._scratch = device.empty(len(jobs) * self._each, np.uint8)

    def feed(self, rows: DeviceRows, masses: Any) -> None:
        """Replay the new rows; ``masses``: the sums of these rows, from `row_masses`."""
        job = self._jobs[0]
        self._device.launch(
            self._text, "direct", len(self._jobs), self._threads, 0,
            [rows.bits, rows.bases, masses, *self._given, self._scratch, np.int64(self._each),
             *map(np.int32, (job.unit.n, job.prompt_len, len(job.unit.heads))),
             *map(np.int32, (rows.start, rows.stop))],
        )  # fmt: skip
        if self._errors is not None:
            self._errors.add(rows)

    def outcomes(self) -> list[Outcome | None]:
        """The outcome of each job, after all rows have been fed; None where a rank was NaN."""
        arrays = self._evicted_at, self._kept, self._progress
        evicted_at, kept, progress = map(self._device.host, arrays)
        errors = [Errors()] * len(self._jobs) if self._errors is None else self._errors.result()
        found: list[Outcome | None] = []
        for i, job in enumerate(self._jobs):
            if progress[i, 0] < 0:
                found.append(None)
                continue
            n, linger = job.unit.n, job.configured.policy.linger
            gone = evicted_at[i]
            if linger:
                scalars = {**job.scalars, "t": n - 1}
                last = linger(*[scalars[name] for name in arguments(linger)])
                late = np.minimum(n, np.maximum(gone, np.arange(n) + last)).astype(np.int32)
                gone = np.where(gone < n, late, n).astype(np.int32)
            held = int(progress[i, 1])
            found.append(Outcome(kept[i, : n - job.prompt_len], gone, held, errors[i]))
        return found


def _shown(job: Job) -> int:
    """What the policy is shown: 1 for rows renormalised, and 2 for the largest head."""
    return int(job.configured.scores == "cached") + 2 * job.configured.largest_head


def direct_bytes(policy: Policy, n: int, heads: int) -> int:
    """Bytes of device memory of a job."""
    each = (len(policy.state) + 1) * n * 8 + 2 * heads * n * 8 + 2 * n * 4
    return (each + 15) // 16 * 16
