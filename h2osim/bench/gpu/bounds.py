"""Bounds on the offline optimum at one budget."""

from __future__ import annotations

import statistics

from h2osim import cuda
from h2osim.attention.triangle import tri
from h2osim.bench import Measurement
from h2osim.bench.gpu.tools import UNITS, as_unit, random_rows, seconds
from h2osim.cuda.bracket import Bounds, search
from h2osim.optima.bracket import narrow


def bounds(device: cuda.Gpu, n: int, copy: float) -> list[Measurement]:
    """Bounds for all units; also as the number of times a copy could read the rows meanwhile."""
    rows = random_rows(device, n)
    k, gap = n // 5, 1e-3

    def run() -> list[Bounds]:
        return search(device, rows, UNITS, 1, n, k, 1, gap, 448)

    found = run()
    exact = narrow(as_unit(device, rows, n, 100), k, 1, 1e-5)
    assert found[100].lower <= exact.upper and exact.lower <= found[100].upper
    whole = seconds(run, 3)
    worst = max((one.upper - one.lower) / one.upper for one in found)
    name = f"bounds on the optimum, {UNITS} units of {n} tokens, budget {k}"
    return [
        Measurement(f"{name}: largest gap", worst, "", gap, False),
        Measurement(f"{name}: readings, median", statistics.median(o.readings for o in found), ""),
        Measurement(name, whole * 1e3, "ms"),
        Measurement(
            f"{name}: as readings at copy speed",
            whole * copy / (UNITS * tri(n) * 2),
            "",
            400,
            False,
        ),
    ]
