"""The kernel `depths`: rules that keep state and evict in every step, state by depth."""

from __future__ import annotations

from collections.abc import Sequence

from h2osim.cuda.device import Device, blocks_beside
from h2osim.cuda.kernels.arguments import is_plain, of_each, window
from h2osim.cuda.kernels.one_launch import OneLaunch
from h2osim.cuda.rows import staged_bytes
from h2osim.engines.request import Job

#: Most lines of a stack: each takes four registers for what its depths got.
LINES = 32
#: Lines of a stack that give the first of its two warps another one: near the top more moves.
SPLIT = 3


class Depths(OneLaunch):
    """Configurations of one policy on their way through recorded rows, all budgets at once."""

    name = "depths"

    def block_size(
        self, device: Device, jobs: Sequence[Job], many: int, together: int | None
    ) -> int:
        """As many as were asked for, or keep most at work."""
        n, heads, fields = _sizes(jobs[0])
        return min(together or depths_together(device, n, heads, fields, many), many)

    def shape(self, device: Device, jobs: Sequence[Job], together: int) -> dict[str, int]:
        """For stacks of what the shortest window leaves."""
        n, heads, fields = _sizes(jobs[0])
        stacked = n - min(of_each(jobs, window))
        shape = depths_shape(device, n, heads, fields, together, stacked)
        return {**shape, "PLAIN": int(all(of_each(jobs, is_plain)))}

    @staticmethod
    def takes(device: Device, job: Job) -> bool:
        """Whether the kernel can run this job's rule and has room for its state."""
        n, heads, fields = _sizes(job)
        return (
            fields > 0
            and -(-n // (4 * device.warp)) <= LINES
            and depths_bytes(device, n, heads, fields, 1, 2) <= device.shared
        )


def _sizes(job: Job) -> tuple[int, int, int]:
    """Tokens, heads of a unit, fields of state."""
    return job.unit.n, len(job.unit.heads), len(job.configured.policy.state)


def depths_shape(
    device: Device, n: int, heads: int, fields: int, together: int, stacked: int
) -> dict[str, int]:
    """The constants of the kernel `depths` for stacks of so many tokens, and its shared memory."""
    # a third row is fetched ahead where that costs no block
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
    """Tokens of a configuration that there is room for: lines are whole."""
    return (n + 4 * device.warp + 7) // 8 * 8


def depths_bytes(
    device: Device, n: int, heads: int, fields: int, together: int, stages: int
) -> int:
    """Shared memory of a block."""
    state = together * cells(device, n) * (8 * fields + 2)
    rows = stages * heads * (16 + staged_bytes(n))
    desks = 12 * stages + 32 + together * (80 + 4 * (16 + 8 * fields))
    return rows + state + desks


def depths_together(device: Device, n: int, heads: int, fields: int, many: int) -> int:
    """Configurations of a block, of ``many`` of a unit: most at work on a multiprocessor."""

    def busy(together: int) -> float:
        blocks = -(-many // together)
        size = depths_bytes(device, n, heads, fields, together, 2)
        return blocks_beside(device, size) * many / blocks

    return max(range(1, min(many, device.threads // (2 * device.warp)) + 1), key=busy)
