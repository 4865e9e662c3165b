"""The exact optimum of every budget against other solvers on one, and what each way to it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from h2osim.bench import Measurement
from h2osim.optima.bracket import narrow
from h2osim.optima.exact import optimal_curve
from h2osim.support.errors import UserError
from h2osim.traces.synthetic import synth
from h2osim.traces.unit import Unit

FAR = 2.0**52  # cost of a pair that is not allowed: above any sum of masses, exact in float64


def measure(unit: Unit, scipy: bool = True) -> list[Measurement]:
    """Time the solvers on one unit, one core, decoding from step 1; values are compared first.

    The others solve one budget, 20 % of n, on the rectangular matrix of steps and tokens (building
    it is not counted): ``lapjvr`` of lapx in float64 and, with `scipy`,
    ``scipy.optimize.linear_sum_assignment``. Every solver runs once after a small run that compiles
    it: they take seconds. Raises UserError without lapx.
    """
    try:
        from lap import lapjvr
    except ImportError:
        raise UserError("bench optimum compares with lapx: pip install 'h2osim[bench]'") from None
    n, k = unit.n, unit.n // 5

    def rectangular() -> Any:
        """What step t = k ... n-2 loses by evicting token v; the rows are added from the last."""
        cost = np.full((n - 1 - k, n - 1), FAR)
        later = np.zeros(n, np.int64)
        for t in range(n - 2, k - 1, -1):
            later[: t + 2] += unit.row(t + 1)
            cost[t - k, : t + 1] = later[: t + 1]
        return cost

    small = synth("powerlaw", 64, seed=0).units()[0]
    optimal_curve(small, 1)
    narrow(small, 8, 1, 0.0)
    cost = rectangular()
    ours, solved = _timed(partial(optimal_curve, unit, 1))
    theirs, found = _timed(partial(lapjvr, cost, extend_cost=True, return_cost=False))
    rows, columns = found[-2:]
    loss = solved.whole - int(solved.kept[k])
    assert loss == int(cost[rows, columns].sum())
    lines = [
        Measurement(f"exact, every budget of {n}", ours, "s"),
        Measurement(f"lapjvr, budget {k} (20 %)", theirs, "s"),
        Measurement("exact, every budget / lapjvr, one budget", ours / theirs, "times", 1.0, False),
    ]
    if scipy:
        from scipy.optimize import linear_sum_assignment

        spent, (rows, columns) = _timed(partial(linear_sum_assignment, cost))
        assert loss == int(cost[rows, columns].sum())
        lines.append(Measurement(f"scipy linear_sum_assignment, budget {k}", spent, "s"))
    del cost

    for share, budget in ((5, max(1, n // 20)), (20, k)):
        # the search for a flat price is nothing but dual evaluations
        spent, coarse = _timed(partial(narrow, unit, budget, 1, 1.0))
        once = spent / coarse.readings
        close, bounds = _timed(partial(narrow, unit, budget, 1, 1e-4))
        assert bounds.lower <= int(solved.kept[budget]) <= bounds.upper
        assert bounds.upper - bounds.lower <= 1e-4 * bounds.upper
        lines += [
            Measurement(f"bracket to 1e-4, budget {budget} ({share} %)", close, "s"),
            Measurement(f"  readings of the rows, {share} %", bounds.readings, "", 300, False),
            Measurement(f"  in dual evaluations, {share} %", close / once, "times", 100, False),
        ]
        spent, bounds = _timed(partial(narrow, unit, budget, 1, 0.0))
        assert bounds.lower == bounds.upper == int(solved.kept[budget])
        upto, some = _timed(partial(optimal_curve, unit, 1, most=budget))
        assert (some.kept[: budget + 1] == solved.kept[: budget + 1]).all()
        lines += [
            Measurement(f"bracket closed: exact, budget {budget} ({share} %)", spent, "s"),
            Measurement(f"exact, every budget up to {budget} ({share} %)", upto, "s"),
            Measurement(f"  in closed brackets, {share} %", upto / spent, "times"),
            Measurement(f"  / every budget, {share} %", upto / ours, "times"),
        ]
    return lines


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor time of this thread, and the result."""
    start = time.thread_time()
    result = work()
    return time.thread_time() - start, result
