"""The mass that a run kept and missed, step by step, in integers.

`follow` takes any run's evictions and computes the series the theorems speak about.

Notation (proofs/README.md): a_i(s) = sum_{t <= i} A[t, s], f_i(S) = sum_{s in S} a_i(s), opt_i the
top-k sum of a_i, S_i the cache after step i, t_o the step at which token o was evicted. All masses
are integers: fixed point (multiples of 2^-24) for a trace, whatever unit the matrix has otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

HeadRows = Callable[[int], NDArray[np.int64]]
"""head_rows(t) -> int64 [heads, t+1], as `Unit.head_rows`."""


@dataclass(frozen=True)
class Rows:
    """Where attention rows come from: head_rows(t) for t < n, every entry a whole number."""

    head_rows: HeadRows
    n: int
    heads: int

    @classmethod
    def of(cls, matrix: Any) -> Rows:
        """Rows of an integer matrix [heads, n, n] or [n, n]; what lies above t is ignored."""
        given = np.asarray(matrix)
        if given.dtype.kind not in "iu":
            raise TypeError(f"rows are whole numbers, not {given.dtype}")
        stack = np.atleast_3d(given) if given.ndim == 3 else given[None]
        wide = stack.astype(np.int64)
        return cls(lambda t: wide[:, t, : t + 1], wide.shape[1], wide.shape[0])

    @classmethod
    def of_unit(cls, unit: Any) -> Rows:
        """Rows of a trace's `Unit`, in fixed point."""
        return cls(unit.head_rows, unit.n, len(unit.heads))

    def each(self) -> Iterator[NDArray[np.int64]]:
        """All rows in order."""
        return (self.head_rows(t) for t in range(self.n))


@dataclass(frozen=True)
class Schedule:
    """The evictions of a run without re-admission.

    evicted_at: int [n], the step after which a token is gone, n if it stays. k: the budget.
    prompt_len: steps before it are the prompt, kept whole to its end.
    """

    evicted_at: NDArray[np.int64]
    k: int
    prompt_len: int


@dataclass(frozen=True)
class History:
    """Series over the steps first ... n-1, first = max(p, k) - 1 (index 0 is step `first`).

    value          f_i(S_i)
    before         f_i(S_{i-1}); for i = first the same as value
    opt            opt_i
    same           whether S_i is the top k, ties to the newer token
    returned       whether a token re-entered the top k (OPT_i not within OPT_{i-1} + {i})
    late           sum over missed tokens o of a_i(o) - a_{t_o}(o), what came after their eviction
    late_share     largest share (a_i(o) - a_{t_o}(o)) / a_i(o) of a missed token, float
    missed         M_i, the decode mass that was not attended up to step i
    inflated       the part of M_i that matters, float: what renormalising has added to the scores
                   of tokens kept outside the top k, less what it had added to missed ones before
                   they went (proof T3); at most M_i
    worst          largest right side of T2 over all sets O of at most k tokens: the top-k sum of
                   a_i(o) for cached and a_{t_o}(o) for evicted tokens
    surplus        how far the cache is below the best k by renormalised scores, b_i for cached and
                   b_{t_o} for evicted tokens, float: 0 up to rounding where those decided (T3)

    lost: M_{n-1}, all the decode mass that was not attended. full: whether exactly k tokens were in
    the cache after each of these steps; within: at most k, the last step aside (what is held after
    it is never attended).
    """

    first: int
    k: int
    prompt_len: int
    heads: int
    value: NDArray[np.int64]
    before: NDArray[np.int64]
    opt: NDArray[np.int64]
    same: NDArray[np.bool_]
    returned: NDArray[np.bool_]
    late: NDArray[np.int64]
    late_share: NDArray[np.float64]
    missed: NDArray[np.int64]
    inflated: NDArray[np.float64]
    worst: NDArray[np.int64]
    surplus: NDArray[np.float64]
    lost: int
    full: bool
    within: bool

    @property
    def steps(self) -> int:
        """Number of steps covered."""
        return len(self.value)


def follow(rows: Rows, run: Schedule) -> History:
    """The series of one run; see `follow_all`."""
    return follow_all(rows, [run])[0]


def follow_all(rows: Rows, runs: Sequence[Schedule]) -> list[History]:
    """The series of some runs over the same rows, which are read once: O(n^2) a run.

    Works for any run without re-admission; the checks decide whether a theorem applies to it.
    """
    n = rows.n
    score = np.zeros(n, np.int64)
    followers = [_Follower(run, rows) for run in runs]
    for t, heads in enumerate(rows.each()):
        row = heads.sum(axis=0)
        score[: t + 1] += row
        tops: dict[int, NDArray[np.bool_]] = {}
        for follower in followers:
            k = follower.run.k
            if k not in tops and t >= follower.first:
                tops[k] = _top(score[: t + 1], k)
            follower.step(t, heads, row, score, tops.get(k))
    return [follower.history() for follower in followers]


