"""The numba engine: one policy at one budget, some rows at a time."""

from __future__ import annotations

import numpy as np

from h2osim.engines.errors import Outputs, RunErrors
from h2osim.engines.request import Job
from h2osim.engines.results import Errors, Outcome
from h2osim.engines.stepper import Stepper
from h2osim.traces.unit import Block


class DirectRun:
    """A replay that is fed blocks of rows, in order, and keeps O(n) state between them.

    ``outputs``: what has read each block before, where errors are wanted.
    """

    def __init__(self, job: Job, outputs: Outputs | None = None):
        n, p = job.unit.n, job.prompt_len
        self._p = p
        self._stepper = Stepper(
            job.configured, job.budget, prompt_len=p, heads=len(job.unit.heads),
            inputs=job.inputs, n=n,
        )  # fmt: skip
        self._found = np.zeros((2, n), np.int64)
        self._errors = None if outputs is None else RunErrors(outputs, every=False)

    def feed(self, block: Block) -> None:
        """Replay the block's new rows."""
        stepper, new = self._stepper, slice(block.start, block.stop)
        lists = None if self._errors is None else self._errors.room(block)
        stepper.feed(block.bits[None], block.first, block.start, block.stop, lists)
        if self._errors is not None and lists is not None:
            self._errors.add(block, *lists)
        self._found[:, new] = stepper.kept[0], stepper.masses[0]

    @property
    def masses(self) -> np.ndarray:
        """int64[n - p]: the whole mass of each decode row, in fixed point."""
        return self._found[1, self._p :]

    def result(self) -> Outcome:
        """What the replay found, once every row has been fed."""
        errors = Errors() if self._errors is None else self._errors.result()
        kept, stepper = self._found[0, self._p :], self._stepper
        return Outcome(kept, stepper.evicted_at, stepper.held, errors)
