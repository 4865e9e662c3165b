"""The kernel `systolic`: many configurations of a unit at once, at a cost that no data changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from h2osim.cuda.device import Device, blocks_beside
from h2osim.cuda.kernels.arguments import is_plain, of_each, window
from h2osim.cuda.kernels.one_launch import OneLaunch
from h2osim.cuda.rows import staged_bytes
from h2osim.engines.request import Job

#: Most registers of a lane: 255, less what estimates miss.
REGISTERS = 248
#: Registers of a multiprocessor.
FILE = 65536
#: Depths that a lane gets at a time.
GROWTH = 8


class Systolic(OneLaunch):
    """Configurations of one policy on their way through recorded rows, all budgets at once."""

    name = "systolic"
    fewest = 3  # the rows of a unit take as much room for one configuration as for all

    def block_size(
        self, device: Device, jobs: Sequence[Job], many: int, together: int | None
    ) -> int:
        """What keeps most at work, of up to as many as were asked for."""
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        return systolic_together(device, n, heads, min(together or many, many))[1]

    def shape(self, device: Device, jobs: Sequence[Job], together: int) -> dict[str, int]:
        """For all tokens, whatever the windows."""
        return systolic_shape(device, jobs[0].unit.n, len(jobs[0].unit.heads), together)

    def more(self, jobs: Sequence[Job]) -> list[np.int32]:
        """The shortest window."""
        return [np.int32(min(of_each(jobs, window)))]

    @staticmethod
    def takes(device: Device, job: Job) -> bool:
        """Whether the kernel can run this job's rule, and there is room for the fewest of them."""
        n, heads = job.unit.n, len(job.unit.heads)
        return (
            is_plain(job)
            and window(job) <= device.warp
            and registers(depths_of_lane(device, n)) <= REGISTERS
            # scores and places of the prompt's tokens, while they are sorted
            and 12 * job.prompt_len <= sums_bytes(device, n)
            and systolic_together(device, n, heads, Systolic.fewest)[0] >= Systolic.fewest
        )


def depths_of_lane(device: Device, n: int) -> int:
    """The depths of each lane, for n tokens."""
    return -(-n // (device.warp * GROWTH)) * GROWTH


def registers(width: int) -> int:
    """Of a lane: at each depth the score takes two, the token's name one; all else some 50."""
    return 3 * width + 56


def sums_bytes(device: Device, n: int) -> int:
    """Of shared memory, for what a configuration's depths get."""
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
