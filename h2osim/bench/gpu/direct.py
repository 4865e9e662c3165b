"""The kernel that replays one budget, alone, by CUDA events."""

from __future__ import annotations

import numpy as np

from h2osim import cuda
from h2osim.bench import Measurement
from h2osim.bench.gpu.tools import RECENT, UNITS, as_unit, random_rows, seconds
from h2osim.cuda.kernels.direct import Direct
from h2osim.cuda.rows import row_masses
from h2osim.engines.direct import DirectRun
from h2osim.engines.request import Job
from h2osim.policies.text import parse


def cached_scores(device: cuda.Gpu, n: int) -> list[Measurement]:
    """H2O that observes renormalised rows, at one budget."""
    rows = random_rows(device, n)
    unit = as_unit(device, rows, n, 100)
    k = n // 5
    job = Job(unit, parse(f"h2o:recent={RECENT}"), k, 1)
    masses = row_masses(device, rows, UNITS)
    direct = Direct(device, [job] * UNITS, range(UNITS))

    def again() -> None:
        direct._progress.fill(0)
        direct.feed(rows, masses)

    again()
    run = DirectRun(job)
    for block in unit.blocks():
        run.feed(block)
    expected, outcome = run.result(), direct.outcomes()[100]
    assert np.array_equal(outcome.kept, expected.kept)
    assert np.array_equal(outcome.evicted_at, expected.evicted_at)
    name = f"cached H2O, {UNITS} units of {n} tokens, budget {k}"
    return [Measurement(name, seconds(again, 3) * 1e3, "ms")]
