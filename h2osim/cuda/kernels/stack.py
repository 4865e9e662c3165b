"""The kernel `stack`: replays any inclusive policy at every budget (proofs/14-inclusion.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from h2osim.cuda.device import Device, kernel_text
from h2osim.cuda.kernels.arguments import (
    evicting,
    filled,
    held_keys,
    in_blocks,
    job_arrays,
    most_alike,
    of_each,
)
from h2osim.cuda.kernels.errors import DepthErrors, Outputs
from h2osim.cuda.kernels.tally import Tally
from h2osim.cuda.rows import DeviceRows
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.policies.declaration import Policy

#: Configurations of a block; they share a unit and the steps in which they evict.
TOGETHER = 4


class Stack:
    """Replays jobs of one policy; takes the arguments of `depths.Depths`.

    ``outputs``: what has read each block of rows before, where errors are wanted. The blocks then
    have at most `error_rows` rows.
    """

    name = "stack"

    def __init__(
        self,
        device: Device,
        jobs: Sequence[Job],
        unit_of: Sequence[int],
        budgets: Sequence[int],
        together: int | None = None,
        outputs: Outputs | None = None,
    ):
        job = jobs[0]
        self._n, self._p = job.unit.n, job.prompt_len
        n, heads, policy = self._n, len(job.unit.heads), job.configured.policy
        self._device, self._budgets = device, budgets
        timing = of_each(jobs, lambda job: evicting(job).tobytes())
        patterns = list(dict.fromkeys(timing))
        self._held = [held_keys(np.frombuffer(p_, np.uint8), self._p) for p_ in patterns]
        kinds = [(unit, patterns.index(mine)) for unit, mine in zip(unit_of, timing, strict=True)]
        together = 1 if outputs else min(together or TOGETHER, most_alike(kinds))
        self._blocks, shared = in_blocks(kinds, together)
        units, self._which = [unit for unit, _ in shared], [which for _, which in shared]

        shape = stack_shape(device, policy, n, together)
        self._threads, self._shared = shape["T"], shape.pop("bytes")
        self._text = kernel_text(
            "stack",
            {
                **shape, "C": together, "HEADS": heads, "EVENTS": int(bool(len(budgets))),
                "ORDERS": int(outputs is not None),
            },
            policy,
        )  # fmt: skip
        self._each = stack_bytes(policy, n, together, shape["T"], shape["NS"])
        self._tally = Tally(device, self._blocks, together, n, budgets)
        self._errors = None if outputs is None else DepthErrors(outputs, units)
        self._given = [
            device.array(np.array(units, np.int32)),
            device.array(np.array(self._which, np.int32)),
            device.array(np.frombuffer(b"".join(patterns), np.uint8)),
            *job_arrays(device, [jobs[i] for i in filled(self._blocks, together)]),
            *self._tally.given,
            device.empty(len(self._blocks) * self._each, np.uint8),
            device.empty(1, np.int32) if self._errors is None else self._errors.orders,
            np.int64(self._each),
        ]

    @staticmethod
    def fits(device: Device, job: Job) -> bool:
        """True: it runs any inclusive policy."""
        return True

    def feed(self, rows: DeviceRows) -> None:
        """Replay the new rows."""
        self._device.launch(
            self._text, "stack", len(self._blocks), self._threads, self._shared,
            [rows.bits, rows.bases, *self._given,
             *map(np.int32, (len(self._budgets), self._n, self._p, rows.start, rows.stop))],
        )  # fmt: skip
        if self._errors is not None:
            self._errors.add(rows)

    def curves(self) -> dict[int, tuple[Curve, int]]:
        """For each job its curve and the sum of its decode rows, after all rows have been fed."""
        found = self._tally.curves([self._held[which] for which in self._which])
        if self._errors is not None:
            for (i,), one in zip(self._blocks, self._errors.result(), strict=True):
                curve, mass = found[i]
                found[i] = replace(curve, errors=one), mass
        return found


def stack_shape(device: Device, policy: Policy, n: int, together: int) -> dict[str, int]:
    """The constants of the kernel for n tokens, and "bytes": the shared memory of a block."""
    threads = device.threads
    while threads > 2 * device.warp and threads > max(128, n // 8):
        threads //= 2
    tokens = -(-n // threads)
    if tokens > 2:  # rounded up, so that few variants are compiled
        tokens = -(-tokens // 4) * 4 if tokens <= 32 else -(-tokens // 16) * 16
    bytes_ = 8 * n + together * (8 * n + 4 * (n + 1))
    share = bytes_ <= device.shared // 2
    # State is kept in registers if loops are unrolled, else in local memory, which is cached.
    fields = max(1, len(policy.state))
    unroll = tokens if tokens * (2 * together * fields + 1) * threads <= 2**15 else 1
    return {
        "T": threads, "NS": tokens, "SHARED": int(share), "UNROLL": unroll,
        "bytes": bytes_ if share else 0,
    }  # fmt: skip


def stack_bytes(policy: Policy, n: int, together: int, threads: int, tokens: int) -> int:
    """Bytes of device memory of a block."""
    state = tokens * together * max(1, len(policy.state)) * threads * 8
    each = state + 8 * n + together * (8 * n + 4 * (n + 1)) + 16
    return (each + 15) // 16 * 16
