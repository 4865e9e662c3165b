"""What is on the page: policies replayed, the optimum solved, and what each token was worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.attention.fixed_point import UNIT
from h2osim.optima.solving import optimum as solve
from h2osim.replays.budgets import chosen_layers
from h2osim.replays.replaying import replay
from h2osim.replays.several import check_alike, traces_of
from h2osim.replays.unit_budgets import Budgets
from h2osim.report.figures.prices import spans
from h2osim.report.page.losses import lost_mass
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace

if TYPE_CHECKING:
    import xarray as xr

#: The schedule beside those of the policies.
OPTIMUM = "offline optimum"
#: Spans into which the steps of charts over time are cut.
SPANS = 64
#: Tokens of schedules that a page has room for; each takes about 3 bytes of it.
ROOM = 1_400_000


@dataclass(frozen=True)
class Raster:
    """Which tokens of one trace were kept when, and what those that were not were worth.

    gone: [budgets, schedules, units, n], the step after which a token is never attended again, n if
    it stays. lost: the same shape, the attention mass it would have received since (rows of the
    unit's heads added). received: [units, n], what it received from all decode steps, kept or not.
    """

    gone: np.ndarray
    lost: np.ndarray
    received: np.ndarray


@dataclass(frozen=True)
class Contents:
    """All that a page shows.

    results: a replay with every step's recall and, where the traces have values, output error.
    best: the offline optimum with its schedules and prices. schedules: those in the rasters, the
    optimum last. budgets and units: which of the results' are in the rasters, by their places.
    """

    traces: list[Trace]
    results: xr.Dataset
    best: xr.Dataset
    schedules: list[str]
    budgets: list[int]
    units: list[tuple[int, int]]
    rasters: list[Raster] = field(default_factory=list)

    @property
    def measures(self) -> list[str]:
        """What was measured: recall, and the output error where the traces have values."""
        return [name for name in ("recall", "output_error") if name in self.results]

    def of_trace(self, i: int) -> tuple[xr.Dataset, xr.Dataset]:
        """The replay and the optimum of one trace."""
        if "trace" not in self.results.dims:
            return self.results, self.best
        return self.results.isel(trace=i), self.best.isel(trace=i)

    def steps(self, i: int) -> slice:
        """The decode steps of one trace among those of the results."""
        first = int(self.results["step"].values[0])
        trace, one = self.traces[i], self.of_trace(i)[0]
        start = int(one["prompt_len"] if "prompt_len" in one.coords else one.attrs["prompt_len"])
        return slice(start - first, trace.n - first)


def gather(
    trace: Trace | Sequence[Trace],
    policies: Sequence[str],
    budgets: Budgets,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Contents:
    """Replay policies, solve the optimum, and weigh every eviction.

    The arguments are those of :func:`~h2osim.replays.replaying.replay`; all budgets are named.
    """
    if isinstance(budgets, str):
        raise UserError("a report: all budgets are n² evictions; name a few budgets")
    traces = traces_of(trace)
    for one in traces:
        if one.n < 2:
            raise UserError(f"report: trace {one.name}: found 1 token, expected 2 or more")
    given = traces if len(traces) > 1 else traces[0]
    how: dict[str, Any] = {"prompt_len": prompt_len, "share": share, "layers": layers}
    check_alike(traces, share, layers)
    values = all(unit.has_values for one in traces for unit in one.units("layer"))
    results = replay(
        given, policies, budgets, engine=engine, step_recall=True, evictions=True,
        measure="error" if values else "recall", step_errors=values,
        progress=_part(progress, 0.0, 0.6), **how,
    )  # fmt: skip
    best = solve(given, budgets, schedules=True, progress=_part(progress, 0.6, 0.9), **how)
    # A policy that attends again to what it evicted has no step after which a token is gone.
    shown = [str(x) for x, again in zip(results["policy"].values, results["readmits"].values,
                                        strict=True) if not again]  # fmt: skip
    units = [(layer, unit.index) for layer in chosen_layers(traces[0], layers)
             for unit in traces[0].units(share) if unit.layer == layer]  # fmt: skip
    places, units = _with_room(traces, results.sizes["budget"], len(shown) + 1, units)
    found = Contents(traces, results, best, [*shown, OPTIMUM], places, units)
    for i in range(len(traces)):
        part = _part(progress, 0.9 + 0.1 * i / len(traces), 0.9 + 0.1 * (i + 1) / len(traces))
        found.rasters.append(_raster(found, i, share, part))
    return found


def _with_room(
    traces: Sequence[Trace], budgets: int, schedules: int, units: list[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Which budgets and units have rasters: as many budgets as the page has room for, the middle
    one first; and where even one is too much, units evenly spread.
    """
    each = schedules * sum(one.n for one in traces)
    order = sorted(range(budgets), key=lambda b: abs(b - budgets // 2))
    places = sorted(order[: max(1, ROOM // (each * len(units)))])
    most = max(1, ROOM // each)
    at = np.unique(np.linspace(0, len(units) - 1, min(most, len(units))).round().astype(int))
    return places, [units[i] for i in at]


def _raster(found: Contents, i: int, share: str, progress: Progress | None) -> Raster:
    trace, (one, best) = found.traces[i], found.of_trace(i)
    steps = found.steps(i)
    p = int(one["step"].values[steps][0]) if trace.n > 1 else 1
    shape = (len(found.budgets), len(found.schedules), len(found.units), trace.n)
    gone, lost = np.zeros(shape, np.int32), np.zeros(shape, np.int64)
    received = np.zeros((len(found.units), trace.n), np.int64)
    online = one["evicted_at"].sel(policy=found.schedules[:-1])
    mine = online.transpose("layer", "unit", "budget", "policy", "token").values[..., : trace.n]
    bound = best["evicted_at"].transpose("layer", "unit", "budget", "token").values[..., : trace.n]
    layers = one["layer"].values.tolist()
    known = {(unit.layer, unit.index): unit for unit in trace.units(share)}
    for u, (layer, index) in enumerate(found.units):
        at = layers.index(layer), index
        here = np.concatenate([mine[at], bound[at][:, None]], axis=1)[found.budgets]
        gone[:, :, u] = here
        flat = here.reshape(-1, trace.n)
        nothing_kept = np.full((1, trace.n), -1, np.int32)
        weighed = lost_mass(known[layer, index], np.concatenate([flat, nothing_kept]), p)
        lost[:, :, u], received[u] = weighed[:-1].reshape(here.shape), weighed[-1]
        if progress:
            progress(u + 1, len(found.units), "weighing evictions")
    return Raster(gone, lost * UNIT, received * UNIT)


def over_time(found: Contents, i: int, measure: str) -> np.ndarray:
    """A measure of each span of decode steps, the mean over units: [policies, budgets, spans]."""
    name = "step_recall" if measure == "recall" else f"{measure}_step"
    values = found.of_trace(i)[0][name].isel(step=found.steps(i))
    return spans(values.mean(["layer", "unit"]).transpose("policy", "budget", "step").values, SPANS)


def prices(found: Contents, i: int) -> np.ndarray:
    """The price of a slot in each span of decode steps: [budgets, layers, spans]."""
    trace, (one, best) = found.traces[i], found.of_trace(i)
    start = int(one["step"].values[found.steps(i)][0]) if trace.n > 1 else 0
    price = best["price"].mean("unit").transpose("budget", "layer", "step").values
    return spans(price[..., start : trace.n], SPANS)


def _part(progress: Progress | None, low: float, high: float) -> Progress | None:
    """Progress of one of several parts, as a share of the whole."""
    if progress is None:
        return None

    def update(done: float, total: float, what: str) -> None:
        if total:
            progress(low + (high - low) * done / total, 1.0, what)

    return update
