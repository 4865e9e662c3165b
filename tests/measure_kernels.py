"""Times whole calls of `h2osim.sweep` with and without each kernel that replays every budget.

    python tests/measure_kernels.py

needs a GPU. A call replays a grid of configurations at every budget, from rows in host memory. It
is timed with every set of kernels that contains the last of KERNELS, which runs any inclusive
policy; the recalls must be equal. Times are the best of three after a call that compiles. They
include copying, computing and making the result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np

import h2osim
from h2osim.attention.triangle import tri
from h2osim.cuda import run
from h2osim.traces.trace import Trace

HEADS, GROUP = 9, 3  # of a layer, and of a KV head
GRIDS = {
    "h2o, 1 configuration": "h2o:recent=32,scores=full",
    "h2o, 16 windows": "h2o:recent=0..30:2,scores=full",
    "decay, 1 configuration": "decay:gamma=0.98,recent=32,scores=full",
    "decay, 64 values": "decay:gamma=0.9..0.9945:0.0015,recent=32,scores=full",
    "decay, window of 256": "decay:gamma=0.98,recent=256,scores=full",
    "tova": "tova:scores=full",
    "streaming": "streaming:sinks=4",
}


@contextmanager
def only(kernels: tuple[Any, ...]) -> Iterator[None]:
    """Within the `with` block only these kernels are used."""
    before = run.KERNELS
    run.KERNELS = kernels
    try:
        yield
    finally:
        run.KERNELS = before


def choices() -> dict[str, tuple[Any, ...]]:
    """Every set of kernels that contains the last one, by name."""
    *special, general = run.KERNELS
    found = {}
    for size in range(len(special), -1, -1):
        for some in combinations(special, size):
            name = "+".join(kernel.__name__.lower()[:5] for kernel in (*some, general))
            found[name] = (*some, general)
    return found


def random_trace(layers: int, n: int, seed: int = 0) -> Trace:
    """Random rows in host memory, float16; every layer has copies of the same nine heads."""
    rng = np.random.default_rng(seed)
    bits = np.empty((1, HEADS, tri(n)), np.uint16)
    for t in range(n):
        rows = np.exp(2 * rng.standard_normal((HEADS, t + 1), np.float32))
        rows /= rows.sum(axis=1, keepdims=True)
        bits[0, :, tri(t) : tri(t + 1)] = rows.astype(np.float16).view(np.uint16)
    return Trace.from_packed(np.repeat(bits, layers, 0), group_size=GROUP)


def measure(layers: int, n: int, engine: str = "cuda", repeats: int = 3) -> dict[str, list[float]]:
    """Seconds of every grid with every set of kernels; AssertionError if results differ."""
    trace = random_trace(layers, n)
    found: dict[str, list[float]] = {}
    for name, grid in GRIDS.items():
        expected = None
        for kernels in choices().values():
            with only(kernels):
                result = h2osim.sweep(trace, grid, "all", engine=engine)["recall"].values
                expected = result if expected is None else expected
                assert np.array_equal(result, expected, equal_nan=True), name
                best = np.inf
                for _ in range(repeats):
                    start = time.perf_counter()
                    h2osim.sweep(trace, grid, "all", engine=engine)
                    best = min(best, time.perf_counter() - start)
            found.setdefault(name, []).append(best)
    return found


def main() -> None:
    """Print one table for 768 tokens and one for 2048."""
    words = list(choices())
    for layers, n in ((30, 768), (30, 2048)):
        print(f"seconds of h2osim.sweep, every budget, {layers * GROUP} units of {n} tokens")
        print(f"{'':23s}", *[f"{word:>23s}" for word in words])
        for name, times in measure(layers, n).items():
            print(f"{name:23s}", *[f"{x:23.4f}" for x in times], flush=True)


if __name__ == "__main__":
    main()
