"""Budgets that differ by layer and unit, and the columns of a result that budgets make.

A budget is one number for all units or a :class:`UnitBudgets`. Whatever takes budgets (replays,
sweeps, the offline optimum, the closed loop) turns them into tokens of each unit here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from h2osim.replays.budgets import Budget, budget_facts, budget_labels, budget_tokens
from h2osim.support.errors import UserError
from h2osim.support.html import facts_html
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class UnitBudgets:
    """A budget for every unit. ``name`` is what results call it.

    budgets: [layers, units], int64 tokens or float64 shares of n. layers: the model's indices of
    the rows; empty: those that are asked for, in order. model, share: what they were made for;
    empty: any. made: in words, or as a command, where they come from.

    Shares come to tokens in such a way that a text of n tokens takes exactly the memory of equal
    budgets at the mean share m: all units together have units * max(1, floor(m n)) tokens, split
    in proportion, each from 1 to n, by largest remainders.
    """

    #: Whether each prompt decides them (:mod:`h2osim.optima.prompt_budgets`).
    at_prompt: ClassVar[bool] = False

    name: str
    budgets: NDArray[Any]
    layers: tuple[int, ...] = ()
    model: str = ""
    share: str = ""
    made: str = ""

    def __post_init__(self) -> None:
        array = self.budgets
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iuf":
            raise UserError(
                f"budgets {self.name}: found shape {list(array.shape)} of {array.dtype}, expected "
                "numbers [layers, units]"
            )
        good = array >= 1 if self.in_tokens else (array > 0) & (array <= 1)
        if not good.all():
            layer, unit = np.argwhere(~good)[0]
            expected = "tokens from 1 on" if self.in_tokens else "shares of n above 0 up to 1.0"
            raise UserError(
                f"budgets {self.name}: found {array[layer, unit]} in row {layer}, unit {unit}, "
                f"expected {expected}"
            )
        if self.layers and (len(self.layers), len(set(self.layers))) != (len(array),) * 2:
            raise UserError(
                f"budgets {self.name}: {len(array)} rows, expected one for each of "
                f"{len(set(self.layers))} layers"
            )

    def _repr_html_(self) -> str:
        facts = {"of": "tokens" if self.in_tokens else "shares of the text", "made": self.made}
        heads = ("layer", *(f"unit {u}" for u in range(self.budgets.shape[1])))
        names = self.layers or range(len(self.budgets))
        rows = [(at, *row) for at, row in zip(names, self.budgets.tolist(), strict=True)]
        facts |= {"model": self.model, "share": self.share}
        return facts_html(f"Budgets {self.name}", facts, heads, rows)

    def decide(self, units: Sequence[Unit], layers: int, n: int) -> Ints:
        """Tokens int64 [layers, units] of a text of n, from the units of its prompt."""
        raise UserError(f"budgets {self.name}: no prompt decides them")

    @property
    def in_tokens(self) -> bool:
        """Whether the numbers are tokens, not shares of n."""
        return self.budgets.dtype.kind != "f"

    @cached_property
    def mean(self) -> float:
        """The mean over the units, in tokens or as a share."""
        # Rounded, because n times .1 + … + .1 must not fall below a whole number.
        return round(math.fsum(self.budgets.ravel().tolist()) / self.budgets.size, 12)

    def scaled(self, mean: float) -> UnitBudgets:
        """Budgets in the same proportions whose mean is another: tokens (64) or a share (0.05).

        What would exceed the whole text is cut to it, and the others get the rest.
        """
        whole = isinstance(mean, (int, np.integer)) and not isinstance(mean, bool)
        if not (mean >= 1 if whole else 0 < mean <= 1):
            raise UserError(
                f"budgets {self.name}: scaled to {mean}, expected tokens from 1 on or a share of n "
                "above 0 up to 1.0"
            )
        flat = self.budgets.ravel().astype(np.float64)
        if whole:
            room = np.full(flat.size, np.iinfo(np.int64).max // (2 * flat.size))
            scaled: NDArray[Any] = share_out(flat, int(mean) * flat.size, room)
        else:
            least = min(mean, 1e-9)
            scaled = flat * _filling(flat, mean * flat.size, least, np.ones(flat.size))
            scaled = np.clip(scaled, least, 1.0)
        return replace(self, budgets=scaled.reshape(self.budgets.shape))

    def resolve(self, model: str, share: str, layers: Sequence[int], units: int, n: int) -> Ints:
        """Tokens int64 [layers, units] for a text of n, in the order of ``layers``.

        UserError, in one line, unless the budgets are for this model (empty: any), sharing, layers
        and number of units, and none is above n.
        """
        for word, own, other in (("model", self.model, model), ("share", self.share, share)):
            if own and other and own != other:
                raise UserError(f"budgets {self.name}: made for {word} {own}, asked for is {other}")
        rows, per_layer = self.budgets.shape
        known = self.layers or tuple(layers)
        if rows != len(known) or (missing := [x for x in layers if x not in known]):
            wanted = f"a row for each of the {len(layers)} layers {', '.join(map(str, layers))}"
            found = f"none for layer {missing[0]}" if rows == len(known) else f"{rows} rows"
            raise UserError(f"budgets {self.name}: {found}, expected {wanted}")
        if per_layer != units:
            raise UserError(f"budgets {self.name}: {per_layer} units a layer, expected {units}")
        if not self.in_tokens:
            total = self.budgets.size * budget_tokens(self.mean, n, n)
            tokens = share_out(self.budgets.ravel(), total, np.full(self.budgets.size, n))
        elif self.budgets.max() > n:
            raise UserError(
                f"budgets {self.name}: budget {self.budgets.max()}: expected 1 to {n} tokens for a "
                f"text of {n} tokens"
            )
        else:
            tokens = self.budgets.astype(np.int64)
        return tokens.reshape(self.budgets.shape)[[known.index(layer) for layer in layers]]


#: What may be asked for: one budget, several, or all.
Asked: TypeAlias = Budget | UnitBudgets | NDArray[Any]
Budgets: TypeAlias = float | UnitBudgets | NDArray[Any] | Sequence[Asked] | Literal["all"]


def share_out(weight: NDArray[Any], total: int, room: Ints) -> Ints:
    """Whole numbers in 1 … room near weight / sum(weight) * total, adding up to ``total``.

    Water-filling: a share below 1 or above the room is cut to that limit; then largest remainders,
    the first among equals.
    """
    weight = np.asarray(weight, np.float64)
    ideal = np.clip(weight * _filling(weight, total, 1.0, room), 1, room)
    # A product may fall short of a whole number by its rounding.
    split = np.floor(ideal + 1e-9).astype(np.int64)
    for _ in range(len(weight) + 1):
        left = total - int(split.sum())
        if left <= 0:
            break
        open_units = np.flatnonzero(split < room)
        order = open_units[np.argsort(split[open_units] - ideal[open_units], kind="stable")]
        if left >= len(order):
            # weights of 0 get nothing from water-filling; the rest is shared equally
            split[order] += np.minimum(left // len(order), room[order] - split[order])
        else:
            split[order[:left]] += 1
    return split


def _filling(weight: NDArray[Any], total: float, least: float, room: NDArray[Any]) -> float:
    """The factor c at which sum of clip(c weight, least, room) comes to ``total`` from below."""
    least_of_all = weight[weight > 1e-12 * weight.max()].min(initial=np.inf)
    low, high = 0.0, (2.0 * total * len(weight) + np.max(room)) / min(least_of_all, 1e300)
    for _ in range(200):
        middle = (low + high) / 2
        filled = np.clip(weight * middle, least, room).sum()
        low, high = (middle, high) if filled <= total else (low, middle)
    return low


def as_asked(budgets: Any) -> list[Budget | UnitBudgets]:
    """One budget or several as a list; arrays [layers, units] become budgets by unit."""
    several = isinstance(budgets, Sequence) or np.ndim(budgets) == 1
    if isinstance(budgets, UnitBudgets) or not several or isinstance(budgets, str):
        budgets = [budgets]
    found: list[Budget | UnitBudgets] = []
    for one in budgets:
        try:
            array = np.array(0 if isinstance(one, UnitBudgets) else one)
        except ValueError:  # rows of several lengths
            array = np.zeros(0, int)
        found.append(UnitBudgets(f"array {len(found)}", array) if array.ndim else one)
    names = [(b.name, b.mean) for b in found if isinstance(b, UnitBudgets)]
    if len(set(names)) < len(names):
        twice = next(one for one in names if names.count(one) > 1)
        raise UserError(f"budgets {twice[0]}, mean {twice[1]:g}: each may be given once")
    return found


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a result that budgets make.

    labels: tokens, or, where traces of several lengths are asked for shares, the shares; of budgets
    by unit their mean, rounded. splits: ``equal``, or the name of budgets by unit. tokens: of each
    trace, for each of its units int64 [budgets]; 0 where the trace is too short. Units that have
    the same budgets share one array. facts: what a result's attributes say of them.
    """

    labels: NDArray[Any]
    splits: tuple[str, ...]
    tokens: tuple[list[Ints], ...]
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def by_unit(self) -> bool:
        """Whether any budget differs by unit."""
        return any(name != "equal" for name in self.splits)

    @property
    def uniform(self) -> bool:
        """Whether every unit of every trace has the tokens that the labels say, if any."""
        return not self.by_unit and self.labels.dtype.kind != "f"

    def means(self, trace: int) -> Ints:
        """Each column's mean over a trace's units, tokens, rounded; 0: the trace is too short."""
        return np.rint(np.mean(self.tokens[trace], axis=0)).astype(np.int64)

    def places(self, trace: int) -> tuple[Ints, list[int]]:
        """Which columns a trace has, and where each stands in a result on that trace alone.

        There, columns of equal budgets that come to the same tokens are one.
        """
        there = np.flatnonzero(self.tokens[trace][0])
        keys = [
            int(self.tokens[trace][0][c]) if self.splits[c] == "equal" else -1 - c
            for c in there.tolist()
        ]
        own = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        return there, [own[key] for key in keys]

    def slots(self, trace: int, layers: int) -> Ints | None:
        """Tokens of every unit, [layers, units, budgets]; None where no budget differs by unit."""
        if not self.by_unit:
            return None
        table = np.stack(self.tokens[trace])
        return table.reshape(layers, -1, table.shape[1])

    def coordinates(self) -> dict[str, Any]:
        """The labels and, where some are by unit, the splits."""
        return {"budget": self.labels, "split": list(self.splits) if self.by_unit else None}


