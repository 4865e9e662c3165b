"""The kernel `lines`: H2O, whose scores only grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from h2osim.cuda.device import Device, blocks_beside
from h2osim.cuda.kernels.arguments import of_each, sinks
from h2osim.cuda.kernels.one_launch import OneLaunch
from h2osim.cuda.rows import staged_bytes
from h2osim.engines.request import Job
from h2osim.policies.arithmetic import accumulate, guarded_score


class Lines(OneLaunch):
    """Jobs whose rank is the sum of their rows, on the kernel that is written for them."""

    name = "lines"

    def block_size(
        self, device: Device, jobs: Sequence[Job], many: int, together: int | None
    ) -> int:
        """As many as were asked for, where there is room: one, since all wait for the slowest."""
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        together = min(together or 1, many)
        while lines_shape(device, n, heads, together) is None:
            together //= 2  # one alone fits
        return together

    def shape(self, device: Device, jobs: Sequence[Job], together: int) -> dict[str, int]:
        """With sinks if any configuration has some."""
        shape = lines_shape(device, jobs[0].unit.n, len(jobs[0].unit.heads), together)
        assert shape is not None
        return {**shape, "SINKS": int(any(of_each(jobs, sinks)))}

    def rules(self, job: Job) -> None:
        """None: the kernel knows this one."""

    def numbers(self, device: Device, jobs: Sequence[Job]) -> list[Any]:
        """Sinks."""
        return [device.array(np.array(of_each(jobs, sinks), np.int32))]

    @staticmethod
    def takes(device: Device, job: Job) -> bool:
        """Whether the kernel knows this job's rule and has room for its scores."""
        policy = job.configured.policy
        return (
            policy.update is accumulate
            and policy.rank is guarded_score
            and policy.init is None
            and len(policy.state) == 1
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
    tokens = 4 * -(-n // (4 * warps * device.warp))
    row = staged_bytes(n)
    most = tokens * warps * device.warp
    need = 3 * heads * row + most * (5 + 2 * configurations) + 17
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
