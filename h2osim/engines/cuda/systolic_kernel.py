"""The kernel `systolic`: many configurations of a unit at once, at a cost that no data changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from h2osim.engines.cuda.arguments import (
    always_evicts,
    block_arrays,
    in_blocks,
    is_plain,
    most_alike,
    window,
)
from h2osim.engines.cuda.device import Device, blocks_beside, kernel_text
from h2osim.engines.cuda.one_launch import OneLaunch
from h2osim.engines.cuda.rows import recorded, staged_bytes
from h2osim.engines.job import Job

#: Registers of a lane, and of a multiprocessor.
REGISTERS = 248
FILE = 65536
#: Depths that a lane gets at a time.
GROWTH = 8


class Systolic(OneLaunch):
    """Configurations of one policy on their way through recorded rows, all budgets at once."""

    name = "systolic"
    fewest = 3  # the rows of a unit take as much room for one configuration as for all

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int | None = None,
    ):
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        many = most_alike(unit_of)
        _, together = systolic_together(device, n, heads, min(together or many, many))
        blocks, units = in_blocks(unit_of, together)
        super().__init__(device, jobs[0], blocks, together, budgets)
        shape = systolic_shape(device, n, heads, together)
        self._threads, self._shared = shape["T"], shape.pop("bytes")
        self._text = kernel_text(
            "systolic", {**shape, "EVENTS": int(bool(len(budgets)))}, jobs[0].configured.policy
        )
        self._given = block_arrays(device, jobs, blocks, units, together)
        self._lengths.append(np.int32(min(window(job) for job in jobs)))

    @staticmethod
    def fits(device: Device, job: Job) -> bool:
        """Whether the kernel can run this job's rule, and there is room for the fewest of them."""
        n, heads = job.unit.n, len(job.unit.heads)
        return (
            is_plain(job)
            and recorded(job.unit)
            and always_evicts(job)
            and window(job) <= device.warp
            and registers(depths_of_lane(device, n)) <= REGISTERS
            and 12 * job.prompt_len <= sums_bytes(device, n)
            and systolic_together(device, n, heads, Systolic.fewest)[0] >= Systolic.fewest
        )


def depths_of_lane(device: Device, n: int) -> int:
    """The depths of each lane, for n tokens."""
    return -(-n // (device.warp * GROWTH)) * GROWTH


def registers(width: int) -> int:
    """Of a lane: at each depth the score takes two, the token's name one."""
    return 3 * width + 56


def sums_bytes(device: Device, n: int) -> int:
    """What a configuration's depths got."""
    return device.warp * (depths_of_lane(device, n) + 4) * 4


def systolic_bytes(device: Device, n: int, heads: int, together: int, spare: int = 2) -> int:
    """Shared memory of a block with so many rows more than lanes."""
    stages = device.warp + spare
    rows = stages * heads * (16 + staged_bytes(n))
    desk = stages * 16 + heads * 8 + 8
    return desk + rows + together * sums_bytes(device, n)


def systolic_together(device: Device, n: int, heads: int, many: int) -> tuple[float, int]:
    """Of ``many`` configurations of a unit: most on a multiprocessor, in blocks of how many."""
    warps = FILE // (device.warp * registers(depths_of_lane(device, n)))

    def on_a_multiprocessor(together: int) -> float:
        size = systolic_bytes(device, n, heads, together)
        beside = min(blocks_beside(device, size), warps // together)
        return beside * many / -(-many // together)

    # of those as good as the best, but for a few, the one with the fewest blocks, evenly filled
    choices = range(1, min(many, warps, device.threads // device.warp) + 1)
    most = max(map(on_a_multiprocessor, choices), default=0.0)
    good = [one for one in choices if on_a_multiprocessor(one) >= 0.9 * most]
    return most, min(good, key=lambda one: (-(-many // one), one), default=1)


def systolic_shape(device: Device, n: int, heads: int, together: int) -> dict[str, int]:
    """The constants of the kernel `systolic`, and its shared memory."""
    width, threads = depths_of_lane(device, n), together * device.warp
    # more rows, so that warps need not keep step, where that costs no block
    fitting, spare, bytes_ = max(
        (min(blocks_beside(device, size), FILE // (threads * registers(width))), some, size)
        for some in (2, 4, 6)
        for size in [systolic_bytes(device, n, heads, together, some)]
    )
    return {
        "T": threads,
        "C": together,
        "HEADS": heads,
        "ROW": staged_bytes(n),
        "STAGES": device.warp + spare,
        "LAG": spare // 2,
        "W": width,
        "GROWTH": GROWTH,
        "BLOCKS": max(1, fitting),
        "bytes": bytes_,
    }
