"""What every budget in one pass costs, against one budget at a time and against plain NumPy."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import UNIT
from h2osim.bench import Measurement, fed, median_seconds
from h2osim.engines.direct import DirectRun
from h2osim.engines.request import Job
from h2osim.engines.results import Curve, Outcome
from h2osim.engines.stack import StackRun
from h2osim.policies.text import parse
from h2osim.traces.unit import Unit

RECENT = 32
POLICY = f"h2o:recent={RECENT},scores=full"
SAMPLE = 16  # budgets whose direct runs stand for all of them


def measure(unit: Unit) -> list[Measurement]:
    """Time H2O on one unit: one pass for all budgets, direct runs, NumPy; checked before timing.

    The direct runs of all n budgets are extrapolated from the middles of 16 equal ranges of
    budgets. The NumPy baseline is what one would write first: a step a loop turn, array operations
    over the cache, float64.
    """
    n, fifth = unit.n, unit.n // 5
    rows = np.zeros((n, n), np.float32 if len(unit.heads) == 1 else np.float64)
    for t in range(n):
        rows[t, : t + 1] = unit.row(t) * UNIT

    curve, direct = one_pass(unit), one_budget(unit, fifth)
    kept, gone = numpy_h2o(rows, fifth, RECENT)
    assert int(curve.kept[fifth - 1]) == int(direct.kept.sum()) == round(kept * 2**24)
    assert np.array_equal(gone, direct.evicted_at)
    sampled = [(2 * i + 1) * n // (2 * SAMPLE) for i in range(SAMPLE)]
    for k in sampled:
        assert int(one_budget(unit, k).kept.sum()) == int(curve.kept[k - 1])

    passed = median_seconds(lambda: one_pass(unit))
    single = median_seconds(lambda: one_budget(unit, fifth))
    every = sum(median_seconds(partial(one_budget, unit, k), 3) for k in sampled) * n / SAMPLE
    plain = median_seconds(lambda: numpy_h2o(rows, fifth, RECENT), 3)
    return [
        Measurement(f"one pass, all {n} budgets", passed * 1e3, "ms"),
        Measurement(f"direct run, budget {fifth} (20 %)", single * 1e3, "ms"),
        Measurement(f"direct runs of all {n} budgets, from {SAMPLE} of them", every, "s"),
        Measurement(f"NumPy step by step, budget {fifth}", plain * 1e3, "ms"),
        Measurement("one pass / one direct run at 20 %", passed / single, "times", 2.5, False),
        Measurement("direct runs of all budgets / one pass", every / passed, "times", 1000),
        Measurement("NumPy / one pass, per budget", plain / (passed / n), "times", 2000),
    ]


def one_pass(unit: Unit) -> Curve:
    """Every budget by the stack engine, on this thread."""
    found: Curve = fed(StackRun(Job(unit, parse(POLICY), unit.n, 1)), unit)
    return found


def one_budget(unit: Unit, budget: int) -> Outcome:
    """One budget by the direct engine, on this thread."""
    found: Outcome = fed(DirectRun(Job(unit, parse(POLICY), budget, 1)), unit)
    return found


def numpy_h2o(
    rows: NDArray[np.floating], budget: int, recent: int
) -> tuple[float, NDArray[np.int32]]:
    """H2O with full scores in array operations: the mass kept, and the step of each eviction."""
    n = len(rows)
    score, cache, kept = np.zeros(n), np.zeros(0, np.int64), 0.0
    evicted_at = np.full(n, n, np.int32)
    for t in range(n):
        cache = np.append(cache, t)
        attention = rows[t, cache]
        score[cache] += attention
        if t >= 1:
            kept += float(attention.sum(dtype=np.float64))
        if len(cache) > budget:
            rank = np.where(t - cache < recent, np.inf, score[cache])
            worst = int(np.argmin(rank))
            evicted_at[cache[worst]] = t
            cache = np.delete(cache, worst)
    return kept, evicted_at
