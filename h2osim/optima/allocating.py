"""Splitting a total of cache slots over the units of a trace.

For the offline optimum, OPT(k) of every unit is concave in k (it is the value of a linear program
as a function of its right-hand side, proofs/12-optimum-concave-in-budget.md), so giving each next
slot to the unit that gains most by it is optimal. The curve of a policy need not be concave; its
best split is found by dynamic programming, or on the concave hulls of the curves, with a bound on
what that loses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.text import parse_all
from h2osim.replays import results
from h2osim.replays.unit_budgets import share_out
from h2osim.support.errors import UserError
from h2osim.support.given import whole_numbers
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

if TYPE_CHECKING:
    import xarray

Ints = NDArray[np.int64]
OPTIMUM = "optimum"
RULES = ("best", "equal", "pyramid", "adakv")
EXACT_STEPS = 2 * 10**9  # sums that dynamic programming may take before `auto` uses the hulls


def allocate(
    trace: Trace | Sequence[Trace],
    slots: int,
    *,
    policies: Sequence[str | Policy | Configured] = (),
    prompt_len: int | None = None,
    share: str = "group",
    layers: Iterable[int] | None = None,
    method: str = "auto",
    beta: float = 20.0,
    floor: float = 0.2,
    window: int = 32,
    progress: Callable[[float, float, str], None] | None = None,
) -> xarray.Dataset:
    """Split `slots` cache slots over all units, for the offline optimum and for policies.

    Every unit gets 1 … n slots. What is compared is the recall over all units together,
    sum of kept mass / sum of mass.

    Rules
    -----
    * ``best``: the split that keeps most, from the curve's own values (see `method`);
    * ``equal``: the same for every unit, what does not divide goes to the first ones;
    * ``pyramid``: PyramidKV (arXiv 2406.02069): layer budgets fall linearly from the first layer to
      the last, which gets the mean / `beta`; equal within a layer;
    * ``adakv``: Ada-KV (arXiv 2407.11550): layers equal; in a layer, `floor` of the equal share is
      safe for every unit and the rest goes to the units with the most entries among the layer's
      largest scores. Scores are the mass that the last `window` prompt rows give. Where we differ:
      without a prompt (of at least 2 tokens) all rows count, in hindsight, since there is no
      window to observe; the window's own tokens compete as all others do.

    Parameters
    ----------
    trace
        A trace, or several of the same layers and heads, each with its own split.
    slots
        Slots in all, from one per unit to n per unit.
    policies
        Policies, as text or objects, whose curves are split too; each is replayed at every budget.
    method
        For policies: ``dp`` is exact; ``hull`` splits the concave hulls, and reports what it may
        lose; ``auto`` takes dp where it is affordable. The optimum is always exact.

    Returns
    -------
    xarray.Dataset
        ``slots``, ``kept`` (int64 fixed point) and ``recall``, each [policy, split, layer, unit];
        ``overall[policy, split]``, the recall over all units; ``mass[layer, unit]``; and
        ``bound[policy]`` (int64) and ``upper[policy]``, the same as a recall: no split has a larger
        one (equal to that of ``best`` unless hulls lost something). ``split`` names the rules
        above; ``policy`` begins with ``optimum``.

    Raises
    ------
    UserError
        A number of slots out of range, a policy named ``optimum``, and as `optimum` and `replay`.
    """
    from h2osim.optima.solving import optimum_curves
    from h2osim.replays.budgets import chosen_layers, decode_start
    from h2osim.replays.replaying import replay
    from h2osim.replays.several import over_traces, traces_of

    layers = whole_numbers("layers", layers)
    configured = parse_all(policies)
    if any(one.text == OPTIMUM for one in configured):
        raise UserError(f"policy {OPTIMUM}: this is what the offline optimum is called here")
    is_number = isinstance(slots, (int, np.integer)) and not isinstance(slots, bool)
    for each in traces_of(trace):
        chosen = chosen_layers(each, layers)
        units = [unit for unit in each.units(share) if unit.layer in chosen]
        count, n = len(units), each.n
        if not is_number or not count <= slots <= count * n:
            raise UserError(
                f"slots {slots}: expected {count} (one for each of {count} units) to {count * n}"
            )
    if method not in ("auto", "dp", "hull"):
        raise UserError(f"unknown method {method!r}; expected auto, dp, hull")
    if not (beta >= 1 and 0 <= floor <= 1 and window >= 1):
        raise UserError(
            f"beta {beta:g}, floor {floor:g}, window {window}: expected at least 1, 0 to 1, "
            "at least 1"
        )
    if not isinstance(trace, Trace):
        return over_traces(
            lambda one, part: allocate(
                one, slots, policies=policies, prompt_len=prompt_len, share=share, layers=layers,
                method=method, beta=beta, floor=floor, window=window, progress=part,
            ),
            trace, prompt_len=prompt_len, share=share, layers=layers, progress=progress,
        )  # fmt: skip
    p, per_layer = decode_start(trace, prompt_len), count // len(chosen)
    for layer in chosen:
        trace.check_layer(layer)

    fixed = {
        "equal": equal_split(slots, np.full(count, n)),
        "pyramid": pyramid_split(slots, len(chosen), per_layer, n, beta),
        "adakv": adakv_split(units, slots, len(chosen), p, floor, window),
    }
    kept, mass = optimum_curves(units, p, progress=progress)
    curves = {"optimum": kept}
    if policies:
        found = replay(
            trace, configured, "all", prompt_len=p, share=share, layers=chosen,
            progress=progress,
        )  # fmt: skip
        for one, curve in zip(configured, found["kept"].values, strict=True):
            curves[one.text] = np.pad(curve.reshape(count, n), ((0, 0), (1, 0)))

    names, whole = list(curves), int(mass.sum())
    split = np.zeros((len(names), len(RULES), count), np.int64)
    value = np.zeros(split.shape, np.int64)
    bound = np.zeros(len(names), np.int64)
    for i, name in enumerate(names):
        curve = curves[name]
        best, limit = best_split(curve, slots, method)
        for r, rule in enumerate(RULES):
            split[i, r] = best if rule == "best" else fixed[rule]
            value[i, r] = curve[np.arange(count), split[i, r]]
        bound[i] = limit

    shape = (len(names), len(RULES), len(chosen), per_layer)
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = value / mass
        overall = value.sum(axis=-1) / (whole or np.nan)
    data = {
        "slots": split.reshape(shape), "recall": recall.reshape(shape),
        "kept": value.reshape(shape), "mass": mass.reshape(shape[2:]), "overall": overall,
        "bound": bound, "upper": bound / (whole or np.nan),
    }  # fmt: skip
    # The optimum is listed among the policies, as an oracle.
    proof = "proofs/11-offline-optimum-is-an-assignment.md"
    best_of_all = Policy(OPTIMUM, "offline optimum", proof, lambda: 0.0, oracle=True)
    coords = {
        **results.policy_facts([best_of_all.with_params(), *configured]),
        "split": RULES, "layer": chosen, "unit": np.arange(per_layer),
    }  # fmt: skip
    facts = results.run_facts(trace, p, share) | {"slots_in_all": slots}
    return results.assemble("allocation", data, coords, facts)


def best_split(curves: Ints, slots: int, method: str = "auto") -> tuple[Ints, int]:
    """The split of `slots` that maximises sum_u curves[u, k_u], 1 <= k_u <= n.

    curves int64 [units, n+1], curves[u, k] for k slots (column 0 is not used). Returns the split,
    int64 [units], and an upper bound on every split's value: the value of the split itself, except
    for ``hull`` on curves that are not concave.
    """
    count, n = curves.shape[0], curves.shape[1] - 1
    if not count <= slots <= count * n:
        raise ValueError(f"{slots} slots for {count} units of 1 to {n}")
    if n < 3 or bool((np.diff(curves[:, 1:], 2, axis=1) <= 0).all()):
        return _by_gains(curves, slots)
    if method == "auto":
        method = "dp" if count * slots * n <= EXACT_STEPS else "hull"
    return _by_dp(curves, slots) if method == "dp" else _by_hull(curves, slots)


def concave_hull(curve: Ints) -> Ints:
    """The corners k of the least concave function above curve[1 … n], ascending, 1 and n included.

    Integers throughout: a corner is dropped if it lies on or below the line between its neighbours.
    """
    corners: list[int] = []
    for k in range(1, len(curve)):
        while len(corners) >= 2:
            a, b = corners[-2], corners[-1]
            if int(curve[b] - curve[a]) * (k - b) > int(curve[k] - curve[b]) * (b - a):
                break
            corners.pop()
        corners.append(k)
    return np.array(corners, np.int64)


def _by_gains(curves: Ints, slots: int) -> tuple[Ints, int]:
    """Concave curves: the largest gains of a single slot, the first units first among equals."""
    count = len(curves)
    gains = np.diff(curves[:, 1:], axis=1)
    order = np.argsort(-gains.ravel(), kind="stable")[: slots - count]
    split = 1 + np.bincount(order // max(1, gains.shape[1]), minlength=count)
    return split, int(curves[np.arange(count), split].sum())


def _by_hull(curves: Ints, slots: int) -> tuple[Ints, int]:
    """Steepest pieces of the hulls first; slots that remain inside the first piece that does not
    fit are given to the best rise per slot that does.

    The value of the hulls at `slots`, rounded down, bounds every split. The split gives up no more
    than the height of one hull above its curve.
    """
    count, n = curves.shape[0], curves.shape[1] - 1
    pieces = []
    for u in range(count):
        corners = concave_hull(curves[u]).tolist()
        for a, b in pairwise(corners):
            pieces.append((-Fraction(int(curves[u, b] - curves[u, a]), b - a), u, b))
    split, left = np.ones(count, np.int64), slots - count
    limit = int(curves[:, 1].sum())
    for slope, u, b in sorted(pieces):
        size = b - int(split[u])
        if size > left:
            limit += int(-slope * left)
            break
        split[u] = b
        left -= size
        limit += int(-slope * size)
    while left:
        steepest = (-1.0, 0, 0)
        for u in range(count):
            reach = min(left, n - int(split[u]))
            if reach:
                ahead = curves[u, split[u] + 1 : split[u] + 1 + reach] - curves[u, split[u]]
                rise = ahead / np.arange(1, reach + 1)
                steepest = max(steepest, (float(rise.max()), -u, int(rise.argmax()) + 1))
        if steepest[2] == 0:  # no rise is positive: any unit with room takes the rest
            u = int(np.argmax(split < n))
            steepest = (0.0, -u, min(left, n - int(split[u])))
        split[-steepest[1]] += steepest[2]
        left -= steepest[2]
    return split, limit


def _by_dp(curves: Ints, slots: int) -> tuple[Ints, int]:
    """value[s] = the most that the units so far keep with s slots; one unit after the other."""
    from h2osim.optima.allocating_loops import NEVER, add_unit

    count, n = curves.shape[0], curves.shape[1] - 1
    value = np.full(slots + 1, NEVER, np.int64)
    value[0] = 0
    choice = np.zeros((count, slots + 1), np.int32)
    for u in range(count):
        after = np.full(slots + 1, NEVER, np.int64)
        add_unit(value, np.ascontiguousarray(curves[u]), min(slots, (u + 1) * n), after, choice[u])
        value = after
    split = np.zeros(count, np.int64)
    left = slots
    for u in range(count - 1, -1, -1):
        split[u] = choice[u, left]
        left -= int(split[u])
    return split, int(value[slots])


def equal_split(slots: int, room: Ints) -> Ints:
    """As equal as whole numbers and `room` allow; the first get what does not divide."""
    return share_out(np.ones(len(room)), slots, room)


def pyramid_split(slots: int, layers: int, per_layer: int, n: int, beta: float = 20.0) -> Ints:
    """PyramidKV: layer budgets in arithmetic progression, the last layer's being mean / beta."""
    mean = slots / layers
    last = mean / beta
    shape = np.linspace(2 * mean - last, last, layers) if layers > 1 else np.array([mean])
    return share_out(np.repeat(shape, per_layer), slots, np.full(layers * per_layer, n))


