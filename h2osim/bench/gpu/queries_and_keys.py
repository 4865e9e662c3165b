"""A long text from queries and keys, whose rows are never in memory all at once."""

from __future__ import annotations

import numpy as np

from h2osim import cuda
from h2osim.bench import Measurement
from h2osim.bench.gpu.tools import POLICY, on_one_core, seconds
from h2osim.cuda.rows import block_rows, load_rows
from h2osim.engines.request import Job
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace

LONG = 32768


def long_text(device: cuda.Gpu) -> list[Measurement]:
    """H2O at every budget, and the part of the time that computing the rows takes."""
    rng = np.random.default_rng(7)

    def trace(n: int, heads: int) -> Trace:
        shape = (1, heads, n, 64)
        q, k = rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)
        return Trace.from_qk(q, k, scale=0.125)

    short = Job(trace(1500, 1).units()[0], parse(POLICY), 1, 1)
    assert np.array_equal(cuda.curves([short], (), device)[0][0].kept, on_one_core(short).kept)

    heads = 16
    units = trace(LONG, heads).units()
    jobs = [Job(unit, parse(POLICY), 1, 1) for unit in units]
    block = block_rows(LONG)

    def rows() -> None:
        for _ in load_rows(device, units, block, 0):
            pass

    making = seconds(rows, 1)
    whole = seconds(lambda: cuda.curves(jobs, (), device), 1)
    return [
        Measurement(f"H2O, {heads} units of {LONG} tokens from q and k, every budget", whole, "s"),
        Measurement("  of which making the rows", making, "s"),
    ]
