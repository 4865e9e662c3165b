"""The kernel `lines`: H2O, whose scores only grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from h2osim.engines.cuda.arguments import evicting, held_keys
from h2osim.engines.cuda.device import Device, kernel_text
from h2osim.engines.cuda.rows import Rows, recorded, staged_bytes
from h2osim.engines.cuda.tally import Tally
from h2osim.engines.job import Curve, Job
from h2osim.rules import accumulate, guarded_score

#: Configurations of a unit that share a block.
TOGETHER = 4


class Lines:
    """Jobs whose rank is the sum of their rows, on the kernel that is written for them."""

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int | None = None,
    ):
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        self._n, self._device = n, device
        self._held = held_keys(np.ones(n, np.uint8), jobs[0].prompt_len)
        together = together or TOGETHER
        alike: dict[int, list[int]] = {}
        for i, unit in enumerate(unit_of):
            alike.setdefault(unit, []).append(i)
        while not (shape := lines_shape(device, n, heads, together)):
            together = max(1, together // 2)
        together = min(together, max(map(len, alike.values())))
        shape = lines_shape(device, n, heads, together)
        assert shape is not None
        self._blocks: list[list[int]] = []
        units = []
        for unit, mine in alike.items():
            for a in range(0, len(mine), together):
                self._blocks.append(mine[a : a + together])
                units.append(unit)
        self._shared, self._threads = shape.pop("bytes"), shape["T"]
        sinks = any(int(job.scalars["sinks"]) for job in jobs)
        self._text = kernel_text(
            "lines", {**shape, "SINKS": int(sinks), "EVENTS": int(bool(len(budgets)))}
        )
        self._tally = Tally(device, self._blocks, together, n, budgets)

        def numbers(name: str, none: int) -> np.ndarray:
            found = [[min(n, int(jobs[i].scalars[name])) for i in b] for b in self._blocks]
            return np.array([one + [none] * (together - len(one)) for one in found], np.int32)

        self._given = [
            device.array(np.array(units, np.int32)),
            device.array(numbers("recent", -1)),
            device.array(numbers("sinks", 0)),
            *self._tally.given,
            *map(np.int32, (len(budgets), n, jobs[0].prompt_len)),
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
            and bool(evicting(job)[job.prompt_len - 1 :].all())
            and lines_shape(device, job.unit.n, len(job.unit.heads), 1) is not None
        )

    def feed(self, rows: Rows) -> None:
        """Replay the new rows."""
        self._device.launch(
            self._text, "lines", len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.places, *self._given],
        )  # fmt: skip

    def curves(self) -> dict[int, tuple[Curve, int]]:
        """Each job's curve and the mass of its decode rows, once all rows have been fed."""
        return self._tally.curves([self._held] * len(self._blocks))


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
        "BLOCKS": max(1, min((device.shared + 1024) // (need + 1024), 1344 // threads)),
        "bytes": need,
    }