def adakv_split(
    units: Sequence[Unit], slots: int, layers: int, p: int, floor: float = 0.2, window: int = 32
) -> Ints:
    """Ada-KV: equal layers; within one, by how many of the layer's largest scores are a unit's."""
    count, n = len(units), units[0].n
    per_layer = count // layers
    layer_slots = equal_split(slots, np.full(layers, per_layer * n))
    split = np.zeros(count, np.int64)
    for at in range(layers):
        members = units[at * per_layer : (at + 1) * per_layer]
        scores = np.stack([_observed(unit, p, window) for unit in members])
        total = int(layer_slots[at])
        order = np.argsort(-scores.ravel(), kind="stable")[:total]
        largest = np.bincount(order // scores.shape[1], minlength=per_layer)
        weight = (1 - floor) * largest + floor * total / per_layer
        inside = slice(at * per_layer, (at + 1) * per_layer)
        split[inside] = share_out(weight, total, np.full(per_layer, n))
    return split


def _observed(unit: Unit, p: int, window: int) -> Ints:
    """Mass each token receives from the last `window` prompt rows; from all rows without prompt."""
    if p < 2:
        return unit.column_sums()
    scores = np.zeros(unit.n, np.int64)
    for t in range(max(0, p - window), p):
        scores[: t + 1] += unit.row(t)
    return scores
