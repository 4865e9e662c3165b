"""How long a split takes once its curves are there: 90 units, 8 texts of 768 tokens, 64 budgets.

    .venv/bin/python tests/measure_allocate.py

Curves are drawn: losses that fall with the budget, noisy enough not to be convex.
"""

from __future__ import annotations

import time

import numpy as np

from h2osim.optima.allocation_curves import Curves, grid_of
from h2osim.optima.splitting import best_split

UNITS, TEXTS, N, POINTS = 90, 8, 768, 64


def main() -> None:
    """Print the seconds of each step, on one core."""
    draw = np.random.default_rng(0)
    grid = grid_of(N, POINTS)
    loss = draw.uniform(0.3, 3, (TEXTS, UNITS, 1)) * np.array(grid) ** -draw.uniform(
        0.3, 1.5, (1, UNITS, 1)
    )
    loss *= draw.uniform(0.95, 1.05, loss.shape)
    loss[..., -1] = 0
    best_split(np.zeros((2, 9), np.int64), 4, "dp")
    began = time.perf_counter()
    slots = np.arange(N + 1)
    curves = Curves(np.stack([[np.interp(slots, grid, row) for row in text] for text in loss]))
    print(f"curves of {TEXTS} texts at every budget: {time.perf_counter() - began:.2f} s")
    for method in ("dp", "hull"):
        for share in (0.05, 0.1, 0.2):
            began = time.perf_counter()
            split, _ = best_split(curves.gains(range(TEXTS)), UNITS * int(share * N), method)
            seconds = time.perf_counter() - began
            mean = np.mean([curves.overall(o, split) for o in range(TEXTS)])
            print(f"{method}, {share:.0%}: {seconds:.2f} s, mean loss {mean:.6f}")


if __name__ == "__main__":
    main()
