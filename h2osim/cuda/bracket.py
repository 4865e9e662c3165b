"""Bounds on the offline optimum of one budget, for many units at once on the GPU.

For prices λ_t >= 0 the dual value D(λ) bounds the optimum from above, whatever the prices (theory,
T6c). Each round reads the rows once: every token's best worth net of the prices gives D, and how
many tokens would be held in each step gives the slope; a Polyak step, of the size that would reach
the best schedule so far if D were linear, gives the next prices. Every now and then the best prices
give a schedule: it evicts the token that is worth least from there on net of the prices, and the
mass it keeps bounds the optimum from below. All values are exact integers; only the schedule's
choices are made in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.triangle import tri
from h2osim.cuda.chunks import spread
from h2osim.cuda.device import Device, kernel_text
from h2osim.cuda.rows import Rows, load_rows
from h2osim.traces.unit import Unit

#: Rounds after which a schedule is made: early, then ever more rarely.
SCHEDULES = (16, 56, 72, 88, 104, 128, 160, 192, 224, 256, 320, 384, 448)


@dataclass(frozen=True)
class Bounds:
    """lower <= optimum <= upper, in fixed point, with what proves either side.

    ``evicted_at`` int32 [n] keeps exactly `lower`; ``price`` int64 [n] has D(price) = `upper`.
    ``readings``: how often the rows were read.
    """

    lower: int
    upper: int
    evicted_at: NDArray[np.int32]
    price: NDArray[np.int64]
    readings: int


def brackets(
    units: Sequence[Unit],
    budget: int,
    prompt_len: int,
    gap: float = 1e-3,
    readings: int = 300,
    device: Device | None = None,
) -> list[Bounds]:
    """Close in on the optimum of each unit until upper - lower <= gap * upper.

    Units of one trace that stores scores. Stops after about so many readings, whatever the gap.
    """
    n, heads = units[0].n, len(units[0].heads)
    # scores, prices, and the values of every token after every step
    cost = {unit: heads * tri(n) * 2 + tri(n) * 4 + 64 * n for unit in units}
    place = {unit: i for i, unit in enumerate(units)}

    def work(mine: Device, some: list[Unit]) -> dict[int, Bounds]:
        (rows,) = load_rows(mine, some, n, 0)
        found = search(mine, rows, len(some), heads, n, budget, prompt_len, gap, readings)
        return {place[unit]: one for unit, one in zip(some, found, strict=True)}

    found = spread(list(units), cost, work, device)
    return [found[i] for i in range(len(units))]


def search(
    device: Device,
    rows: Rows,
    many: int,
    heads: int,
    n: int,
    k: int,
    p: int,
    gap: float,
    readings: int,
) -> list[Bounds]:
    """`brackets` of `many` units whose rows are on the device."""
    threads = min(256, device.threads)
    text = kernel_text("bracket", {"T": threads, "HEADS": heads})
    first = min(max(k, p - 1), n - 1)
    blocks = -(-n // threads)
    prices = device.full((many, n), np.float64)
    best_prices = device.full((many, n), np.float64)
    best = device.empty(many * n, np.float64)
    stops = device.empty(many * n, np.int32)
    change = device.empty(many * (n + 2), np.int32)
    bounds = device.array(np.tile([0.0, 2.0**62], (many, 1)))
    kept = device.full(many, np.float64)
    gone = device.full((many, n), np.int32, n)
    cached = device.empty(many * (n + 1), np.int32)
    scores = [rows.bits, rows.places]
    sizes = [np.int32(n)]
    ends = [np.int32(p), np.int32(first)]
    active = np.arange(many, dtype=np.int32)
    told = np.zeros((many, 2))
    plans = np.full((many, n), n, np.int32)
    used = np.zeros(many, np.int64)

    def read(which: Any, count: int) -> None:
        device.launch(
            text, "price_rows", count * blocks, threads, 0,
            [*scores, which, prices, best, stops, *sizes, *ends],
        )  # fmt: skip
        device.launch(
            text, "price_step", count, threads, 0,
            [*scores, which, prices, best, stops, best_prices, bounds, change, *sizes, *ends,
             np.int32(k)],
        )  # fmt: skip

    def schedule(which: Any, count: int) -> None:
        value = device.empty(count * tri(n), np.float32)
        device.launch(
            text, "values", count * blocks, threads, 0,
            [*scores, which, best_prices, value, *sizes, np.int32(first)],
        )  # fmt: skip
        device.launch(
            text, "leave", count, threads, 0,
            [*scores, which, value, cached, gone, kept, *sizes, *ends, np.int32(k)],
        )  # fmt: skip

    which = device.array(active)
    read(which, many)  # at prices of 0, D is the whole mass
    whole = device.host(bounds)[:, 1]
    flat = np.zeros((many, n))
    flat[:, first + 1 :] = np.maximum(1, whole // n // (4 * (k + 16)))[:, None]
    prices = device.array(flat)
    for done in range(2, readings + 1):
        read(which, len(active))
        if done not in SCHEDULES and done != readings and first < n - 1:
            continue
        schedule(which, len(active))
        mass, left, told = device.host(kept), device.host(gone), device.host(bounds)
        better = active[mass[active] > told[active, 0]]
        told[better, 0] = mass[better]
        plans[better] = left[better]
        bounds = device.array(told)
        used[active] = done
        open_ = told[active, 1] - told[active, 0] > gap * told[active, 1]
        active = active[open_]
        if not len(active):
            break
        which = device.array(active)
    final = device.host(best_prices)
    return [
        Bounds(int(told[u, 0]), int(told[u, 1]), plans[u], final[u].astype(np.int64), int(used[u]))
        for u in range(many)
    ]
