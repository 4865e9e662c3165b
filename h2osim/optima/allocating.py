"""Splitting a total of cache slots over the units of a model, by what each loses at each budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.optima.allocation_curves import BY, loss_curves, units_of
from h2osim.optima.split_rules import adakv_split, equal_split, pyramid_split
from h2osim.optima.splitting import EXACT_STEPS, best_split
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.text import parse
from h2osim.replays import results
from h2osim.replays.budgets import Budget, budget_tokens, chosen_layers, decode_start
from h2osim.replays.facts import policy_facts, run_facts
from h2osim.replays.measures import variables_of
from h2osim.replays.plan import names_of
from h2osim.replays.several import check_alike, traces_of
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.support.bars import with_bar
from h2osim.support.errors import UserError
from h2osim.support.given import whole_numbers
from h2osim.support.progress import Progress
from h2osim.traces.trace import Trace

if TYPE_CHECKING:
    import xarray

Ints = NDArray[np.int64]
OPTIMUM = "optimum"
#: How slots are split.
RULES = ("best", "equal", "pyramid", "reverse-pyramid", "adakv", "oracle")


@with_bar
def allocate(
    traces: Trace | Sequence[Trace],
    totals: Budget | Sequence[Budget],
    *,
    policies: str | Policy | Configured | Sequence[str | Policy | Configured] = OPTIMUM,
    by: str = "recall",
    prompt_len: int | None = None,
    share: str = "group",
    layers: Iterable[int] | None = None,
    method: str = "auto",
    least: float = 0.0,
    most: float | None = None,
    points: int = 64,
    beta: float = 20.0,
    floor: float = 0.2,
    engine: str = "auto",
    progress: Progress | None = None,
) -> xarray.Dataset:
    """Split cache slots over all units so that as little as possible is lost.

    Every unit has a curve, what it loses at each number of slots, the mean over the traces. The
    best split of a total of slots is the one whose losses add up to least.

    Splits
    ------
    * ``best``: by the curves; one for all traces;
    * ``equal``: the same for every unit, what does not divide goes to the first ones;
    * ``pyramid``, ``reverse-pyramid``: PyramidKV's rule and the same upside down
      (:func:`~h2osim.optima.split_rules.pyramid_split`);
    * ``adakv``: Ada-KV's, of each trace's own prompt
      (:func:`~h2osim.optima.split_rules.adakv_split`);
    * ``oracle``: of several traces the best split of each, from its own curves.

    Parameters
    ----------
    traces
        A trace, or several of one model, whose curves are averaged. Lengths may differ: slots are
        then counted on the shortest, and a longer text takes them in proportion.
    totals
        One or several: numbers in (0, 1] are the mean budget as a share of n, and come to the slots
        that equal budgets have; whole numbers are slots over all units.
    policies
        Whose curves are split: policies, as text or objects, or ``optimum``, the offline optimum.
    by
        What is lost: ``recall`` (mass), ``log-recall`` (-ln recall), ``value`` (attention times
        |v - o|), ``error``, ``error-abs``, ``attention-error``, ``residual-error`` (the variables
        of :func:`h2osim.replay`). Of the optimum only the first three; mass is exact, in integers.
    method
        ``dp`` is exact; ``hull`` splits the lower convex hulls of the losses; ``auto`` takes dp
        where it is affordable. Convex losses, such as the optimum's, are split exactly in any case.
    least, most
        Every unit gets at least, and at most, so many times the mean budget.
    points
        At how many budgets a policy is replayed that has no one pass for all.
    beta, floor
        Of PyramidKV and of Ada-KV.

    Returns
    -------
    xarray.Dataset
        Over policy, split, budget (each total as a mean share of n), layer and unit, of several
        traces ``trace`` before them: ``slots`` in tokens, ``slots_share`` of n, ``loss``;
        ``overall`` over policy, split and budget, the mean loss of the units (of masses what all
        lose together); ``least`` over policy and budget: no split of the trace's own curves has a
        smaller one. :func:`h2osim.budgets_of` takes the budgets out.

    Raises
    ------
    UserError
        A total out of range, a policy or measure that is not there, traces of unlike shape, and as
        :func:`h2osim.replay`.
    """
    several = not isinstance(traces, Trace)
    some = traces_of(traces)
    layers = whole_numbers("layers", layers)
    check_alike(some, share, layers)
    if by not in BY:
        raise UserError(f"by {by!r}: expected one of {', '.join(BY)}")
    variables_of(BY[by][0], some)
    if method not in ("auto", "dp", "hull"):
        raise UserError(f"unknown method {method!r}; expected auto, dp, hull")
    if not (beta >= 1 and 0 <= floor <= 1 and points >= 2):
        raise UserError(
            f"beta {beta:g}, floor {floor:g}, points {points}: expected at least 1, 0 to 1, at "
            "least 2"
        )
    if isinstance(policies, (str, Policy, Configured)):
        policies = [policies]
    configured = [None if one == OPTIMUM else parse(one) for one in policies]
    names = [OPTIMUM if one is None else one.text for one in configured]
    if not names or len(set(names)) < len(names):
        raise UserError(f"policies: {', '.join(names) or 'none'}: expected each once")
    starts = [decode_start(one, prompt_len) for one in some]
    units = [units_of(one, share, layers) for one in some]
    chosen, count, m = chosen_layers(some[0], layers), len(units[0]), min(t.n for t in some)
    means, asked = _totals(totals, count, [one.n for one in some])
    limits = [_limits(slots, count, m, least, most) for slots in asked]
    for one in some:
        for layer in chosen:
            one.check_layer(layer)

    rules = RULES if several else RULES[:-1]
    shape = (len(some), len(names), len(rules), len(asked))
    grid = np.zeros((*shape, count), np.int64)  # slots of the shortest trace
    loss, overall, bound = np.zeros(grid.shape), np.zeros(shape), np.zeros((*shape[:2], shape[3]))
    for j, policy in enumerate(configured):
        curves = loss_curves(
            some, policy, by, prompt_len=prompt_len, share=share, layers=layers, points=points,
            engine=engine, progress=progress,
        )  # fmt: skip
        for b, (slots, ends) in enumerate(zip(asked, limits, strict=True)):
            best, limit = best_split(curves.gains(range(len(some))), slots, method, *ends)
            fixed = {
                "equal": equal_split(slots, np.full(count, m)),
                "pyramid": pyramid_split(slots, len(chosen), count // len(chosen), m, beta),
                "reverse-pyramid": pyramid_split(
                    slots, len(chosen), count // len(chosen), m, beta, reverse=True
                ),
            }
            for o, one in enumerate(some):
                own = best
                if several:
                    # A quarter of the steps: there is one split for each trace.
                    quick = count * slots * m * 4 > EXACT_STEPS and method == "auto"
                    gains = curves.gains([o])
                    own, limit = best_split(gains, slots, "hull" if quick else method, *ends)
                bound[o, j, b] = curves.bound(o, limit)
                of_text = {"best": best, "oracle": own}
                if j == 0:  # the others do not look at the policy
                    window = max(1, round(32 * m / one.n))
                    of_text["adakv"] = adakv_split(
                        units[o], slots, len(chosen), starts[o], m, floor, window
                    )
                for r, rule in enumerate(rules):
                    split = (fixed | of_text).get(rule, grid[o, 0, r, b])
                    grid[o, j, r, b], loss[o, j, r, b] = split, curves.at(o, split)
                    overall[o, j, r, b] = curves.overall(o, split)

    shares = np.zeros(grid.shape)
    tokens = np.zeros_like(grid)
    for at in np.ndindex(*shape):
        # Equal budgets round down; shares have the mean that was asked for.
        one_split = UnitBudgets("split", grid[at][None] / m).scaled(means[at[-1]])
        shares[at] = one_split.budgets[0]
        n = some[at[0]].n
        tokens[at] = grid[at] if n == m else one_split.resolve("", "", [0], count, n)[0]
    by_unit = (*shape, len(chosen), count // len(chosen))
    data = {
        "slots": tokens.reshape(by_unit), "slots_share": shares.reshape(by_unit),
        "loss": loss.reshape(by_unit), "overall": overall, "least": bound,
    }  # fmt: skip
    known = [one or _optimum_policy().with_params() for one in configured]
    coords = {
        **policy_facts(known), "split": rules, "budget": means, "layer": chosen,
        "unit": np.arange(by_unit[-1]),
    }  # fmt: skip
    about = {"by": by, "method": method, "model_name": _model(some), "share": share}
    if not several:
        data = {name: values[0] for name, values in data.items()}
        facts = run_facts(some[0], starts[0], share) | about
        return results.assemble("allocation", data, coords, facts)
    each = [run_facts(one, p, share) for one, p in zip(some, starts, strict=True)]
    for name in results.OF_A_TRACE:
        coords[name] = [facts[name] for facts in each]
    coords["trace"] = list(names_of(some))
    return results.assemble("allocation", data, coords, about, several=True)


def budgets_of(
    allocation: xarray.Dataset, split: str = "best", policy: str | None = None
) -> list[UnitBudgets]:
    """The budgets by unit that an allocation found, one for each total, as shares of n.

    Of a split that differs by trace (``adakv``, ``oracle``) the mean over the traces. ``policy``
    may be left out where there is one.
    """
    names = allocation["policy"].values.tolist()
    if policy is None and len(names) != 1:
        raise UserError(f"budgets of {', '.join(names)}: name one policy")
    if split not in allocation["split"].values:
        known = ", ".join(allocation["split"].values)
        raise UserError(f"split {split!r}: expected one of {known}")
    found = allocation["slots_share"].sel(policy=policy or names[0], split=split)
    if "trace" in found.dims:
        found = found.mean("trace")
    attrs = allocation.attrs
    made = attrs["command"] or f"h2osim.allocate(…, policies={names!r}, by={attrs['by']!r})"
    return [
        UnitBudgets(
            split, found.isel(budget=b).transpose("layer", "unit").values,
            tuple(int(layer) for layer in found["layer"].values), str(attrs["model_name"]),
            str(attrs["share"]), made if split == "best" else f"{split}: {made}",
        )
        for b in range(found.sizes["budget"])
    ]  # fmt: skip


def _totals(
    totals: Budget | Sequence[Budget], count: int, lengths: Sequence[int]
) -> tuple[list[float], list[int]]:
    """Mean shares of n and the slots, on the shortest text, of each total."""
    m = min(lengths)
    given = np.atleast_1d(np.asarray(totals, object)).tolist()
    means, slots = [], []
    for total in given:
        if isinstance(total, (int, np.integer)) and not isinstance(total, bool):
            if not count <= total <= count * m:
                raise UserError(
                    f"total {total}: expected {count} slots (one for each of {count} units) to "
                    f"{count * m}, or a share of n"
                )
            if len(set(lengths)) > 1:
                raise UserError(f"total {total}: traces of several lengths; expected a share of n")
            means.append(int(total) / (count * m))
            slots.append(int(total))
            continue
        try:
            if isinstance(total, str):
                raise UserError(f"{total}: expected a share of the text or slots over all units")
            tokens = budget_tokens(total, m, m)
        except UserError as error:
            raise UserError(f"total: {error}") from None
        means.append(float(total))
        slots.append(count * tokens)
    if not means or len(set(means)) < len(means):
        raise UserError(f"totals {given}: expected one or several, each once")
    return means, slots


def _limits(slots: int, count: int, m: int, least: float, most: float | None) -> tuple[int, int]:
    """The fewest and most slots of a unit."""
    mean = slots / count
    if not (0 <= least <= 1 and (most is None or most >= 1)):
        raise UserError(
            f"least {least:g}, most {most}: expected 0 to 1 and from 1 on, in multiples of the mean"
        )
    low = max(1, math.floor(least * mean))
    high = m if most is None else math.ceil(min(m, most * mean))
    return low, high


def _model(traces: Sequence[Trace]) -> str:
    names = {(one.manifest["model"] or {}).get("name") or "" for one in traces}
    if len(names) > 1:
        raise UserError(f"traces of several models: {', '.join(sorted(names))}: expected one")
    return names.pop()


def _optimum_policy() -> Policy:
    """The optimum, which is listed among the policies as an oracle."""
    proof = "proofs/11-offline-optimum-is-an-assignment.md"
    return Policy(OPTIMUM, "offline optimum", proof, lambda: 0.0, oracle=True)
