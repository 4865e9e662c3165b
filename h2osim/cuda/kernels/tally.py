"""The results of the kernels that replay every budget, and the curves computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from h2osim.cuda.device import Device
from h2osim.engines.results import Curve


class Tally:
    """RESULTS of gpu/arguments.cuh: the mass by depth, and the evictions at listed budgets.

    ``blocks``: the indices of each block's jobs, up to ``together``. ``given``: the arguments.
    """

    def __init__(
        self,
        device: Device,
        blocks: Sequence[Sequence[int]],
        together: int,
        n: int,
        budgets: Sequence[int],
    ):
        self._device, self._blocks, self._listed = device, blocks, len(budgets)
        shape = len(blocks), together
        self._hits = device.full((*shape, n + 1), np.int64)
        # kernels do not write evictions if no budget is listed
        self._evicted = device.full((*shape, len(budgets), n) if len(budgets) else 1, np.int32, n)
        following = np.searchsorted(np.asarray(budgets), np.arange(n + 2))
        self.given: list[Any] = [
            device.array(np.array([*budgets, 0], np.int32)),
            device.array(following.astype(np.int32)),
            self._evicted,
            self._hits,
        ]

    def curves(self, held: Sequence[np.ndarray]) -> dict[int, tuple[Curve, int]]:
        """For each job its curve and the sum of its decode rows.

        ``held``: for each block int64 [n], the most keys attended at each budget.
        """
        mass = self._device.host(self._device.running_sums(self._hits))
        total = mass[:, :, -1].tolist()
        if self._listed:
            evicted = self._device.host(self._evicted)
        else:
            evicted = np.zeros((*mass.shape[:2], 0, mass.shape[2] - 1), np.int32)
        return {
            i: (Curve(mass[b, c, 1:], held[b], evicted[b, c]), total[b][c])
            for b, mine in enumerate(self._blocks)
            for c, i in enumerate(mine)
        }
