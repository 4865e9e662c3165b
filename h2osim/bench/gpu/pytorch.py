"""H2O in PyTorch, as a baseline for the kernels."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from h2osim.attention.fixed_point import UNIT
from h2osim.attention.triangle import tri
from h2osim.bench.gpu.tools import RECENT, UNITS
from h2osim.cuda.rows import DeviceRows


def pytorch_seconds(rows: DeviceRows, n: int, budget: int, found: Any) -> float | None:
    """Seconds of H2O at one budget on all units at once, float32; None without PyTorch.

    ``found``: the curves of the same rows, to check the result.
    """
    try:
        import torch
    except ImportError:
        return None
    index = torch.tril_indices(n, n, device="cuda")
    flat = torch.as_tensor(rows.bits[: UNITS * tri(n)].view(np.float16), device="cuda")
    scores = torch.zeros((UNITS, n, n), dtype=torch.float16, device="cuda")
    for u in range(UNITS):
        scores[u, index[0], index[1]] = flat[u * tri(n) : (u + 1) * tri(n)]

    def run(scores: Any = scores) -> Any:
        total = torch.zeros((UNITS, n), device="cuda")
        cached = torch.zeros((UNITS, n), dtype=torch.bool, device="cuda")
        kept = torch.zeros(UNITS, device="cuda", dtype=torch.float64)
        for t in range(n):
            row = scores[:, t, : t + 1].float()
            total[:, : t + 1] += row
            cached[:, t] = True
            if t:
                kept += (row * cached[:, : t + 1]).sum(1)
            if t >= budget:
                last = t + 1 - RECENT
                worst = torch.where(cached[:, :last], total[:, :last], torch.inf).argmin(1)
                cached.scatter_(1, worst[:, None], False)
        return kept

    torch.cuda.synchronize()
    kept = run()
    exact = np.array([int(found[u][0].kept[budget - 1]) for u in range(UNITS)]) * UNIT
    assert np.allclose(kept.cpu().numpy(), exact, rtol=1e-3)  # float32 sums may break near-ties
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    times = []
    for _ in range(3):
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    del flat
    torch.cuda.empty_cache()
    return statistics.median(times)
