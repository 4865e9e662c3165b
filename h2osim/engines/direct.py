"""The numba engine: one policy at one budget, some rows at a time."""

from __future__ import annotations

import numpy as np

from h2osim.engines.request import Job, Outcome
from h2osim.policies.roles import SCORE_KINDS, arguments
from h2osim.policies.to_numba import compiled, number_slots, sees_heads
from h2osim.traces.unit import Block


class DirectRun:
    """A replay that is fed blocks of rows, in order, and keeps O(n) state between them."""

    def __init__(self, job: Job):
        policy, n, heads = job.configured.policy, job.unit.n, len(job.unit.heads)
        ints, floats = number_slots(policy)
        self._advance = compiled(policy, "direct_loop")
        self._job = job
        self._left = np.full(n, n, np.int32)
        self._kept = np.zeros(max(0, n - job.prompt_len), np.int64)
        self._shown = np.zeros((2, heads, n), np.int64)
        self._cell = np.zeros(2, np.int64)
        self._arrays = (
            np.zeros((max(1, len(policy.state)), n)),
            np.array([job.inputs[name] for name in policy.inputs] or np.zeros((1, 1))),
            np.array([job.scalars[name] for name in ints] or [0], np.int64),
            np.array([job.scalars[name] for name in floats] or [0.0], np.float64),
            self._cell,
            np.zeros(n, np.uint32),
            self._left,
            self._kept,
            self._shown,
            np.zeros(n),
            np.zeros(n, np.int64),
            np.zeros((heads, n), np.int32),
            np.zeros((2, heads, n if sees_heads(policy) else 0)),
        )

    def feed(self, block: Block) -> None:
        """Replay the block's new rows."""
        job = self._job
        kind = SCORE_KINDS.index(job.configured.scores)
        self._advance(
            block.bits, block.first, block.start, block.stop,
            job.budget, job.prompt_len, kind, job.configured.lag(), *self._arrays,
        )  # fmt: skip

    @property
    def masses(self) -> np.ndarray:
        """int64[n - p]: the whole mass of each decode row, in fixed point."""
        return self._shown[1].sum(0)[self._job.prompt_len :]

    def result(self) -> Outcome:
        """What the replay found, once every row has been fed."""
        policy, n = self._job.configured.policy, self._job.unit.n
        gone = self._left
        if policy.linger:
            scalars = {**self._job.scalars, "t": n - 1}
            last = policy.linger(*[scalars[name] for name in arguments(policy.linger)])
            late = np.minimum(n, np.maximum(gone, np.arange(n) + last)).astype(np.int32)
            gone = np.where(gone < n, late, n).astype(np.int32)
        return Outcome(self._kept, gone, int(self._cell[1]))
