"""Replay a trace under eviction policies: who was evicted when, and how much attention was kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.engines import naive
from h2osim.engines.job import Job, Outcome
from h2osim.errors import UserError
from h2osim.policy import Configured, Policy, parse, resolve_window
from h2osim.trace import Trace

if TYPE_CHECKING:
    import xarray

Key = tuple[int, int, int, int]  # policy, layer, unit, budget
ENGINES = ("auto", "naive", "numba")
#: Called now and then with rows replayed so far, rows in all, and what is going on.
Progress = Callable[[float, float, str], None]


def replay(
    trace: Trace,
    policies: str | Policy | Configured | Sequence[str | Policy | Configured],
    budgets: float | Sequence[float],
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layers: Iterable[int] | None = None,
    step_recall: bool = False,
    evictions: bool = True,
    progress: Progress | None = None,
) -> xarray.Dataset:
    """Replay recorded attention under every policy at every budget.

    In step t the cache S_{t-1} and the new token are attended, the policy updates its scores, and
    tokens are evicted until k are left. The prompt (steps before ``prompt_len``) is dense; at its
    end the cache drops to k at once. With the attended set G_t = S_{t-1} + {t},

        recall = sum_t sum_{j in G_t} A[t, j]  /  sum_t sum_j A[t, j]      over decode steps t >= p,

    in exact integer arithmetic with one division at the end. Rows of the unit's heads are added.
    (A stored row sums to 1 only up to float16 rounding; where rows sum equally this is the mean of
    the steps' recalls, and it is the quantity that the offline optimum maximises.)

    Parameters
    ----------
    trace
        A recorded or made :class:`~h2osim.trace.Trace`.
    policies
        Policies as text (``h2o:recent=32,scores=full``), or policy objects.
    budgets
        Whole numbers are tokens (64), numbers in (0, 1] fractions of n (0.05; ``1.0`` is all of n),
        rounded down but never below 1.
    prompt_len
        First decode step, 1 … n-1. Default: the trace's own if it was generated, else 1.
    share
        Which heads decide together: ``group`` (a KV group), ``head`` or ``layer``.
    engine
        ``naive`` (the definition, plain Python), ``numba``, or ``auto``; all agree exactly.
    layers
        Model layers to replay; default all.
    step_recall, evictions
        Whether to return every step's recall and every token's eviction.
    progress
        Called with rows done, rows in all and a word.

    Returns
    -------
    xarray.Dataset
        Dimensions policy (as written), layer, unit, budget (tokens, ``fraction`` of n beside it):

        * ``recall``: attention-mass recall, 0 … 1 (NaN where nothing is decoded, n = 1);
        * ``held``: most keys that a decode step attended besides its own;
        * ``step_recall[..., step]``: recall of each decode step, for steps ``prompt_len`` … n-1;
        * ``evicted_at[..., token]``: the step after which a token is never attended again, n if it
          stays.

    Raises
    ------
    UserError
        Unknown policy, parameter, engine, layer or share; a budget or prompt length out of range;
        data that a policy needs and the trace lacks; a trace with broken rows.
    """
    import xarray

    if isinstance(policies, (str, Policy, Configured)):
        policies = [policies]
    configured = [parse(p) for p in policies]
    if not configured:
        raise UserError("no policy given; expected at least one (`h2osim policies` lists them)")
    names = [c.text for c in configured]
    if len(set(names)) < len(names):
        raise UserError(f"policies: {', '.join(names)}: each may be given once")
    tokens = [budget_tokens(b, trace.n) for b in np.atleast_1d(np.asarray(budgets, object))]
    tokens = list(dict.fromkeys(tokens))
    if not tokens:
        raise UserError("no budget given; expected tokens (64) or fractions of n (0.05)")
    p = decode_start(trace, prompt_len)
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; expected {', '.join(ENGINES)}")
    chosen = chosen_layers(trace, layers)
    units = [u for u in trace.units(share) if u.layer in chosen]
    for layer in chosen:
        trace.check_layer(layer)

    per_layer = len(units) // len(chosen)
    shape = (len(configured), len(chosen), per_layer, len(tokens))
    recall = np.full(shape, np.nan)
    held = np.zeros(shape, np.int32)
    gone = np.zeros((*shape, trace.n), np.int32) if evictions else None
    steps = np.zeros((*shape, trace.n - p)) if step_recall else None

    jobs = {
        (i, *divmod(u, per_layer), b): Job(unit, c, k, p)
        for u, unit in enumerate(units)
        for i, c in enumerate(configured)
        for b, k in enumerate(tokens)
    }
    for key, outcome, masses in _run(jobs, engine, progress):
        if len(masses):
            recall[key] = int(outcome.kept.sum()) / int(masses.sum())
        held[key] = outcome.held
        if gone is not None:
            gone[key] = outcome.evicted_at
        if steps is not None:
            steps[key] = outcome.kept / masses

    dims = ("policy", "layer", "unit", "budget")
    found: dict[str, Any] = {"recall": (dims, recall), "held": (dims, held)}
    if steps is not None:
        found["step_recall"] = ((*dims, "step"), steps)
    if gone is not None:
        found["evicted_at"] = ((*dims, "token"), gone)
    coords: dict[str, Any] = {
        "policy": names,
        "layer": list(chosen),
        "unit": np.arange(per_layer),
        "budget": tokens,
        "fraction": ("budget", np.array(tokens) / trace.n),
    }
    if steps is not None:
        coords["step"] = np.arange(p, trace.n)
    facts = {"trace": trace.name, "n": trace.n, "prompt_len": p, "share": share}
    return xarray.Dataset(found, coords, facts)


def budget_tokens(budget: float, n: int) -> int:
    """A budget in tokens: whole numbers are tokens, others a fraction of n (never below 1)."""
    if isinstance(budget, (bool, np.bool_)) or not isinstance(budget, (int, float, np.number)):
        raise UserError(f"budget {budget!r}: expected tokens (64) or a fraction of n (0.05)")
    if isinstance(budget, (int, np.integer)):
        if 1 <= budget <= n:
            return int(budget)
        raise UserError(f"budget {budget}: expected 1 to {n} tokens for a trace of {n} tokens")
    if 0 < budget <= 1:
        return max(1, resolve_window(float(budget), n) if budget < 1 else n)
    raise UserError(
        f"budget {budget:g}: a fraction of n lies above 0 and up to 1.0; write tokens whole"
    )


def decode_start(trace: Trace, prompt_len: int | None) -> int:
    """The first decode step: as asked, else the trace's own, else 1."""
    if prompt_len is None:
        return trace.prompt_len or 1
    top = max(1, trace.n - 1)
    if isinstance(prompt_len, bool) or not 1 <= prompt_len <= top:
        raise UserError(
            f"prompt length {prompt_len}: expected 1 to {top}, so that a token of the trace's "
            f"{trace.n} is left to decode"
        )
    return int(prompt_len)


def chosen_layers(trace: Trace, layers: Iterable[int] | None) -> list[int]:
    """The layers to work on, in the trace's order."""
    wanted = list(trace.layers if layers is None else layers)
    missing = [layer for layer in wanted if layer not in trace.layers]
    if missing or not wanted:
        have = ", ".join(map(str, trace.layers))
        raise UserError(f"layer {missing[0] if missing else '(none)'}: {trace.name} has {have}")
    return [layer for layer in trace.layers if layer in wanted]


def _run(
    jobs: dict[Key, Job], engine: str, progress: Progress | None
) -> Iterator[tuple[Key, Outcome, np.ndarray]]:
    """Run all jobs on all cores; yields each outcome with the masses of the decode rows."""
    by_unit: dict[Any, list[Key]] = {}
    for key in jobs:
        by_unit.setdefault(key[1:3], []).append(key)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = workers or 1
    # A unit's jobs share one reading of its rows, unless cores would then stand idle.
    pieces = -(-workers // len(by_unit))
    tasks = [keys[i::pieces] for keys in by_unit.values() for i in range(pieces) if keys[i::pieces]]
    total = sum(job.unit.n for job in jobs.values())
    done, lock = 0, threading.Lock()

    def tick(rows: int) -> None:
        nonlocal done
        if progress:
            with lock:
                done += rows
                progress(done, total, "replaying")

    work = _naive if engine == "naive" else _numba
    pool = ThreadPoolExecutor(min(workers, len(tasks)))
    try:
        futures = {pool.submit(work, [jobs[k] for k in keys], tick): keys for keys in tasks}
        for future in as_completed(futures):
            outcomes, masses = future.result()
            for key, outcome in zip(futures[future], outcomes, strict=True):
                yield key, outcome, masses
    finally:
        pool.shutdown(cancel_futures=True)


def _naive(jobs: list[Job], tick: Callable[[int], None]) -> tuple[list[Outcome], np.ndarray]:
    outcomes = []
    for job in jobs:
        outcomes.append(naive.run(job))
        tick(job.unit.n)
    return outcomes, jobs[0].unit.row_masses()[jobs[0].prompt_len :]


def _numba(jobs: list[Job], tick: Callable[[int], None]) -> tuple[list[Outcome], np.ndarray]:
    from h2osim.engines.direct import DirectRun

    runs = [DirectRun(job) for job in jobs]
    for block in jobs[0].unit.blocks(lag=max(job.configured.lag() for job in jobs)):
        for run in runs:
            run.feed(block)
            tick(block.stop - block.start)
    return [run.outcome() for run in runs], runs[0].masses[jobs[0].prompt_len :]
