"""Divides units into chunks that fit device memory, and over the lanes of all devices."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from h2osim.cuda.device import Device, devices
from h2osim.cuda.rows import recorded
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit

R = TypeVar("R")

#: Least bytes of a chunk of recorded rows; small chunks let copies overlap with kernels.
PIECE = 2**27


def spread(
    units: list[Unit],
    cost: dict[Unit, int],
    work: Callable[[Device, list[Unit]], dict[int, R]],
    device: Device | None,
    larger: int = 1,
) -> dict[int, R]:
    """Call `work(device, chunk)` for all units in chunks, and merge the results.

    ``cost``: bytes of device memory for each unit. Each lane of a device is a thread that takes the
    next chunk when it has finished one, so the rows of one chunk are copied while another chunk is
    computed. Rows that are made on the device need little copying; then chunks are as large as
    memory allows, because a launch of few blocks takes as long as one of many. A chunk that does
    not fit is halved. ``larger``: by how much chunks should be larger, where kernels take so much
    longer than copies. UserError if a single unit does not fit.
    """
    present = [device] if device is not None else devices()
    workers = [(one, lane) for lane in range(present[0].lanes) for one in present]
    todo, lock = list(units), threading.Lock()
    total = sum(cost[unit] for unit in units)
    if recorded(units[0]):
        piece = max(larger * PIECE, total // (4 * len(workers)))
    else:
        piece = -(-total // len(present))
    found: dict[int, R] = {}
    active = {id(one): one.lanes for one in present}

    def take(mine: Device, most: int) -> tuple[list[Unit], bool]:
        """The next chunk (empty: no units are left), and whether other lanes of the device work."""
        room = min(piece, int(mine.free() * 0.8) // mine.lanes)
        with lock:
            chunk: list[Unit] = []
            while (
                todo
                and len(chunk) < most
                and (not chunk or sum(cost[u] for u in chunk) + cost[todo[0]] <= room)
            ):
                chunk.append(todo.pop(0))
            beside = active[id(mine)] > 1
            if not chunk:
                active[id(mine)] -= 1
            return chunk, beside

    def run(mine: Device, lane: int) -> None:
        mine.enter(lane)
        most = len(units)
        while True:
            chunk, beside = take(mine, most)
            if not chunk:
                return
            try:
                result = work(mine, chunk)
            except mine.exhausted:
                mine.release()
                if len(chunk) == 1 and not beside:
                    raise UserError(
                        f"{chunk[0].label}: out of device memory for one unit of "
                        f"{chunk[0].n} tokens; engine=numba runs it on the CPU"
                    ) from None
                most = max(1, len(chunk) // 2)
                with lock:
                    todo[:0] = chunk
                    if len(chunk) == 1 and active[id(mine)] > 1:
                        active[id(mine)] -= 1  # this lane ends, so that the others have its memory
                        return
                continue
            with lock:
                found.update(result)

    if len(workers) == 1:
        run(*workers[0])
        return found
    with ThreadPoolExecutor(len(workers)) as pool:
        running = [pool.submit(run, *worker) for worker in workers]
        try:
            for done in running:
                done.result()
        finally:
            with lock:
                todo.clear()  # after an error or Ctrl-C the other lanes take no more
    return found
