"""What the kernels share that replay recorded rows, whole, for rules that evict in every step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from h2osim.cuda.device import Device, kernel_text
from h2osim.cuda.kernels.arguments import (
    always_evicts,
    filled,
    held_keys,
    in_blocks,
    job_arrays,
    most_alike,
    of_each,
    window,
)
from h2osim.cuda.kernels.tally import Tally
from h2osim.cuda.rows import Rows, recorded
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.policies.declaration import Policy


class OneLaunch(ABC):
    """Jobs of one policy that one launch of the kernel ``name`` replays from the first row to the
    last, in blocks of configurations of one unit.

    ``unit_of``: each job's unit, as rows are fed. ``budgets``: those whose evictions are recorded.
    ``together``: most configurations of a block (None: as many as is fast).
    """

    name: ClassVar[str]
    #: Fewer configurations of a policy on a unit than these leave to another kernel.
    fewest: ClassVar[int] = 1

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int | None = None,
    ):
        n, p = jobs[0].unit.n, jobs[0].prompt_len
        together = self.block_size(device, jobs, most_alike(unit_of), together)
        self._blocks, units = in_blocks(unit_of, together)
        shape = self.shape(device, jobs, together)
        self._threads, self._shared = shape["T"], shape.pop("bytes")
        self._text = kernel_text(
            self.name, {**shape, "EVENTS": int(bool(len(budgets)))}, self.rules(jobs[0])
        )
        each = of_each(jobs, window)
        windows = [[each[i] for i in b] + [-1] * (together - len(b)) for b in self._blocks]
        self._device = device
        self._tally = Tally(device, self._blocks, together, n, budgets)
        self._given = [
            device.array(np.array(units, np.int32)),
            device.array(np.array(windows, np.int32)),
            *self.numbers(device, [jobs[i] for i in filled(self._blocks, together)]),
            *self._tally.given,
            *[np.int32(length) for length in (len(budgets), n, p)],
            *self.more(jobs),
        ]
        self._held = held_keys(np.ones(n, np.uint8), p)

    @classmethod
    def fits(cls, device: Device, job: Job) -> bool:
        """Whether the kernel can run this job."""
        return recorded(job.unit) and always_evicts(job) and cls.takes(device, job)

    @staticmethod
    @abstractmethod
    def takes(device: Device, job: Job) -> bool:
        """Whether the kernel can run this job's rule and has room for it."""

    @abstractmethod
    def block_size(
        self, device: Device, jobs: Sequence[Job], many: int, together: int | None
    ) -> int:
        """Configurations of a block, where a unit has up to ``many``."""

    @abstractmethod
    def shape(self, device: Device, jobs: Sequence[Job], together: int) -> dict[str, int]:
        """The kernel's constants, among them T threads, and under ``bytes`` its shared memory."""

    def numbers(self, device: Device, jobs: Sequence[Job]) -> list[Any]:
        """On the device: what the kernel is told of each configuration besides its window."""
        return job_arrays(device, jobs)

    def rules(self, job: Job) -> Policy | None:
        """The policy whose rules are translated into the kernel's text."""
        return job.configured.policy

    def more(self, jobs: Sequence[Job]) -> list[np.int32]:
        """What the kernel is told last."""
        return []

    def feed(self, rows: Rows) -> None:
        """Replay the rows."""
        self._device.launch(
            self._text, self.name, len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.places, *self._given],
        )  # fmt: skip

    def curves(self) -> dict[int, tuple[Curve, int]]:
        """Each job's curve and the mass of its decode rows, once the rows have been fed."""
        return self._tally.curves([self._held] * len(self._blocks))
