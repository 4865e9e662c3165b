"""What the kernels share that replay recorded rows, whole, for rules that evict in every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from h2osim.engines.cuda.arguments import held_keys
from h2osim.engines.cuda.device import Device
from h2osim.engines.cuda.rows import Rows
from h2osim.engines.cuda.tally import Tally
from h2osim.engines.job import Curve, Job


class OneLaunch:
    """Blocks of jobs that one launch of the kernel ``name`` replays from the first row to the last.

    A subclass sets ``_text``, ``_threads`` and ``_shared``, and in ``_given`` what its kernel is
    told of the blocks; the tally and the lengths follow by themselves.
    """

    name: ClassVar[str]
    #: Fewer configurations of a policy on a unit than these leave to another kernel.
    fewest: ClassVar[int] = 1
    _text: str
    _threads: int
    _shared: int
    _given: list[Any]

    def __init__(
        self,
        device: Device,
        job: Job,
        blocks: list[list[int]],
        together: int,
        budgets: Sequence[int],
    ):
        n, p = job.unit.n, job.prompt_len
        self._device, self._blocks = device, blocks
        self._held = held_keys(np.ones(n, np.uint8), p)
        self._tally = Tally(device, blocks, together, n, budgets)
        self._lengths = [np.int32(length) for length in (len(budgets), n, p)]

    def feed(self, rows: Rows) -> None:
        """Replay the rows."""
        self._device.launch(
            self._text, self.name, len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.places, *self._given, *self._tally.given, *self._lengths],
        )  # fmt: skip

    def curves(self) -> dict[int, tuple[Curve, int]]:
        """Each job's curve and the mass of its decode rows, once the rows have been fed."""
        return self._tally.curves([self._held] * len(self._blocks))
