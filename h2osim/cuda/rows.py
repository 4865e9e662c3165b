"""Rows of units on a device: copied from a `scores` store, or computed from queries and keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from h2osim.attention.triangle import tri
from h2osim.cuda.device import Device, kernel_text
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit

#: Entries of a unit's rows that are computed at a time.
ENTRIES = 2**25


def block_rows(n: int) -> int:
    """Rows of a `qk` trace that are computed at a time."""
    return max(256, min(2048, ENTRIES // n))


@dataclass(frozen=True)
class DeviceRows:
    """Rows first … stop - 1 of some units on the device, of which start … stop - 1 are new.

    Row t of head h (of all units' heads, one after the other) starts at bits[bases[h] + t(t+1)/2].
    """

    first: int
    start: int
    stop: int
    bits: Any  # float16 as uint16, flat
    bases: Any  # int64 [heads of all units]


def recorded(unit: Unit) -> bool:
    """Whether the unit's trace stores its rows, rather than queries and keys."""
    return "scores" in unit.trace.stores


def staged_bytes(n: int) -> int:
    """Bytes of shared memory for a packed row, copied in aligned 16-byte pieces."""
    return (2 * n + 14 + 15) // 16 * 16


def row_bytes(unit: Unit, block: int, lag: int) -> int:
    """Bytes of device memory for a unit's rows, in blocks of `block` rows."""
    n, heads = unit.n, len(unit.heads)
    if recorded(unit):
        return heads * tri(n) * 2
    rows = min(n, block + lag)
    size = unit.keys().shape[2]
    return heads * rows * n * (2 + 4) + (heads + len(unit.kv)) * n * size * 4


def load_rows(device: Device, units: Sequence[Unit], block: int, lag: int) -> Iterator[DeviceRows]:
    """Load the rows of units of one trace: a `scores` store whole, a `qk` store in blocks.

    ``lag``: how many rows before each block are kept. UserError if a logit is not finite.
    """
    n, heads = units[0].n, len(units[0].heads)
    if all(recorded(unit) for unit in units):
        # kernels read aligned 16-byte pieces, which may end after the last row
        bits = device.empty(len(units) * heads * tri(n) + 8, np.uint16)

        # One lane copies at a time: lanes that copied together would also compute together, and no
        # copy would overlap with a kernel.
        def put(i: int) -> None:
            rows = next(iter(units[i].blocks())).bits.reshape(-1)
            device.put(rows, bits, i * heads * tri(n))

        with device.copying:
            device.each(put, range(len(units)))
        bases = np.arange(len(units) * heads, dtype=np.int64) * tri(n)
        yield DeviceRows(0, 0, n, bits, device.array(bases))
        return
    queries = device.array(np.concatenate([u.queries() for u in units]).astype(np.float32))
    keys = device.array(np.concatenate([u.keys() for u in units]).astype(np.float32))
    group = heads // len(units[0].kv)
    kv = device.array(np.arange(len(units) * heads, dtype=np.int32) // group)
    size = units[0].keys().shape[2]
    side = 16 if device.threads >= 256 else 4
    threads, tile = max(16, side * side), 4 * side
    text = kernel_text("rows", {"T": threads, "SIDE": side, "TILE": tile})
    entries = {unit.layer: unit.trace.layer_entry(unit.layer) for unit in units}
    wrong = device.full(1, np.int32)
    total = len(units) * heads
    for start in range(0, n, block):
        stop, first = min(start + block, n), max(0, start - lag)
        each = tri(stop) - tri(first)
        bits = device.empty(total * each, np.uint16)
        bases_host = np.arange(total, dtype=np.int64) * each - tri(first)
        bases = device.array(bases_host)
        room = device.empty(total * (stop - first) * stop, np.float32)
        # layers may differ in scale, softcap and window: one launch for each layer's units
        at = 0
        while at < len(units):
            layer = units[at].layer
            end = at
            while end < len(units) and units[end].layer == layer:
                end += 1
            entry, many = entries[layer], (end - at) * heads
            scale = np.float32(entry["scale"])
            cap = np.float32(entry.get("softcap") or 0.0)
            window = np.int32(entry.get("window") or 0)
            down, along = -(-(stop - first) // tile), -(-stop // tile)
            part = room[at * heads * (stop - first) * stop :]
            device.launch(
                text, "logits", many * down * along, side * side, 0,
                [queries[at * heads :], keys, kv[at * heads :], part, scale, cap, window,
                 *map(np.int32, (many, size, n, first, stop))],
            )  # fmt: skip
            grid = -(-many * (stop - first) * 16 // threads)
            device.launch(
                text, "softmax", grid, threads, 0,
                [part, bits, bases[at * heads :], wrong, cap, window,
                 *map(np.int32, (many, first, stop))],
            )  # fmt: skip
            at = end
        if int(device.host(wrong)[0]):
            trace = units[0].trace
            raise UserError(f"trace {trace.name}: logits of rows {first}-{stop - 1} are not finite")
        yield DeviceRows(first, start, stop, bits, bases)


def row_masses(device: Device, rows: DeviceRows, heads: int) -> Any:
    """int64 [heads of all units * new rows] on the device: the sum of each row in 2^-24."""
    many = rows.stop - rows.start
    sums = device.empty(heads * many, np.int64)
    threads = min(256, device.threads)
    device.launch(
        kernel_text("masses", {"T": threads}), "masses",
        -(-heads * many * device.warp // threads), threads, 0,
        [rows.bits, rows.bases, sums, *map(np.int32, (heads, rows.start, rows.stop))],
    )  # fmt: skip
    return sums
