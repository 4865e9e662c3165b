"""Lower and upper bounds on the offline optimum at one budget, for many units at once on the GPU.

For any prices λ_t >= 0 the dual value D(λ) is an upper bound (proofs/13-dual-certificate.md). A
round reads the rows once. It computes D and its slope, which is the number of tokens that the
prices would hold in each step less the budget. The next prices follow by a Polyak step: its length
would reach the value of the best schedule so far if D were linear. After some rounds the best
prices make a schedule, which evicts the token whose later mass less the prices is least. The mass
that it keeps is a lower bound. Both bounds are exact integers; only the schedule's choices are made
in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from h2osim.attention.triangle import tri
from h2osim.cuda.chunks import spread
from h2osim.cuda.device import Device, kernel_text
from h2osim.cuda.rows import DeviceRows, load_rows
from h2osim.engines.results import Bracket
from h2osim.traces.unit import Unit

#: Rounds after which a schedule is made.
SCHEDULES = (16, 56, 72, 88, 104, 128, 160, 192, 224, 256, 320, 384, 448)


def brackets(
    units: Sequence[Unit],
    budget: int,
    prompt_len: int,
    gap: float = 1e-3,
    readings: int = 300,
    device: Device | None = None,
) -> list[Bracket]:
    """Bound the optimum of each unit until upper - lower <= gap * upper.

    The units belong to one trace with a `scores` store. ``budget``: tokens, 1 … n. A unit is left
    after ``readings`` readings of its rows, whatever its gap is then.
    """
    n, heads = units[0].n, len(units[0].heads)
    # bytes of scores, prices, and values of every token after every step
    cost = {unit: heads * tri(n) * 2 + tri(n) * 4 + 64 * n for unit in units}
    index = {unit: i for i, unit in enumerate(units)}

    def work(mine: Device, some: list[Unit]) -> dict[int, Bracket]:
        (rows,) = load_rows(mine, some, n, 0)
        some_bounds = search(mine, rows, len(some), heads, n, budget, prompt_len, gap, readings)
        return {index[unit]: one for unit, one in zip(some, some_bounds, strict=True)}

    bounds = spread(list(units), cost, work, device)
    return [bounds[i] for i in range(len(units))]


def search(
    device: Device,
    rows: DeviceRows,
    many: int,
    heads: int,
    n: int,
    k: int,
    p: int,
    gap: float,
    readings: int,
) -> list[Bracket]:
    """`brackets` for `many` units of `heads` heads and n tokens whose rows are on the device.

    k: budget, p: prompt length.
    """
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
    evicted_at = device.full((many, n), np.int32, n)
    cached = device.empty(many * (n + 1), np.int32)
    scores = [rows.bits, rows.bases]
    sizes = [np.int32(n)]
    ends = [np.int32(p), np.int32(first)]
    active = np.arange(many, dtype=np.int32)
    proved = np.zeros((many, 2))
    schedules = np.full((many, n), n, np.int32)
    readings_of = np.zeros(many, np.int64)

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
            text, "token_values", count * blocks, threads, 0,
            [*scores, which, best_prices, value, *sizes, np.int32(first)],
        )  # fmt: skip
        device.launch(
            text, "make_schedule", count, threads, 0,
            [*scores, which, value, cached, evicted_at, kept, *sizes, *ends, np.int32(k)],
        )  # fmt: skip

    which = device.array(active)
    read(which, many)  # at prices of 0 the dual value is the whole mass
    whole = device.host(bounds)[:, 1]
    flat = np.zeros((many, n))
    flat[:, first + 1 :] = np.maximum(1, whole // n // (4 * (k + 16)))[:, None]
    prices = device.array(flat)
    for done in range(2, readings + 1):
        read(which, len(active))
        if done not in SCHEDULES and done != readings and first < n - 1:
            continue
        schedule(which, len(active))
        mass, left, proved = device.host(kept), device.host(evicted_at), device.host(bounds)
        better = active[mass[active] > proved[active, 0]]
        proved[better, 0] = mass[better]
        schedules[better] = left[better]
        bounds = device.array(proved)
        readings_of[active] = done
        open_ = proved[active, 1] - proved[active, 0] > gap * proved[active, 1]
        active = active[open_]
        if not len(active):
            break
        which = device.array(active)
    final = device.host(best_prices)
    return [
        Bracket(
            int(lower), int(upper), int(whole[u]), schedules[u], final[u].astype(np.int64),
            int(readings_of[u]),
        )
        for u, (lower, upper) in enumerate(proved)
    ]  # fmt: skip
