"""The kernel `lines`: the same for scores that rows add to, H2O and decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from h2osim.engines.cuda.arguments import evicting, held_keys
from h2osim.engines.cuda.device import Device, kernel_text
from h2osim.engines.cuda.rows import Rows, recorded
from h2osim.engines.cuda.tally import Tally
from h2osim.engines.job import Curve, Job
from h2osim.rules import accumulate, fade, guarded_score


class Lines:
    """Jobs whose rank is a score that rows add to, on the kernel that is written for them."""

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int,
    ):
        n, heads = jobs[0].unit.n, len(jobs[0].unit.heads)
        self._n, self._device = n, device
        self._held = held_keys(np.ones(n, np.uint8), jobs[0].prompt_len)
        decays = jobs[0].configured.policy.update is fade
        # A block's configurations share the unit and, where they can, the factor.
        alike: dict[int, list[int]] = {}
        for i, unit in enumerate(unit_of):
            alike.setdefault(unit, []).append(i)
        while not lines_shape(device, n, heads, together, together if decays else 1, decays):
            together = max(1, together // 2)
        together = min(together, max(map(len, alike.values())))
        self._blocks: list[list[int]] = []
        units, factors, factor_of = [], [], []
        for unit, mine in alike.items():
            if decays:
                mine.sort(key=lambda i: float(jobs[i].scalars["gamma"]))
            for a in range(0, len(mine), together):
                block = mine[a : a + together]
                gammas = [float(jobs[i].scalars["gamma"]) if decays else 1.0 for i in block]
                known = list(dict.fromkeys(gammas))
                self._blocks.append(block)
                units.append(unit)
                factors.append(known)
                factor_of.append([known.index(gamma) for gamma in gammas])
        most = max(map(len, factors))
        shape = lines_shape(device, n, heads, together, most, decays)
        assert shape is not None
        self._shared, self._threads = shape.pop("bytes"), shape["T"]
        sinks = any(int(job.scalars["sinks"]) for job in jobs)
        self._text = kernel_text(
            "lines", {**shape, "SINKS": int(sinks), "EVENTS": int(bool(len(budgets)))}
        )
        self._tally = Tally(device, self._blocks, together, n, budgets)

        def filled(lists: list[list[Any]], width: int, value: Any, dtype: Any) -> Any:
            return device.array(
                np.array([[*one, *[value] * (width - len(one))] for one in lists], dtype)
            )

        def numbers(name: str) -> list[list[Any]]:
            return [[min(n, int(jobs[i].scalars[name])) for i in b] for b in self._blocks]

        self._given = [
            device.array(np.array(units, np.int32)),
            filled(numbers("recent"), together, -1, np.int32),
            filled(numbers("sinks"), together, 0, np.int32),
            filled(factor_of, together, 0, np.int32),
            filled(factors, most, 1.0, np.float64),
            *self._tally.given,
            *map(np.int32, (len(budgets), n, jobs[0].prompt_len)),
        ]

    @staticmethod
    def fits(device: Device, job: Job) -> bool:
        """Whether the kernel knows this job's rule and has room for its scores."""
        policy = job.configured.policy
        return (
            policy.update in (accumulate, fade)
            and policy.rank is guarded_score
            and policy.init is None
            and len(policy.state) == 1
            and recorded(job.unit)
            and bool(evicting(job)[job.prompt_len - 1 :].all())
            and lines_shape(device, job.unit.n, len(job.unit.heads), 1, 1, policy.update is fade)
            is not None
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


def lines_shape(
    device: Device, n: int, heads: int, configurations: int, factors: int, decays: bool
) -> dict[str, int] | None:
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
    row = (2 * n + 14 + 15) // 16 * 16
    most = tokens * warps * device.warp
    need = 3 * heads * row + most * (5 + 2 * configurations + (8 * factors if decays else 0))
    if need > device.shared or tokens > 32 or heads * n >= 2**16:  # a score has 40 bits
        return None
    return {
        "T": threads,
        "C": configurations,
        "NS": tokens,
        "HEADS": heads,
        "ROW": row,
        "LINES": -(-n // device.warp**2),
        "S": factors,
        "DECAYS": int(decays),
        "BLOCKS": max(1, min((device.shared + 1024) // (need + 1024), 1344 // threads)),
        "bytes": need,
    }
