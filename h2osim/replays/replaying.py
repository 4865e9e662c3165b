"""Replay a trace under eviction policies: who was evicted when, and how much attention was kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.text import parse_all
from h2osim.replays import results
from h2osim.replays.execute import Memory, engine_here, execute
from h2osim.replays.facts import policy_facts, run_facts, token_facts
from h2osim.replays.found import Found, quotient
from h2osim.replays.plan import plan_work
from h2osim.replays.several import over_traces, traces_of
from h2osim.replays.unit_budgets import Budgets
from h2osim.support.bars import with_bar
from h2osim.support.errors import UserError
from h2osim.support.given import whole_numbers
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace

if TYPE_CHECKING:
    import xarray


@with_bar
def replay(
    trace: Trace | Sequence[Trace],
    policies: str | Policy | Configured | Sequence[str | Policy | Configured],
    budgets: Budgets,
    *,
    prompt_len: int | None = None,
    share: str = "group",
    engine: str = "auto",
    layers: Iterable[int] | None = None,
    step_recall: bool = False,
    measure: str = "recall",
    step_errors: bool = False,
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
        A recorded or made :class:`~h2osim.trace.Trace`; or several of the same layers and heads.
    policies
        Policies as text (``h2o:recent=32,scores=full``), or policy objects.
    budgets
        Whole numbers are tokens (64), numbers in (0, 1] fractions of n (0.05; ``1.0`` is all of n),
        ``"50%prompt"`` is a share of the prompt; rounded down but never below 1. An array [layers,
        units] or a :class:`~h2osim.replays.unit_budgets.UnitBudgets` is a budget for each unit.
        ``"all"`` is every budget 1 … n: one pass gives them all where the policy is inclusive
        (theorem T7), else they run one by one. A list of budgets goes through the same pass where
        that is cheaper; the results are the same.
    prompt_len
        First decode step, 1 … n-1. Default: the trace's own if it was generated, else 1.
    share
        Which heads decide together: ``group`` (a KV group), ``head`` or ``layer``.
    engine
        ``naive`` (the definition, plain Python), ``numba``, ``cuda`` (every GPU there is; a policy
        that cannot be said exactly in CUDA runs under numba), or ``auto``: cuda where a GPU is
        present and the work would keep the CPU busy for some seconds, else numba. All agree
        exactly, but for errors, which are float64 sums (to 1e-7).
    layers
        Model layers to replay; default all.
    measure
        What to measure beside recall. ``error`` (or ``both``, which is the same here): the output
        error, for which the trace needs values. ``attention-error``: needs scores only.
        ``residual-error``: needs values, output projections and norms of the residual stream. See
        :mod:`h2osim.engines.errors` for the formulas.
    step_errors
        Whether to return the errors of every step too (not from one pass over all budgets).
    step_recall, evictions
        Whether to return every step's recall (not from one pass over all budgets) and every
        token's eviction (default: unless all budgets are asked for, which takes n * n numbers).
    progress
        Called with rows done, rows in all and a word.

    Returns
    -------
    xarray.Dataset
        Dimensions policy (as written), layer, unit, budget (tokens, ``fraction`` of n beside it);
        of several traces, ``trace`` before them, see :mod:`h2osim.replays.several`:

        * ``recall``: attention-mass recall, 0 … 1 (NaN where nothing is decoded, n = 1);
        * ``kept`` and ``mass[layer, unit]``: the masses it is the quotient of, int64 in multiples
          of 2^-24;
        * ``held``: most keys that a decode step attended besides its own;
        * ``output_error``, ``output_error_abs``, ``attention_error`` or ``residual_error``, as
          measured; with a suffix ``_step`` those of each decode step, whose mean is the run's;
        * ``step_recall[..., step]``: recall of each decode step, for steps ``prompt_len`` … n-1;
        * ``slots[layer, unit, budget]``, where budgets differ by unit: each in tokens. ``budget``
          is then their mean, rounded, and ``split`` beside it has the name of the budgets;
        * ``evicted_at[..., token]``: the step after which a token is never attended again, n if it
          stays.

        Coordinates on ``policy`` say what each is (``kind``: online, oracle or bound; ``rule``,
        ``params``, ``within_budget``, ``readmits``), whether one pass gave all its budgets
        (``one_pass``) and what ran it (``engine``). :mod:`h2osim.replays.results` lists everything,
        attributes too.

    Raises
    ------
    UserError
        Unknown policy, parameter, engine, layer or share; a budget or prompt length out of range;
        data that a policy or measure needs and the trace lacks; a trace with broken rows.
    """
    configured = parse_all(policies)
    if not configured:
        raise UserError("no policy given; expected at least one (`h2osim policies` lists them)")
    names = [c.text for c in configured]
    if len(set(names)) < len(names):
        raise UserError(f"policies: {', '.join(names)}: each may be given once")
    if evictions is None:
        evictions = not isinstance(budgets, str)
    traces = traces_of(trace)
    layers = whole_numbers("layers", layers)
    plan = plan_work(
        traces, configured, budgets, prompt_len=prompt_len, share=share, layers=layers,
        measure=measure,
    )  # fmt: skip
    if not isinstance(trace, Trace):
        return over_traces(
            lambda one, part: replay(
                one, configured, budgets, prompt_len=prompt_len, share=share, engine=engine,
                layers=layers, step_recall=step_recall, measure=measure, step_errors=step_errors,
                evictions=evictions, progress=part,
            ),
            traces, budgets, prompt_len=prompt_len, share=share, layers=layers, progress=progress,
        )  # fmt: skip
    errors = plan.errors
    kind = engine_here(engine, float(plan.seconds.sum()))
    each = step_recall or bool(errors and step_errors)
    if each or kind.name == "naive":
        plan = plan.budget_by_budget()
    (p,), chosen = plan.prompt_lens, plan.layers(0)
    n = trace.n
    found = Found.empty(plan.shape, n if evictions else None, n - p if each else None, errors)
    execute(plan, kind, Memory(plan, found), progress)

    def by_layer(values: np.ndarray) -> np.ndarray:
        shape = (len(chosen), len(plan.units) // len(chosen))
        return values.reshape(*values.shape[:1], *shape, *values.shape[2:])

    steps = None
    if step_recall and found.kept_steps is not None and found.mass_steps is not None:
        steps = quotient(found.kept_steps, found.mass_steps[:, None])
    per_policy = {
        "recall": found.recall, "kept": found.kept, "held": found.held, "step_recall": steps,
        "evicted_at": found.evicted_at, **found.errors,
    }  # fmt: skip
    if step_errors:
        per_policy |= {f"{name}_step": values for name, values in found.error_steps.items()}
    data = {name: None if x is None else by_layer(x) for name, x in per_policy.items()}
    engines, one_pass = kind.names(plan.part(0)), plan.one_pass.all(axis=1)
    coords = {
        **policy_facts(configured, one_pass=one_pass, engine=engines),
        "layer": chosen,
        "unit": np.arange(len(plan.units) // len(chosen)),
        **plan.columns.coordinates(),
        "fraction": plan.columns.labels / n,
        "step": np.arange(p, n),
        **token_facts(trace),
    }
    data["mass"] = found.mass.reshape(len(chosen), -1)
    data["slots"] = plan.columns.slots(0, len(chosen))
    return results.assemble("replay", data, coords, run_facts(trace, p, share))
