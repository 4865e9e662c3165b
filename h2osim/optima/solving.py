"""The offline optimum: how much attention any schedule could have kept, with a proof.

`optimum` is the entry. Three ways to the same number (docs/optimum.md derives them):

* `h2osim.optima.exact` solves every budget from 0 up in one run, in O(n²) memory;
* `h2osim.optima.bracket` closes in on one budget from both sides, reading the rows a few times,
  in memory linear in n; asked for no gap it ends at the exact optimum;
* `h2osim.optima.certificate` saves a result so that `h2osim.certify` can check it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import UNIT
from h2osim.engines.errors import schedule_errors
from h2osim.engines.results import Bracket
from h2osim.optima.bracket import CLOSING, narrow
from h2osim.optima.exact import optimal_curve, running_cost
from h2osim.optima.weighing import weighed
from h2osim.replays import results
from h2osim.replays.facts import run_facts, token_facts
from h2osim.replays.found import quotient
from h2osim.replays.unit_budgets import Budgets, columns_of
from h2osim.support.bars import with_bar
from h2osim.support.errors import UserError
from h2osim.support.given import whole_numbers
from h2osim.support.machine import cores
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

if TYPE_CHECKING:
    import xarray

__all__ = ["optimum", "optimum_curves"]

METHODS = ("auto", "exact", "bracket")
EXACT_N = 8192  # above, C would take more than 270 MB a unit: `auto` brackets, and `exact` closes
FEW = 10  # brackets up to so many budgets, whatever would be faster
READINGS = 300


@with_bar
def optimum(
    trace: Trace | Sequence[Trace],
    budgets: Budgets,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    method: str = "auto",
    gap: float = 1e-4,
    engine: str = "numba",
    layers: Iterable[int] | None = None,
    weights: str = "mass",
    schedules: bool | None = None,
    output_error: bool = False,
    progress: Callable[[float, float, str], None] | None = None,
) -> xarray.Dataset:
    """The most attention mass that any eviction schedule could keep, unit by unit.

    Over all schedules with |S_t| <= k and S_t a subset of S_{t-1} + {t} (the future known, nothing
    re-admitted), the largest

        recall = sum_t sum_{j in S_{t-1} + {t}} A[t, j] / sum_t sum_j A[t, j],   t = prompt_len ...

    It is a linear program with prices λ_t >= 0, one per step, as its dual
    (proofs/13-dual-certificate.md): for any λ,

        D(λ) = k sum_t λ_t + sum_j max_e sum_{t = max(j+1, p) ... e} (A[t, j] - λ_t) + sum_t A[t, t]

    is an upper bound, and equal to the optimum for the best λ. All numbers are integers (multiples
    of 2^-24) until the final division.

    Parameters
    ----------
    trace
        A :class:`~h2osim.trace.Trace`, or several of the same layers and heads.
    budgets
        Tokens (64), fractions of n (0.05), ``"all"`` for 1 … n, or budgets by unit, as in
        :func:`h2osim.replay`. By unit, the sums of ``kept`` and ``bound`` over the units are the
        optimum of all under that split.
    prompt_len, share, layers
        As in :func:`h2osim.replay`.
    method
        ``exact``: gap 0, by closing a bracket for each budget or by a run over all budgets up to
        the largest, whichever should be faster. ``bracket``: until
        upper - lower <= ``gap`` * upper; memory linear in n.
        ``auto``: exact for ``"all"`` and for n up to 8192, else bracket.
    gap
        Relative gap at which a bracket is good enough.
    engine
        ``numba``, or ``cuda``: a bracket for all units at once on the GPUs, by price steps alone.
        It needs recorded scores, and stops after 448 readings though the gap may be wider (1e-3 is
        what it is made for; the bounds hold whatever the gap).
    weights
        ``mass``, or ``value``: A[t, j] times |v_j - o_t| in the place of A[t, j], what a key is
        worth to the output (:mod:`h2osim.optima.weighing`); numba only, and the trace needs values.
        Masses and recalls are then those of the weights. Takes the room of the scores in memory.
    schedules
        Whether to return schedules and prices. Default: unless every budget is asked for (they are
        n² numbers each).
    output_error
        Whether to measure the output error of the schedules found; the trace needs values.
    progress
        Called with units done, units in all and a word.

    Returns
    -------
    xarray.Dataset
        Dimensions layer, unit, budget (tokens; ``fraction`` beside it); of several traces ``trace``
        before them, as in :func:`h2osim.replay`:

        * ``recall``, ``lower``, ``upper``: the recall of the schedule found (= ``lower``) and the
          proved bound on every schedule; equal for the exact method. NaN where nothing is decoded;
        * ``kept``, ``bound`` int64: the same in fixed point, and ``mass[layer, unit]``: the whole;
        * ``evicted_at[..., token]`` int32: the step after which a token leaves, n if never;
        * ``price[..., step]``: λ_t in units of attention mass: what one more cache slot in step t
          would be worth; ``price_fixed`` int64: the same in fixed point;
        * ``output_error``, ``output_error_abs``: as in :func:`h2osim.replay`, of the schedule;
        * ``slots``: as there, where budgets differ by unit.

    Raises
    ------
    UserError
        A budget, prompt length, layer, share, method, weights or gap out of range; no values.
    """

    from h2osim.replays.budgets import chosen_layers, decode_start
    from h2osim.replays.measures import variables_of
    from h2osim.replays.several import over_traces, traces_of

    layers = whole_numbers("layers", layers)
    if method not in METHODS:
        raise UserError(f"unknown method {method!r}; expected {', '.join(METHODS)}")
    if engine not in ("numba", "cuda"):
        raise UserError(f"unknown engine {engine!r}; expected numba or cuda")
    if engine == "cuda" and (method == "exact" or isinstance(budgets, str)):
        raise UserError("engine=cuda brackets listed budgets; the exact optimum is engine=numba's")
    traces = traces_of(trace)
    for one in traces:
        if engine == "cuda" and "scores" not in one.stores:
            raise UserError(
                f"engine=cuda: trace {one.name} stores no scores; engine=numba makes rows"
            )
    if engine == "cuda" and weights != "mass":
        raise UserError("engine=cuda brackets attention mass; weights=value is engine=numba's")
    if not 0 <= gap < 1:
        raise UserError(f"gap {gap:g}: expected 0 up to, and not, 1")
    names = variables_of("error", traces) if output_error else ()
    if not isinstance(trace, Trace):
        return over_traces(
            lambda one, part: optimum(
                one, budgets, prompt_len=prompt_len, share=share, method=method, gap=gap,
                engine=engine, layers=layers, weights=weights, schedules=schedules,
                output_error=output_error, progress=part,
            ),
            traces, budgets, prompt_len=prompt_len, share=share, layers=layers, progress=progress,
        )  # fmt: skip
    p = decode_start(trace, prompt_len)
    chosen = chosen_layers(trace, layers)
    plain = [u for u in trace.units(share) if u.layer in chosen]
    columns = columns_of(budgets, [trace], [p], [plain], share)
    (tokens,) = columns.tokens
    if engine == "cuda" and columns.by_unit:
        raise UserError(
            "engine=cuda brackets all units at one budget; budgets by unit are engine=numba's"
        )
    if schedules is None:
        schedules = not isinstance(budgets, str)
    if engine == "cuda":
        method = "bracket"
    if method == "auto":
        every = isinstance(budgets, str)
        method = "exact" if every or trace.n <= EXACT_N else "bracket"
    units = [u for u in weighed(trace, share, weights) if u.layer in chosen]
    if names and not schedules:
        raise UserError("output error: it is that of a schedule; ask for schedules, or few budgets")
    for layer in chosen:
        trace.check_layer(layer)

    per_layer = len(units) // len(chosen)
    shape = (len(chosen), per_layer, len(columns.labels))
    kept, bound = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    mass = np.zeros(shape[:2], np.int64)
    gone = np.zeros((*shape, trace.n), np.int32) if schedules else None
    price = np.zeros((*shape, trace.n), np.int64) if schedules else None
    errors = {name: np.zeros(shape) for name in names}

    def work(at: int) -> list[Bracket]:
        unit, mine = units[at], tokens[at].tolist()
        return _solve(unit, mine, p, 0.0 if method == "exact" else gap, method, bool(schedules))

    def measured(at: int, one: Bracket) -> Mapping[str, Any]:
        assert one.evicted_at is not None
        return schedule_errors(plain[at], one.evicted_at, p, names).of

    solved = (
        _on_gpu(units, tokens[0].tolist(), p, gap)
        if engine == "cuda"
        else _each(range(len(units)), work)
    )
    for done, (at, found) in enumerate(solved):
        where = divmod(at, per_layer)
        for b, one in enumerate(found):
            kept[(*where, b)], bound[(*where, b)], mass[where] = one.lower, one.upper, one.whole
            if gone is not None and price is not None:
                gone[(*where, b)] = one.evicted_at
                price[(*where, b)] = one.price
            for name, value in measured(at, one).items() if names else ():
                errors[name][(*where, b)] = value
        if progress:
            progress(done + 1, len(units), "solving")

    lower = quotient(kept, mass[:, :, None])
    data: dict[str, Any] = {
        "recall": lower,
        "lower": lower.copy(),
        "upper": quotient(bound, mass[:, :, None]),
        "kept": kept,
        "bound": bound,
        "mass": mass,
        "evicted_at": gone,
        "price": None if price is None else price * UNIT,
        "price_fixed": price,
        "slots": columns.slots(0, len(chosen)),
        **errors,
    }
    coords = {
        "layer": chosen,
        "unit": np.arange(per_layer),
        **columns.coordinates(),
        "fraction": columns.labels / trace.n,
        "step": np.arange(trace.n),
        **token_facts(trace),
    }
    facts = run_facts(trace, p, share) | {"method": method, "weights": weights}
    return results.assemble("optimum", data, coords, facts)


def optimum_curves(
    units: Sequence[Unit],
    prompt_len: int,
    *,
    progress: Callable[[float, float, str], None] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """OPT(k) of several units: kept int64 [units, n+1] (budgets 0 … n), and their mass [units]."""
    kept = np.zeros((len(units), units[0].n + 1), np.int64)
    mass = np.zeros(len(units), np.int64)
    work = _each(range(len(units)), lambda at: optimal_curve(units[at], prompt_len))
    for done, (i, found) in enumerate(work):
        kept[i], mass[i] = found.kept, found.whole
        if progress:
            progress(done + 1, len(units), "solving")
    return kept, mass


def _solve(
    unit: Unit, tokens: Sequence[int], p: int, gap: float, method: str, schedules: bool
) -> list[Bracket]:
    if method == "bracket" or one_by_one(unit.n, tokens):
        found = [narrow(unit, k, p, gap, READINGS) for k in tokens]
        if method == "bracket" or all(one.lower == one.upper for one in found):
            return found
    solved = optimal_curve(unit, p, wanted=tokens if schedules else (), most=max(tokens))
    return [
        Bracket(
            int(solved.kept[k]), int(solved.kept[k]), solved.whole,
            solved.evicted_at.get(k), solved.price.get(k), 1,
        )
        for k in tokens
    ]  # fmt: skip


def one_by_one(n: int, budgets: Sequence[int]) -> bool:
    """Whether to close a bracket for each of the budgets rather than solve them in one run.

    Because that should be faster, or because the run would need much memory for a few of them.
    """
    if n > EXACT_N and len(budgets) <= FEW:
        return True
    return len(budgets) * CLOSING * n * n < running_cost(n, max(budgets))


def _on_gpu(
    units: Sequence[Unit], tokens: Sequence[int], p: int, gap: float
) -> Iterable[tuple[int, list[Bracket]]]:
    """Brackets of all units, budget by budget; (index, result) of each."""
    from h2osim.cuda.bracket import SCHEDULES, brackets

    found = [brackets(units, k, p, gap, SCHEDULES[-1]) for k in tokens]
    yield from enumerate(map(list, zip(*found, strict=True)))


def _each(places: Sequence[int], work: Callable[[int], Any]) -> Iterable[tuple[int, Any]]:
    """Work on all units on all cores; yields (index, result) as they come."""
    pool = ThreadPoolExecutor(min(cores(), len(places)))
    try:
        waiting = {pool.submit(work, i): i for i in places}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)
