"""What each unit loses at every number of slots: the curves that an allocation splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from h2osim.policies.declaration import Configured
from h2osim.replays.budgets import chosen_layers, decode_start
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: What an allocation may minimise: the measure that a replay takes for it, and its variable.
BY = {
    "recall": ("recall", "recall"),
    "log-recall": ("recall", "recall"),
    "value": ("recall", "recall"),
    "error": ("error", "output_error"),
    "error-abs": ("error", "output_error_abs"),
    "attention-error": ("attention-error", "attention_error"),
    "residual-error": ("residual-error", "residual_error"),
}
#: Those that are masses kept, in integers; of the offline optimum there is no other.
MASSES = ("recall", "log-recall", "value")
#: Losses are rounded to multiples of their largest times this.
_PRECISION = 2.0**-40


@dataclass(frozen=True, eq=False)
class Curves:
    """Curves of one policy on some traces, on a grid of 1 … m slots (m the shortest trace's n).

    A trace of n tokens takes k slots of the grid for floor(k n / m) tokens. loss float64 [traces,
    units, m + 1], column 0 not used. kept int64, alike, and mass int64 [traces, units] where what
    is lost is mass.
    """

    loss: Floats
    kept: Ints | None = None
    mass: Ints | None = None

    def gains(self, traces: Sequence[int]) -> Ints:
        """int64 [units, m + 1]: what :func:`~h2osim.optima.splitting.best_split` maximises.

        The mass kept on these traces together, or minus the mean loss in steps of a 2^-40th of the
        largest, so that sums are exact and ties the same on every machine.
        """
        if self.kept is not None:
            return self.kept[list(traces)].sum(axis=0)
        mean = self.loss[list(traces)].mean(axis=0)
        scale = max(float(np.abs(mean).max()), 1e-300) * _PRECISION
        return np.rint(-mean / scale).astype(np.int64)

    def bound(self, trace: int, gain: int) -> float:
        """The loss of a trace's units that an upper bound on its gains leaves."""
        if self.kept is not None and self.mass is not None:
            whole = int(self.mass[trace].sum())
            return 1 - gain / whole if whole else 0.0
        scale = max(float(np.abs(self.loss[trace]).max()), 1e-300) * _PRECISION
        return -gain * scale / self.loss.shape[1]

    def at(self, trace: int, slots: Ints) -> Floats:
        """Losses of a trace's units at so many slots of the grid."""
        return self.loss[trace, np.arange(len(slots)), slots]

    def overall(self, trace: int, slots: Ints) -> float:
        """The mean of these; of masses the share that all units together lose."""
        if self.kept is None or self.mass is None:
            return float(self.at(trace, slots).mean())
        kept = int(self.kept[trace, np.arange(len(slots)), slots].sum())
        whole = int(self.mass[trace].sum())
        return 1 - kept / whole if whole else 0.0


def grid_of(m: int, points: int | None) -> list[int]:
    """About so many numbers of slots in 1 … m, denser where there are few; None: all."""
    if points is None or points >= m:
        return list(range(1, m + 1))
    steps = np.geomspace(1, m, points)
    return np.unique(np.maximum(np.rint(steps), np.arange(1, points + 1)).astype(int)).tolist()


def units_of(trace: Trace, share: str, layers: Iterable[int] | None) -> list[Unit]:
    """The units whose slots are split."""
    chosen = chosen_layers(trace, layers)
    return [unit for unit in trace.units(share) if unit.layer in chosen]


def loss_curves(
    traces: Sequence[Trace],
    policy: Configured | None,
    by: str,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    layers: Sequence[int] | None = None,
    points: int | None = 64,
    engine: str = "auto",
    progress: Progress | None = None,
) -> Curves:
    """Curves of a policy, or (None) of the offline optimum, by one of :data:`BY`.

    A policy whose budgets one pass gives is replayed at every number of slots, any other at about
    ``points`` of them (None: all), between which curves are straight.
    """
    m = min(trace.n for trace in traces)
    found = []
    for i, trace in enumerate(traces):

        def part(done: float, total: float, word: str, i: int = i) -> None:
            if progress and total:
                progress(i + done / total, len(traces), f"{word}, {i + 1} of {len(traces)} traces")

        units = units_of(trace, share, layers)
        p = decode_start(trace, prompt_len)
        tokens = np.arange(m + 1) * trace.n // m
        if policy is None:
            found.append(_optimum(trace, share, by, units, p, tokens, part))
        else:
            one = _replayed(trace, policy, by, units, p, tokens, points, share, engine, part)
            found.append(one)
    loss, kept, mass = zip(*found, strict=True)
    if kept[0] is None or by == "log-recall":
        return Curves(np.stack(loss))
    return Curves(np.stack(loss), np.stack(kept), np.stack(mass))


_Found = tuple[Floats, Ints | None, Ints | None]


def _optimum(
    trace: Trace, share: str, by: str, units: Sequence[Unit], p: int, tokens: Ints, part: Progress
) -> _Found:
    from h2osim.optima.solving import optimum_curves
    from h2osim.optima.weighing import weighed

    if by not in MASSES:
        raise UserError(
            f"--by {by}: the offline optimum keeps mass, expected one of {', '.join(MASSES)}; or "
            "name a policy"
        )
    layers = {unit.layer for unit in units}
    weights = "value" if by == "value" else "mass"
    kept, mass = optimum_curves(
        [unit for unit in weighed(trace, share, weights) if unit.layer in layers], p, progress=part
    )
    return _lost(kept[:, tokens], mass, by)


def _replayed(
    trace: Trace,
    policy: Configured,
    by: str,
    units: Sequence[Unit],
    p: int,
    tokens: Ints,
    points: int | None,
    share: str,
    engine: str,
    part: Progress,
) -> _Found:
    from h2osim.replays.replaying import replay

    m = len(tokens) - 1
    measure, variable = BY[by]
    every = by != "value" and all(policy.inclusive(len(unit.heads)) for unit in units)
    grid = grid_of(m, None if every else points)
    layers = sorted({unit.layer for unit in units})
    run = replay(
        trace, policy, [int(tokens[k]) for k in grid], prompt_len=p, share=share, engine=engine,
        layers=layers, measure=measure, evictions=by == "value", progress=part,
    )  # fmt: skip
    slots = np.arange(m + 1)

    def curve(values: NDArray) -> NDArray:
        flat = values.reshape(len(units), len(grid))
        return np.stack([np.interp(slots, grid, row) for row in flat])

    if by == "value":
        gone = run["evicted_at"].values[0].reshape(len(units), len(grid), trace.n)
        worth, mass = schedules_keep(trace, share, "value", p, gone, layers)
        return _lost(np.floor(curve(worth)).astype(np.int64), mass, by)
    if by in MASSES:
        kept = np.floor(curve(run["kept"].values[0])).astype(np.int64)
        return _lost(kept, run["mass"].values.ravel(), by)
    # A head without any output has no relative error: it loses nothing.
    return curve(np.nan_to_num(run[variable].values[0])), None, None


def _lost(kept: Ints, mass: Ints, by: str) -> _Found:
    """What is lost of the mass, and what is kept; mass 0 loses nothing."""
    share = np.divide(kept, mass[:, None], out=np.ones(kept.shape), where=mass[:, None] > 0)
    loss = -np.log(np.maximum(share, 2.0**-24)) if by == "log-recall" else 1 - share
    return loss, kept, mass


def schedules_keep(
    trace: Trace, share: str, weights: str, p: int, gone: NDArray[np.int32],
    layers: Sequence[int] | None = None,
) -> tuple[Ints, Ints]:  # fmt: skip
    """Mass, or value-weighted mass, that schedules keep of the rows from p on, in integers.

    gone: the step after which each token is never attended again, int32 [units, schedules, n], the
    units of the chosen layers. Returns int64 [units, schedules], and all of it, int64 [units].
    """
    from h2osim.optima.weighing import weighed

    chosen = chosen_layers(trace, layers)
    rows = [unit for unit in weighed(trace, share, weights) if unit.layer in chosen]
    n = trace.n
    kept, mass = np.zeros(gone.shape[:2], np.int64), np.zeros(len(rows), np.int64)
    for u, unit in enumerate(rows):
        for t in range(p, n):
            row = unit.row(t)
            mass[u] += row.sum()
            kept[u] += np.where(gone[u, :, : t + 1] >= t, row, 0).sum(axis=1)
    return kept, mass
