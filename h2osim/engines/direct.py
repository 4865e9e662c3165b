"""The numba engine: one policy at one budget, some rows at a time."""

from __future__ import annotations

import numpy as np

from h2osim.engines.request import Job
from h2osim.engines.results import Outcome
from h2osim.engines.stepper import Stepper
from h2osim.traces.unit import Block


class DirectRun:
    """A replay that is fed blocks of rows, in order, and keeps O(n) state between them."""

    def __init__(self, job: Job):
        n, p = job.unit.n, job.prompt_len
        self._p = p
        self._stepper = Stepper(
            job.configured, job.budget, prompt_len=p, heads=len(job.unit.heads),
            inputs=job.inputs, n=n,
        )  # fmt: skip
        self._found = np.zeros((2, n), np.int64)

    def feed(self, block: Block) -> None:
        """Replay the block's new rows."""
        stepper, new = self._stepper, slice(block.start, block.stop)
        stepper.feed(block.bits[None], block.first, block.start, block.stop)
        self._found[:, new] = stepper.kept[0], stepper.masses[0]

    @property
    def masses(self) -> np.ndarray:
        """int64[n - p]: the whole mass of each decode row, in fixed point."""
        return self._found[1, self._p :]

    def result(self) -> Outcome:
        """What the replay found, once every row has been fed."""
        return Outcome(self._found[0, self._p :], self._stepper.evicted_at, self._stepper.held)
