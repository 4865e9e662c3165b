"""T6, T6b.2, M4 and M5: the best that any schedule of evictions can keep.

The formulations are built here apart from the solvers of `h2osim.optima`, for small matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from h2osim.guarantees.checks import concave_in_budget
from h2osim.guarantees.history import Rows
from h2osim.guarantees.results import CLOSE, Result, Verdict, share
from statements.simulating import stack_run


def brute_force_value(rows: Rows, k: int, prompt_len: int = 1) -> int:
    """OPT(k) by trying every schedule, early evictions included: for n up to 7 or so.

    The value is the sum over the decode steps t >= prompt_len of the attended mass.
    """
    table = [heads.sum(axis=0).tolist() for heads in rows.each()]
    n, p = rows.n, prompt_len

    @cache
    def best(t: int, cache: tuple[int, ...]) -> int:
        if t == n:
            return 0
        seen = (*cache, t)
        now = sum(table[t][j] for j in seen) if t >= p else 0
        if t < p - 1:
            return now + best(t + 1, seen)
        sizes = range(min(k, len(seen)) + 1)
        return now + max(best(t + 1, c) for s in sizes for c in itertools.combinations(seen, s))

    return best(0, ())


def _table(rows: Rows) -> NDArray[np.int64]:
    """All rows, summed over heads: [n, n], zero above the diagonal."""
    table = np.zeros((rows.n, rows.n), dtype=np.int64)
    for t, heads in enumerate(rows.each()):
        table[t, : t + 1] = heads.sum(axis=0)
    return table


def _remaining(rows: Rows, prompt_len: int) -> tuple[int, NDArray[np.int64]]:
    """The mass of all decode rows, and what token j receives from decode row t on: [n + 1, n]."""
    table = np.vstack([_table(rows), np.zeros((1, rows.n), dtype=np.int64)])
    table[:prompt_len] = 0
    return int(table.sum()), np.cumsum(table[::-1], axis=0)[::-1]


def assignment_value(rows: Rows, k: int, prompt_len: int = 1) -> int:
    """OPT(k) as the assignment problem of proof T6, solved by SciPy (exact below 2^53)."""
    return schedule_value(rows, assignment_schedule(rows, k, prompt_len), prompt_len)


def interval_program(rows: Rows, k: int, prompt_len: int = 1) -> tuple[float, NDArray[np.float64]]:
    """The linear program of proof T6c by HiGHS: its value (self terms included) and the prices [n].

    Variables: token j leaves after row e. For small n (n^2/2 variables).
    """
    from scipy.optimize import linprog

    n, p = rows.n, prompt_len
    table = _table(rows).astype(float)
    base = float(sum(table[t, t] for t in range(p, n)))
    stays = [(j, e) for j in range(n) for e in range(max(j + 1, p), n)]
    prices = np.zeros(n)
    if not stays:
        return base, prices
    profit = [table[max(j + 1, p) : e + 1, j].sum() for j, e in stays]
    limits = [float(min(k, t)) for t in range(p, n)] + [1.0] * n
    matrix = np.zeros((len(limits), len(stays)))
    for column, (j, e) in enumerate(stays):
        matrix[max(j + 1, p) - p : e + 1 - p, column] = 1
        matrix[n - p + j, column] = 1
    solved = linprog(-np.array(profit), A_ub=matrix, b_ub=limits, method="highs-ds")
    prices[p:] = -solved.ineqlin.marginals[: n - p]
    return base - float(solved.fun), prices


class _Residual:
    """A network of unit paths: costs, capacities, and shortest augmenting paths (Bellman-Ford)."""

    def __init__(self) -> None:
        self.arcs: list[list[int]] = []  # tail, head, capacity left, cost; arc i ^ 1 is its reverse

    def add(self, tail: int, head: int, cost: int, capacity: int = 1) -> None:
        self.arcs += [[tail, head, capacity, cost], [head, tail, 0, -cost]]

    def augment(self, source: int, sink: int) -> int | None:
        """Send one unit along a cheapest path; its cost, None if there is no path."""
        cost, arrived = {source: 0}, dict[int, int]()
        changed = True
        while changed:
            changed = False
            for arc, (tail, head, left, price) in enumerate(self.arcs):
                if left and tail in cost:
                    new = cost[tail] + price
                    if head not in cost or new < cost[head]:
                        cost[head], arrived[head], changed = new, arc, True
        if sink not in cost:
            return None
        node = sink
        while node != source:
            arc = arrived[node]
            self.arcs[arc][2] -= 1
            self.arcs[arc ^ 1][2] += 1
            node = self.arcs[arc][0]
        return cost[sink]


def row_by_row_values(rows: Rows, prompt_len: int = 1) -> list[int]:
    """OPT(k) for k = 0 ... n by proof T6.2: one assignment row at a time, from the top budget down.

    Cubic in n and more: for small n.
    """
    n, p = rows.n, prompt_len
    total, later = _remaining(rows, p)
    network = _Residual()
    sink = n
    for token in range(n):
        network.add(token, sink, 0)
    values = {n: total}
    cost = 0
    for k in range(n - 1, -1, -1):  # the row that budget k has and budget k + 1 has not
        step = k if k >= p else p - 1
        if p < n and step <= n - 2:
            row = n + 1 + k
            for token in range(step + 1):
                network.add(row, token, int(later[step + 1, token]))
            found = network.augment(row, sink)
            assert found is not None  # every row can be assigned (proof T6.2)
            cost += found
        values[k] = total - cost
    return [values[k] for k in range(n + 1)]


def path_values(rows: Rows, most: int, prompt_len: int = 1) -> list[int]:
    """OPT(k) for k = 0 ... most by proof T6.3: k paths through the tokens, one after the other."""
    n, p = rows.n, prompt_len
    table = _table(rows)
    own = sum(int(table[t, t]) for t in range(p, n))
    source, sink = 2 * n, 2 * n + 1
    network = _Residual()
    network.add(source, sink, 0, capacity=max(1, most))  # a slot that is never used
    for s in range(n):
        network.add(source, 2 * s, 0)
        network.add(2 * s, 2 * s + 1, 0)  # a token is on one path only
        first = max(s + 1, p)
        network.add(2 * s + 1, sink, -int(table[first:, s].sum()))
        for t in range(first, n):
            network.add(2 * s + 1, 2 * t, -int(table[first : t + 1, s].sum()))
    values = [own]
    for _ in range(most):
        found = network.augment(source, sink)
        assert found is not None
        values.append(values[-1] - found)
    return values


def offline_optimum(rows: Rows, k: int, prompt_len: int = 1) -> Result:
    """T6: every schedule tried, and each formulation of the proof built and solved on its own.

    They are the assignment for the budget k (SciPy), the assignment row by row through all budgets,
    the k paths, and the linear program of T6c. For small n; k may be 0 or more than n. Numbers:
    optimum, assignment, rows, paths, program.
    """
    tried = brute_force_value(rows, k, prompt_len)
    numbers = {
        "optimum": float(tried),
        "assignment": float(assignment_value(rows, k, prompt_len)),
        "rows": float(row_by_row_values(rows, prompt_len)[min(k, rows.n)]),
        "paths": float(path_values(rows, k, prompt_len)[k]),
        "program": interval_program(rows, k, prompt_len)[0],
    }
    exact = all(numbers[name] == tried for name in ("assignment", "rows", "paths"))
    same = exact and abs(numbers["program"] - tried) <= CLOSE * max(1, tried)
    return Result("T6", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)


def best_allocation(curves: Sequence[Sequence[int]]) -> Result:
    """T6b.2: giving each slot to the unit where it gains most is best, for every number of slots.

    curves: for each unit the values of 0, 1, 2, ... slots. All splits are compared with, by dynamic
    programming. step: the first number of slots with a better split. Does not apply to curves that
    are not concave.
    """
    if any(concave_in_budget(curve).verdict == Verdict.VIOLATED for curve in curves):
        return Result("T6b", Verdict.FAILS, note="a curve is not concave")
    best = {0: 0}  # the best sum of the curves for each number of slots
    for curve in curves:
        sums: dict[int, int] = {}
        for given, value in best.items():
            for slots, more in enumerate(curve):
                at = given + slots
                sums[at] = max(sums.get(at, value + more), value + more)
        best = sums
    gains = sorted((b - a for c in curves for a, b in itertools.pairwise(c)), reverse=True)
    value = sum(curve[0] for curve in curves)
    for slots in range(len(gains) + 1):
        if value != best[slots]:
            return Result("T6b", Verdict.VIOLATED, slots)
        value += gains[slots] if slots < len(gains) else 0
    return Result("T6b", Verdict.HOLDS)


# --- M4, M5: rules and schedules that know, or think they know, the future ------------------------


def belady_rows(m: int) -> Rows:
    """The matrix of M4 in units of 1/(m+1): each of m tokens has its mass at once, token 0 last."""
    n = m + 3
    matrix = np.zeros((n, n), dtype=np.int64)
    matrix[0, 0] = matrix[1, 1] = matrix[m + 2, 0] = m + 1
    for t in range(1, m + 1):
        matrix[t + 1, t], matrix[t + 1, t + 1] = m, 1
    return Rows.of(matrix)


def no_belady_rule(m: int) -> Result:
    """M4: with one slot, evicting the least future mass keeps 2 + m/(m+1), the optimum m + 1.

    m >= 2. Numbers: kept, optimum (in rows), ratio.
    """
    rows = belady_rows(m)
    table = _table(rows)
    n = rows.n
    future = stack_run(
        lambda t: [(int(table[t + 1 :, j].sum()), j) for j in range(t + 1)],
        n,
    )[1]
    kept = schedule_value(rows, future)
    best = assignment_value(rows, 1)
    numbers = {"kept": kept / (m + 1), "optimum": best / (m + 1), "ratio": kept / best}
    same = kept == 2 * (m + 1) + m and best == (m + 1) ** 2
    return Result("M4", Verdict.HOLDS if same else Verdict.VIOLATED, None, numbers)


def schedule_value(rows: Rows, evicted_at: ArrayLike, prompt_len: int = 1) -> int:
    """What the decode steps of a schedule attend; evicted_at [n]: the step of each eviction."""
    gone = np.asarray(evicted_at)
    return sum(
        int(heads.sum(axis=0)[gone[: t + 1] >= t].sum())
        for t, heads in enumerate(rows.each())
        if t >= prompt_len
    )


def assignment_schedule(rows: Rows, k: int, prompt_len: int = 1) -> NDArray[np.int64]:
    """A schedule that reaches OPT(k): evicted_at [n], from the assignment of proof T6."""
    from scipy.optimize import linear_sum_assignment

    n, p = rows.n, prompt_len
    total, later = _remaining(rows, p)
    steps = [p - 1] * max(0, p - k) if p < n else []
    steps += list(range(max(k, p), n - 1))
    cost = np.full((len(steps), n), 4 * total + 1, dtype=np.int64)
    for i, t in enumerate(steps):
        cost[i, : t + 1] = later[t + 1, : t + 1]
    gone = np.full(n, n, dtype=np.int64)
    for row, column in zip(*linear_sum_assignment(cost), strict=True):
        gone[column] = steps[row]
    return gone


def prediction_error(rows: Rows, predicted: Rows, k: int, prompt_len: int = 1) -> Result:
    """M5: the schedule that is optimal for a prediction keeps OPT less the distance, or more.

    Both in the same unit. The sharper form counts only pairs of a step and a token that exactly one
    of the two optimal schedules attends; both are checked. Numbers: ratio (kept over OPT), bound,
    sharp (the bounds over OPT).
    """
    n, p = rows.n, prompt_len
    truth, guess = _table(rows), _table(predicted)
    best = assignment_schedule(rows, k, p)
    planned = assignment_schedule(predicted, k, p)
    optimum, kept = schedule_value(rows, best, p), schedule_value(rows, planned, p)
    distance = differing = 0
    for t in range(p, n):
        off = np.abs(truth[t, :t] - guess[t, :t])
        distance += int(off.sum())
        differing += int(off[(best[:t] >= t) != (planned[:t] >= t)].sum())
    numbers = {
        "ratio": share(kept, optimum),
        "bound": share(optimum - distance, optimum),
        "sharp": share(optimum - differing, optimum),
    }
    if kept < optimum - differing:
        return Result("M5", Verdict.VIOLATED, None, numbers)
    verdict = Verdict.HOLDS if optimum > distance else Verdict.VACUOUS
    return Result("M5", verdict, None, numbers)