class _Follower:
    """The state of one run while the rows are read."""

    def __init__(self, run: Schedule, rows: Rows) -> None:
        self.run, self.heads = run, rows.heads
        n = rows.n
        self.first = min(max(run.prompt_len, run.k) - 1, n)
        self.gone = np.asarray(run.evicted_at, dtype=np.int64)
        self.leaving: dict[int, list[int]] = {}
        for token, step in enumerate(self.gone.tolist()):
            self.leaving.setdefault(step, []).append(token)
        self.at_exit = np.zeros(n, np.int64)
        self.lost, self.full, self.within = 0, True, True
        length = n - self.first
        self.sums = np.zeros((6, length), np.int64)  # value, before, opt, late, missed, worst
        self.share, self.inflated, self.surplus = np.zeros((3, length))
        self.extra, self.extra_at_exit = np.zeros(n), np.zeros(n)  # e_i(s), e_{t_o}(o)
        self.flags = np.zeros((2, length), bool)  # same, returned
        self.earlier = np.zeros(n, bool)

    def step(
        self,
        t: int,
        heads: NDArray[np.int64],
        row: NDArray[np.int64],
        score: NDArray[np.int64],
        top: NDArray[np.bool_] | None,
    ) -> None:
        gone = self.gone[: t + 1]
        seen = gone >= t  # G_t: a token that is evicted at step t is still attended
        if t >= self.run.prompt_len:
            attended = int(row[seen].sum())
            if attended < int(row.sum()):
                self.lost += int(row.sum()) - attended
                self.renormalise(heads, seen)
        out = self.leaving.get(t, [])
        self.at_exit[out], self.extra_at_exit[out] = score[out], self.extra[out]
        if top is None:
            return
        i, k, now, kept = t - self.first, self.run.k, score[: t + 1], gone > t
        value, best = int(now[kept].sum()), int(now[top].sum())
        before = int(now[seen].sum()) - (int(now[t]) if seen[t] else 0) if i else value
        missed = np.flatnonzero(top & ~kept)
        after = now[missed] - self.at_exit[missed]
        known = np.where(kept, now, self.at_exit[: t + 1])  # a_i or a_{t_o}
        worst = int(_largest(known, k).sum())
        self.sums[:, i] = value, before, best, after.sum(), self.lost, worst
        shown = known + np.where(kept, self.extra[: t + 1], self.extra_at_exit[: t + 1])
        self.surplus[i] = _largest(shown, k).sum() - shown[kept].sum()
        some = now[missed] > 0
        self.share[i] = (after[some] / now[missed][some]).max(initial=0.0)
        surplus = np.flatnonzero(kept & ~top)
        self.inflated[i] = self.extra[surplus].sum() - self.extra_at_exit[missed].sum()
        self.flags[0, i] = np.array_equal(top, kept)
        self.flags[1, i] = i > 0 and bool(np.any(top[:t] & ~self.earlier[:t]))
        self.earlier[: t + 1] = top
        held = int(kept.sum())
        self.full = self.full and held == min(self.run.k, t + 1)
        self.within = self.within and (held <= self.run.k or t == len(self.gone) - 1)

    def renormalise(self, heads: NDArray[np.int64], seen: NDArray[np.bool_]) -> None:
        """Add what a cached score gains over the full one: A (w/g - 1) for each attended token."""
        for row in heads:
            whole, mass = int(row.sum()), int(row[seen].sum())
            if 0 < mass < whole:
                self.extra[: len(row)][seen] += row[seen] * (whole / mass - 1.0)

    def history(self) -> History:
        value, before, opt, late, missed, worst = self.sums
        same, returned = self.flags
        return History(
            self.first,
            self.run.k,
            self.run.prompt_len,
            self.heads,
            value,
            before,
            opt,
            same,
            returned,
            late,
            self.share,
            missed,
            self.inflated,
            worst,
            self.surplus,
            self.lost,
            self.full,
            self.within,
        )


def _largest(scores: NDArray[Any], k: int) -> NDArray[Any]:
    """The k largest numbers, in no order."""
    return scores if k >= len(scores) else np.partition(scores, len(scores) - k)[len(scores) - k :]


def _top(scores: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    """The k highest, ties to the newer token, as a mask."""
    size = len(scores)
    mask = np.ones(size, bool)
    if k >= size:
        return mask
    edge = np.partition(scores, size - k)[size - k]
    mask = scores > edge
    ties = np.flatnonzero(scores == edge)
    mask[ties[len(ties) - (k - int(mask.sum())) :]] = True
    return mask
