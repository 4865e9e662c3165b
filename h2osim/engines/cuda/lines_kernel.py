"""The kernel `lines`: H2O, whose scores only grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from h2osim.engines.cuda.arguments import always_evicts, in_blocks, most_alike
from h2osim.engines.cuda.device import Device, blocks_beside, kernel_text
from h2osim.engines.cuda.one_launch import OneLaunch
from h2osim.engines.cuda.rows import recorded, staged_bytes
from h2osim.engines.job import Job
from h2osim.rules import accumulate, guarded_score

#: Configurations of a unit that share a block.
TOGETHER = 4


class Lines(OneLaunch):
    """Jobs whose rank is the sum of their rows, on the kernel that is written for them."""

    name = "lines"

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int | None = None,
    ):
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        together = min(together or TOGETHER, most_alike(unit_of))
        while (shape := lines_shape(device, n, heads, together)) is None:
            together //= 2  # one alone fits
        blocks, units = in_blocks(unit_of, together)
        super().__init__(device, jobs[0], blocks, together, budgets)
        self._shared, self._threads = shape.pop("bytes"), shape["T"]
        sinks = any(int(job.scalars["sinks"]) for job in jobs)
        self._text = kernel_text(
            "lines", {**shape, "SINKS": int(sinks), "EVENTS": int(bool(len(budgets)))}
        )

        def numbers(name: str, none: int) -> np.ndarray:
            found = [[min(n, int(jobs[i].scalars[name])) for i in b] for b in blocks]
            return np.array([one + [none] * (together - len(one)) for one in found], np.int32)

        self._given = [
            device.array(np.array(units, np.int32)),
            device.array(numbers("recent", -1)),
            device.array(numbers("sinks", 0)),
        ]

    @staticmethod
    def fits(device: Device, job: Job) -> bool:
        """Whether the kernel knows this job's rule and has room for its scores."""
        policy = job.configured.policy
        return (
            policy.update is accumulate
            and policy.rank is guarded_score
            and policy.init is None
            and len(policy.state) == 1
            and recorded(job.unit)
            and always_evicts(job)
            and lines_shape(device, job.unit.n, len(job.unit.heads), 1) is not None
        )


def lines_shape(device: Device, n: int, heads: int, configurations: int) -> dict[str, int] | None:
    """The constants of the kernel `lines`, or None if a unit has no room in shared memory."""
    warps = 2
    while warps < device.threads // device.warp and warps * device.warp * 32 < n:
        warps *= 2
    warps = min(warps, device.threads // device.warp - configurations)
    if warps < 1:
        return None
    threads = (warps + configurations) * device.warp
    tokens = -(-n // (warps * device.warp))
    if tokens > 2:  # few variants, so that few are compiled
        tokens = -(-tokens // 4) * 4
    row = staged_bytes(n)
    most = tokens * warps * device.warp
    # a line is read whole, so the last one is read beyond the tokens
    need = 3 * heads * row + most * (5 + 2 * configurations) + 8 * device.warp
    if need > device.shared or tokens > 32 or heads * n >= 2**16:  # a score has 40 bits
        return None
    return {
        "T": threads,
        "C": configurations,
        "NS": tokens,
        "HEADS": heads,
        "ROW": row,
        "LINES": -(-n // (4 * device.warp**2)),
        "BLOCKS": max(1, min(blocks_beside(device, need), 1344 // threads)),
        "bytes": need,
    }
