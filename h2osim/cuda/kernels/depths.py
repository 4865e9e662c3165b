"""The kernel `depths`: replays all stored rows at every budget in one launch.

It runs policies that keep state and evict in every step. The state of a token lies in shared memory
at the token's depth in the stack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from h2osim.cuda.device import Device, blocks_beside, kernel_text
from h2osim.cuda.kernels.arguments import (
    always_evicts,
    filled,
    held_keys,
    in_blocks,
    is_plain,
    job_arrays,
    most_alike,
    of_each,
    window,
)
from h2osim.cuda.kernels.tally import Tally
from h2osim.cuda.rows import DeviceRows, recorded, staged_bytes
from h2osim.engines.request import Job
from h2osim.engines.results import Curve

#: Most lines of a stack; each line takes four registers of a lane for the mass of its depths.
LINES = 32
#: Of so many lines the first of two warps has one: more tokens move near the top of the stack.
SPLIT = 3


class Depths:
    """Replays jobs of one policy, in blocks of configurations that share a unit's rows.

    ``unit_of``: the index of each job's unit in the rows that are fed. ``budgets`` (ascending):
    where evictions are recorded. ``together``: most configurations of a block (None: as many as is
    fast).
    """

    name = "depths"

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int | None = None,
    ):
        n, heads, fields = _sizes(jobs[0])
        p, many = jobs[0].prompt_len, most_alike(unit_of)
        together = min(together or depths_together(device, n, heads, fields, many), many)
        self._blocks, units = in_blocks(unit_of, together)
        each = of_each(jobs, window)
        shape = depths_shape(device, n, heads, fields, together, n - min(each))
        shape |= {"PLAIN": int(all(of_each(jobs, is_plain))), "EVENTS": int(bool(len(budgets)))}
        self._threads, self._shared = shape["T"], shape.pop("bytes")
        self._text = kernel_text(self.name, shape, jobs[0].configured.policy)
        windows = [[each[i] for i in b] + [-1] * (together - len(b)) for b in self._blocks]
        self._device = device
        self._tally = Tally(device, self._blocks, together, n, budgets)
        self._given = [
            device.array(np.array(units, np.int32)),
            device.array(np.array(windows, np.int32)),
            *job_arrays(device, [jobs[i] for i in filled(self._blocks, together)]),
            *self._tally.given,
            *[np.int32(length) for length in (len(budgets), n, p)],
        ]
        self._held = held_keys(np.ones(n, np.uint8), p)

    @staticmethod
    def fits(device: Device, job: Job) -> bool:
        """Whether the kernel can run the policy, and a block has room for its state."""
        n, heads, fields = _sizes(job)
        return (
            recorded(job.unit)
            and always_evicts(job)
            and fields > 0
            and -(-n // (4 * device.warp)) <= LINES
            and depths_bytes(device, n, heads, fields, 1, 2) <= device.shared
        )

    def feed(self, rows: DeviceRows) -> None:
        """Replay all rows of the units; called once."""
        self._device.launch(
            self._text, self.name, len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.bases, *self._given],
        )  # fmt: skip

    def curves(self) -> dict[int, tuple[Curve, int]]:
        """For each job its curve and the sum of its decode rows, after `feed`."""
        return self._tally.curves([self._held] * len(self._blocks))


def _sizes(job: Job) -> tuple[int, int, int]:
    """Tokens and heads of the job's unit, and fields of its policy's state."""
    return job.unit.n, len(job.unit.heads), len(job.configured.policy.state)


def depths_shape(
    device: Device, n: int, heads: int, fields: int, together: int, stacked: int
) -> dict[str, int]:
    """The constants of the kernel, and "bytes": the shared memory of a block.

    ``together``: configurations of a block. ``stacked``: most tokens in a stack.
    """
    # a third row in shared memory if as many blocks fit a multiprocessor then
    fitting, stages, bytes_ = max(
        (blocks_beside(device, size), some, size)
        for some in (2, 3)
        for size in [depths_bytes(device, n, heads, fields, together, some)]
    )
    lines = -(-max(1, stacked) // (4 * device.warp))
    # The first of two warps has 1 + m // SPLIT of m lines, the second one the others.
    parts = 2 if lines > 2 else 1
    most = max(lines // SPLIT + 1, *(m - (m - 1) // SPLIT - 1 for m in range(1, lines + 1)))
    threads = together * parts * device.warp
    return {
        "T": threads,
        "C": together,
        "PARTS": parts,
        "HEADS": heads,
        "ROW": staged_bytes(n),
        "STAGES": stages,
        "SPLIT": SPLIT,
        "LINES": most if parts > 1 else lines,
        "CELLS": cells(device, n),
        "BLOCKS": max(1, min(fitting, 512 // threads)),
        "bytes": bytes_,
    }


def cells(device: Device, n: int) -> int:
    """Tokens of a configuration that shared memory has room for, rounded up to whole lines."""
    return (n + 4 * device.warp + 7) // 8 * 8


def depths_bytes(
    device: Device, n: int, heads: int, fields: int, together: int, stages: int
) -> int:
    """Bytes of shared memory of a block."""
    state = together * cells(device, n) * (8 * fields + 2)
    rows = stages * heads * (16 + staged_bytes(n))
    barriers = 12 * stages + 32 + together * (80 + 4 * (16 + 8 * fields))
    return rows + state + barriers


def depths_together(device: Device, n: int, heads: int, fields: int, many: int) -> int:
    """Configurations of a block, of ``many`` of a unit, so that most run on a multiprocessor."""

    def busy(together: int) -> float:
        blocks = -(-many // together)
        size = depths_bytes(device, n, heads, fields, together, 2)
        return blocks_beside(device, size) * many / blocks

    return max(range(1, min(many, device.threads // (2 * device.warp)) + 1), key=busy)