def columns_of(
    budgets: Budgets,
    traces: Sequence[Trace],
    starts: Sequence[int],
    units: Sequence[Sequence[Unit]],
    share: str,
) -> Columns:
    """What budgets come to on the units of some traces (``units[trace]``, by layer).

    ``starts``: each trace's first decode step.
    """
    if isinstance(budgets, str):
        if budgets != "all":
            raise UserError(f"budgets {budgets!r}: expected a list of budgets, or 'all'")
        every = np.arange(1, max(trace.n for trace in traces) + 1)
        each = [np.where(every <= trace.n, every, 0) for trace in traces]
        lists = tuple([one] * len(here) for one, here in zip(each, units, strict=True))
        return Columns(every, ("equal",) * len(every), lists)
    asked = as_asked(budgets)
    if not asked:
        raise UserError("no budget given; expected tokens (64) or fractions of n (0.05)")
    places = list(zip(traces, starts, units, strict=True))
    here: list[list[Any]] = [
        [
            _resolved(b, trace, some, share)
            if isinstance(b, UnitBudgets)
            else budget_tokens(b, trace.n, p)
            for trace, p, some in places
        ]
        for b in asked
    ]
    means = np.array([[round(np.mean(tokens)) for tokens in some] for some in here])
    shares = bool((means != means[:, :1]).any())
    plain = [b.mean if isinstance(b, UnitBudgets) else b for b in asked]
    labels = budget_labels(plain) if shares else means[:, 0].tolist()
    if shares and {type(b) for b in plain if b == 1} >= {int, float}:
        raise UserError("budgets 1 and 1.0: one token and all of a trace, ask for one of the two")
    # Equal budgets of one label are one column.
    named = [one.name if isinstance(one, UnitBudgets) else "equal" for one in asked]
    keys = [
        (id(b) if isinstance(b, UnitBudgets) else "equal", label)
        for b, label in zip(asked, labels, strict=True)
    ]
    first = [i for i, key in enumerate(keys) if keys.index(key) == i]
    return Columns(
        np.array(labels)[first],
        tuple(named[i] for i in first),
        tuple(_lists([here[i][o] for i in first], len(one[2])) for o, one in enumerate(places)),
        budget_facts(plain, labels),
    )


def _resolved(budget: UnitBudgets, trace: Trace, units: Sequence[Unit], share: str) -> Ints:
    layers = list(dict.fromkeys(unit.layer for unit in units))
    model = (trace.manifest["model"] or {}).get("name") or ""
    return budget.resolve(model, share, layers, len(units) // len(layers), trace.n)


def _lists(tokens: Sequence[int | Ints], units: int) -> list[Ints]:
    """Of each unit the tokens of every budget, from one number or [layers, units] for each."""
    if all(isinstance(one, int) for one in tokens):
        return [np.array(tokens)] * units
    table = np.stack([np.broadcast_to(np.ravel(one), units) for one in tokens], axis=1)
    same = {row.tobytes(): row for row in table}
    return [same[row.tobytes()] for row in table]
