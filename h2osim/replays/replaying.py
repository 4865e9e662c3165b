"""Replay a trace under eviction policies: who was evicted when, and how much attention was kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from h2osim.engines import naive
from h2osim.engines.request import Job
from h2osim.engines.results import Curve, Outcome
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.parameters import resolve_window
from h2osim.policies.text import parse
from h2osim.support.errors import UserError
from h2osim.support.machine import cores
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

if TYPE_CHECKING:
    import xarray

Budgets = float | Sequence[float] | Literal["all"]
Result = tuple["Part", Outcome | Curve, np.ndarray | int]
ENGINES = ("auto", "naive", "numba", "cuda")
WORTH_A_GPU = 5.0
"""Seconds of work on the CPU from which on starting a GPU and compiling kernels pays."""


def replay(
    trace: Trace,
    policies: str | Policy | Configured | Sequence[str | Policy | Configured],
    budgets: Budgets,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layers: Iterable[int] | None = None,
    step_recall: bool = False,
    evictions: bool | None = None,
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
        rounded down but never below 1. ``"all"`` is every budget 1 … n: one pass gives them all
        where the policy is inclusive (theorem T7), else they run one by one. A list of budgets goes
        through the same pass where that is cheaper; the results are the same.
    prompt_len
        First decode step, 1 … n-1. Default: the trace's own if it was generated, else 1.
    share
        Which heads decide together: ``group`` (a KV group), ``head`` or ``layer``.
    engine
        ``naive`` (the definition, plain Python), ``numba``, ``cuda`` (every GPU there is; a policy
        that cannot be said exactly in CUDA runs under numba), or ``auto``: cuda where a GPU is
        present and the work would keep the CPU busy for some seconds, else numba. All agree
        exactly.
    layers
        Model layers to replay; default all.
    step_recall, evictions
        Whether to return every step's recall (not from one pass over all budgets) and every
        token's eviction (default: unless all budgets are asked for, which takes n * n numbers).
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

        The coordinates ``one_pass`` and ``engine`` say which policies had all budgets from one
        pass, and what ran them.

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
    tokens = budget_list(budgets, trace.n)
    p = decode_start(trace, prompt_len)
    if engine not in ENGINES:
        raise UserError(f"unknown engine {engine!r}; expected {', '.join(ENGINES)}")
    if evictions is None:
        evictions = not isinstance(budgets, str)
    chosen = chosen_layers(trace, layers)
    units = [u for u in trace.units(share) if u.layer in chosen]
    for layer in chosen:
        trace.check_layer(layer)

    one_pass = [
        engine != "naive"
        and not step_recall
        and all(c.inclusive(len(u.heads)) for u in units)
        and one_pass_pays(tokens, trace.n)
        for c in configured
    ]
    per_layer = len(units) // len(chosen)
    shape = (len(configured), len(chosen), per_layer, len(tokens))
    recall = np.full(shape, np.nan)
    held = np.zeros(shape, np.int32)
    gone = np.zeros((*shape, trace.n), np.int32) if evictions else None
    steps = np.zeros((*shape, trace.n - p)) if step_recall else None

    ran = engines(configured, units, engine, one_pass, tokens)
    recorded = sorted(tokens) if evictions else []
    plan: list[list[Part]] = []
    for u, unit in enumerate(units):
        parts = []
        for i, c in enumerate(configured):
            at = (i, *divmod(u, per_layer))
            if one_pass[i]:
                parts.append(Part(Job(unit, c, trace.n, p), at, ran[i], None, recorded))
            else:
                parts += [Part(Job(unit, c, k, p), at, ran[i], b) for b, k in enumerate(tokens)]
        plan.append(parts)

    for part, found, masses in _run(plan, progress):
        whole = int(np.sum(masses))
        if isinstance(found, Curve):
            picked = np.array(tokens) - 1
            held[part.at] = found.held[picked]
            recall[part.at] = [int(x) / whole if whole else np.nan for x in found.kept[picked]]
            if gone is not None:
                gone[part.at] = found.evicted_at[np.argsort(np.argsort(tokens))]
        else:
            cell = (*part.at, part.budget)
            held[cell] = found.held
            recall[cell] = int(found.kept.sum()) / whole if whole else np.nan
            if gone is not None:
                gone[cell] = found.evicted_at
            if steps is not None:
                steps[cell] = found.kept / masses

    dims = ("policy", "layer", "unit", "budget")
    data: dict[str, Any] = {"recall": (dims, recall), "held": (dims, held)}
    if steps is not None:
        data["step_recall"] = ((*dims, "step"), steps)
    if gone is not None:
        data["evicted_at"] = ((*dims, "token"), gone)
    coords: dict[str, Any] = {
        "policy": names,
        "layer": list(chosen),
        "unit": np.arange(per_layer),
        "budget": tokens,
        "fraction": ("budget", np.array(tokens) / trace.n),
        "one_pass": ("policy", one_pass),
        "engine": ("policy", ran),
    }
    if steps is not None:
        coords["step"] = np.arange(p, trace.n)
    facts = {"trace": trace.name, "n": trace.n, "prompt_len": p, "share": share}
    return xarray.Dataset(data, coords, facts)


def budget_list(budgets: Budgets, n: int) -> list[int]:
    """Budgets in tokens, as given and each once; ``"all"`` is 1 … n."""
    if isinstance(budgets, str):
        if budgets != "all":
            raise UserError(f"budgets {budgets!r}: expected numbers or 'all'")
        return list(range(1, n + 1))
    given = np.atleast_1d(np.asarray(budgets, object))
    tokens = list(dict.fromkeys(budget_tokens(b, n) for b in given))
    if not tokens:
        raise UserError("no budget given; expected tokens (64) or fractions of n (0.05)")
    return tokens


def one_pass_pays(tokens: Sequence[int], n: int) -> bool:
    """Whether one pass over all budgets costs less than a direct run for each of these.

    In units of the pass, a direct run was measured at 0.12 for reading the rows and 2 for every
    row that it holds in full (its cache fills up to k first, hence the second term).
    """
    return sum(0.12 + 2 * (k / n) * (1 - k / (2 * n)) for k in tokens) > 1


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




def engines(
    configured: Sequence[Configured],
    units: Sequence[Unit],
    engine: str,
    one_pass: Sequence[bool],
    tokens: Sequence[int],
) -> list[str]:
    """What runs each policy: naive, numba or cuda."""
    if engine in ("naive", "numba"):
        return [engine] * len(configured)
    if engine == "auto":
        # Seconds of the CPU, at the measured 2 ns an entry of the triangle for a pass.
        passes = sum(1 if once else len(tokens) for once in one_pass) * len(units)
        if passes * units[0].n ** 2 * 2e-9 / cores() < WORTH_A_GPU or not _has_gpu():
            return ["numba"] * len(configured)
    from h2osim import cuda

    cuda.devices()  # says what is missing where there is none
    heads = len(units[0].heads)
    return ["numba" if cuda.refusal(c, heads) else "cuda" for c in configured]


def _has_gpu() -> bool:
    from h2osim import cuda

    return cuda.available()


@dataclass(frozen=True)
class Part:
    """A piece of work on a unit: a policy at one budget, or (``budget`` None) at every one.

    ``at`` is the place of its result: indices of policy, layer and unit.
    """

    job: Job
    at: tuple[int, int, int]
    engine: str
    budget: int | None
    recorded: Sequence[int] = ()


def _run(
    plan: list[list[Part]], progress: Progress | None
) -> Iterator[tuple[Part, Outcome | Curve, np.ndarray | int]]:
    """Do all parts on all cores; yields what each found and the masses of its decode rows."""
    workers = cores()
    tasks = []
    on_gpu = [part for parts in plan for part in parts if part.engine == "cuda"]
    for every in plan:
        parts = [part for part in every if part.engine != "cuda"]
        if not parts:
            continue
        # Parts that are fed together share the making of rows; mapped rows need not be made.
        size = (
            1 if "scores" in parts[0].job.unit.trace.stores else min(64, -(-len(parts) // workers))
        )
        tasks += [parts[i : i + size] for i in range(0, len(parts), size)]
    total = sum(part.job.unit.n for parts in plan for part in parts)
    done, lock, stop = 0, threading.Lock(), threading.Event()

    def tick(rows: int) -> None:
        nonlocal done
        if stop.is_set():  # nobody waits for this task any more
            raise CancelledError
        if progress:
            with lock:
                done += rows
                progress(done, total, "replaying")

    if on_gpu:
        yield from _cuda(on_gpu, tick)
    pool = ThreadPoolExecutor(workers)
    try:
        # A few tasks ahead of the workers, so that results do not pile up.
        waiting: set[Future[list[Result]]] = set()
        queue = iter(tasks)
        while True:
            for parts in islice(queue, 4 * workers - len(waiting)):
                work = _naive if parts[0].engine == "naive" else _numba
                waiting.add(pool.submit(work, parts, tick))
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield from future.result()
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _cuda(parts: list[Part], tick: Callable[[int], None]) -> Iterator[Result]:
    from h2osim import cuda

    single = [part for part in parts if part.budget is not None]
    if single:
        outcomes = cuda.direct([part.job for part in single], tick=tick)
        yield from ((part, *found) for part, found in zip(single, outcomes, strict=True))
    every = [part for part in parts if part.budget is None]
    if every:
        curves = cuda.curves([part.job for part in every], every[0].recorded, tick=tick)
        yield from ((part, *found) for part, found in zip(every, curves, strict=True))


def _naive(parts: list[Part], tick: Callable[[int], None]) -> list[Result]:
    found: list[Result] = []
    for part in parts:
        masses = part.job.unit.row_masses()[part.job.prompt_len :]
        found.append((part, naive.run(part.job), masses))
        tick(part.job.unit.n)
    return found


def _numba(parts: list[Part], tick: Callable[[int], None]) -> list[Result]:
    from h2osim.engines.direct import DirectRun
    from h2osim.engines.stack import StackRun

    runs = [
        StackRun(part.job, part.recorded) if part.budget is None else DirectRun(part.job)
        for part in parts
    ]
    for block in parts[0].job.unit.blocks(lag=max(part.job.configured.lag() for part in parts)):
        for run in runs:
            run.feed(block)
            tick(block.stop - block.start)
    return [(part, run.result(), run.masses) for part, run in zip(parts, runs, strict=True)]
