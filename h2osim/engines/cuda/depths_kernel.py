"""The kernel `depths`: rules that keep state and evict in every step, state by depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from h2osim.engines.cuda.arguments import evicting, held_keys, job_inputs, job_numbers
from h2osim.engines.cuda.device import Device, kernel_text
from h2osim.engines.cuda.rows import Rows, recorded, staged_bytes
from h2osim.engines.cuda.tally import Tally
from h2osim.engines.job import Curve, Job
from h2osim.rules import accumulate, fade, guarded_score

#: Most lines of a stack: each takes four registers for what its depths got.
LINES = 32
#: Lines of a stack that give the first of its two warps another one: near the top more moves.
SPLIT = 3


class Depths:
    """Configurations of one policy on their way through recorded rows, all budgets at once."""

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int | None = None,
    ):
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        policy, p = jobs[0].configured.policy, jobs[0].prompt_len
        self._device = device
        self._held = held_keys(np.ones(n, np.uint8), p)
        alike: dict[int, list[int]] = {}
        for i, unit in enumerate(unit_of):
            alike.setdefault(unit, []).append(i)
        many = max(map(len, alike.values()))
        if together is None:
            together = depths_together(device, n, heads, len(policy.state), many)
        together = min(together, many)
        self._blocks: list[list[int]] = []
        units = []
        for unit, mine in alike.items():
            for a in range(0, len(mine), together):
                self._blocks.append(mine[a : a + together])
                units.append(unit)
        windows = [[window(jobs[i]) for i in b] for b in self._blocks]
        stacked = n - min(min(one) for one in windows)
        windows = [one + [-1] * (together - len(one)) for one in windows]
        # a short block repeats its last configuration's numbers, which nothing reads
        ordered = [jobs[i] for b in self._blocks for i in b + [b[-1]] * (together - len(b))]
        ints, floats = job_numbers(ordered)
        inputs, inputs_at = job_inputs(ordered)
        shape = depths_shape(device, n, heads, len(policy.state), together, stacked)
        self._threads, self._shared = shape["T"], shape.pop("bytes")
        plain = int(all(is_plain(job) for job in jobs))
        self._text = kernel_text(
            "depths", {**shape, "PLAIN": plain, "EVENTS": int(bool(len(budgets)))}, policy
        )
        self._tally = Tally(device, self._blocks, together, n, budgets)
        self._given = [
            device.array(np.array(units, np.int32)),
            device.array(np.array(windows, np.int32)),
            device.array(ints if ints.size else np.zeros(1, np.int32)),
            device.array(floats if floats.size else np.zeros(1)),
            device.array(inputs),
            device.array(inputs_at),
            *self._tally.given,
            *map(np.int32, (len(budgets), n, p)),
        ]

    @staticmethod
    def fits(device: Device, job: Job) -> bool:
        """Whether the kernel can run this job's rule and has room for its state."""
        n, fields = job.unit.n, len(job.configured.policy.state)
        return (
            fields > 0
            and recorded(job.unit)
            and bool(evicting(job)[job.prompt_len - 1 :].all())
            and -(-n // (4 * device.warp)) <= LINES
            and depths_bytes(device, n, len(job.unit.heads), fields, 1, 2) <= device.shared
        )

    def feed(self, rows: Rows) -> None:
        """Replay the new rows."""
        self._device.launch(
            self._text, "depths", len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.places, *self._given],
        )  # fmt: skip

    def curves(self) -> dict[int, tuple[Curve, int]]:
        """Each job's curve and the mass of its decode rows, once all rows have been fed."""
        return self._tally.curves([self._held] * len(self._blocks))


def window(job: Job) -> int:
    """The newest tokens that a rule protects whatever their state, where that is known."""
    if job.configured.policy.rank is not guarded_score:
        return 0
    return min(job.unit.n, int(job.scalars["recent"]))


def is_plain(job: Job) -> bool:
    """Whether below the window the rank is the only field of state, and never negative."""
    policy = job.configured.policy
    return (
        policy.rank is guarded_score
        and policy.update in (accumulate, fade)
        and policy.init is None
        and int(job.scalars["sinks"]) == 0
    )


def depths_shape(
    device: Device, n: int, heads: int, fields: int, together: int, stacked: int
) -> dict[str, int]:
    """The constants of the kernel `depths` for stacks of so many tokens, and its shared memory."""
    # a third row is fetched ahead where that costs no block
    stages = max(
        (2, 3),
        key=lambda some: (blocks_beside(device, n, heads, fields, together, some), some),
    )
    lines = -(-max(1, stacked) // (4 * device.warp))
    # The first of two warps has 1 + m // SPLIT of m lines, the second one the others.
    parts = 2 if lines > 2 else 1
    most = max(lines // SPLIT + 1, *(m - (m - 1) // SPLIT - 1 for m in range(1, lines + 1)))
    threads = together * parts * device.warp
    fitting = blocks_beside(device, n, heads, fields, together, stages)
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
        "bytes": depths_bytes(device, n, heads, fields, together, stages),
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


def blocks_beside(
    device: Device, n: int, heads: int, fields: int, together: int, stages: int
) -> int:
    """How many blocks a multiprocessor has room for; each costs a KiB more than it asks for."""
    bytes_ = depths_bytes(device, n, heads, fields, together, stages)
    return (device.shared + 1024) // (bytes_ + 1024)


def depths_together(device: Device, n: int, heads: int, fields: int, many: int) -> int:
    """Configurations of a block, of ``many`` of a unit: most at work on a multiprocessor."""

    def busy(together: int) -> float:
        blocks = -(-many // together)
        return blocks_beside(device, n, heads, fields, together, 2) * many / blocks

    return max(range(1, min(many, device.threads // (2 * device.warp)) + 1), key=busy)
