"""Checks certificates of the offline optimum; short on purpose, and shares no code with solvers.

A certificate holds, for units of a trace and budgets k, a schedule (after which step each token
leaves) and prices λ_t >= 0. Checking it reads every row once and does three things in integers:

1. the schedule is one: a token leaves no sooner than it came (prompt tokens: at the prompt's end or
   later), and after every step from the end of the prompt to the one before the last, at most k
   tokens are left;
2. its value: the mass of the tokens that are there, over the decode steps t >= p, and each step's
   own token;
3. the bound that the prices prove for *every* schedule,

       D(λ) = k sum_t λ_t + sum_j max_e sum_{t = max(j+1, p) ... e} (A[t, j] - λ_t) + sum_t A[t, t]:

   a schedule holds at most k older tokens in step t, so charging λ_t for each and giving back k λ_t
   does not lower its value; what is left is one independent choice of e for each token
   (proofs/13-dual-certificate.md).

A certificate of value weights speaks of the rows of `h2osim.optima.weighing` in the place of A,
made anew from the trace. So value <= optimum <= D(λ), whoever made the file. A sha256 over the
content tells a damaged file from a wrong one.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from h2osim.optima.weighing import WEIGHTS, weighed
from h2osim.support.errors import UserError
from h2osim.support.reading import Count, Sha256, parse
from h2osim.traces.files import map_tensors, read_header
from h2osim.traces.manifest import SHARES
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Unit

FORMAT = "h2osim-certificate 1"
TENSORS = {
    "evicted_at": "I32", "price": "I64", "kept": "I64", "bound": "I64", "mass": "I64",
    "layers": "I64", "budgets": "I64",
}  # fmt: skip


class Facts(Struct):
    """What a certificate says of the trace it speaks of."""

    trace: str
    n: Count
    group_size: Count
    sha256: list[Sha256 | None]
    prompt_len: int
    share: Annotated[str, Meta(pattern=rf"^({'|'.join(SHARES)})\Z")]
    weights: Annotated[str, Meta(pattern=rf"^({'|'.join(WEIGHTS)})\Z")] = "mass"


@dataclass(frozen=True)
class Certified:
    """What has been checked for one unit and budget, in fixed point: kept <= optimum <= bound.

    It speaks of decoding from step `prompt_len` on, with caches shared as `share` says.
    """

    unit: str
    layer: int
    index: int
    budget: int
    prompt_len: int
    share: str
    kept: int
    bound: int
    mass: int
    weights: str = "mass"

    @property
    def gap(self) -> float:
        """(bound - kept) / bound: how far the schedule can be from the optimum at most."""
        return (self.bound - self.kept) / self.bound if self.bound else 0.0


def certify(path: str | os.PathLike[str], trace: Trace) -> list[Certified]:
    """Check a certificate against its trace; raises UserError at the first thing that is wrong."""
    name = f"certificate {Path(path)}"
    facts, tensors = _read(Path(path), name, trace)
    layers, each = tensors["layers"].tolist(), tensors["budgets"]
    for key, some in (("layers", layers), ("budgets", each.tolist() if each.ndim == 1 else [])):
        if len(set(some)) < len(some):
            raise UserError(f"{name}: {key} has an entry twice")
    for layer in layers:
        if layer not in trace.layers:
            raise UserError(f"{name}: layer {layer} is not in trace {trace.name}")
    for key, expected in trace_facts(trace, layers).items():
        if facts[key] != expected:
            raise UserError(
                f"{name}: its {key} is {facts[key]!r}, that of the trace {expected!r}"
            )
    n, p, share = trace.n, facts["prompt_len"], facts["share"]
    if not 1 <= p <= max(1, n - 1):
        raise UserError(f"{name}: prompt length {p!r}, expected 1 to {max(1, n - 1)}")
    for k in each.ravel().tolist():
        if not 1 <= k <= n:
            raise UserError(f"{name}: budget {k}, expected 1 to {n}")
    weights = facts.get("weights", "mass")
    units = [unit for unit in weighed(trace, share, weights) if unit.layer in layers]
    for layer in layers:
        trace.check_layer(layer)
    checked = []
    for unit in units:
        at = (layers.index(unit.layer), unit.index)
        gone, price = tensors["evicted_at"][at], tensors["price"][at]
        where = f"{name}, {unit.label}"
        budgets = (each if each.ndim == 1 else each[at]).tolist()
        for b, k in enumerate(budgets):
            _feasible(f"{where}, budget {k}", gone[b].astype(np.int64), price[b], k, p)
        mass, kept, bound = _read_rows(unit, gone, price, budgets, p)
        _same(f"{where}: mass", int(tensors["mass"][at]), mass)
        for b, k in enumerate(budgets):
            _same(f"{where}, budget {k}: kept", int(tensors["kept"][at][b]), kept[b])
            _same(f"{where}, budget {k}: bound", int(tensors["bound"][at][b]), bound[b])
            if kept[b] > bound[b]:  # no file can bring this about, only a fault in this module
                raise UserError(
                    f"{where}, budget {k}: the schedule keeps {kept[b]}, more than the bound "
                    f"{bound[b]}: one of them was reckoned wrongly"
                )
            checked.append(
                Certified(
                    unit.label, unit.layer, unit.index, k, p, share, kept[b], bound[b], mass,
                    weights,
                )
            )
    return checked


def trace_facts(trace: Trace, layers: Sequence[int]) -> dict[str, Any]:
    """What ties a certificate to a trace: name, length, grouping and the sha256 of the layers."""
    entries = {entry["index"]: entry.get("sha256") for entry in trace.manifest["layers"]}
    return {
        "trace": trace.name, "n": trace.n, "group_size": trace.group_size,
        "sha256": [entries[layer] for layer in layers],
    }  # fmt: skip


def digest(facts: str, tensors: Mapping[str, NDArray[Any]]) -> str:
    """sha256 over the facts and the name, dtype, shape and bytes of every tensor, by name."""
    running = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = np.ascontiguousarray(tensors[name])
        running.update(f"\n{name} {tensor.dtype.str} {tensor.shape}\n".encode())
        running.update(tensor.data)
    return running.hexdigest()


def _read(
    path: Path, name: str, trace: Trace
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Facts and tensors of a certificate that is as it was written, and of the size of the trace.

    Its header is held against the trace before any memory is taken for it.
    """
    metadata, slots = read_header(path, name)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{name}: format {metadata.get('format')!r}, expected {FORMAT!r}")
    for key in {**TENSORS, **slots}:
        found, expected = slots[key].dtype if key in slots else "none", TENSORS.get(key, "none")
        if found != expected:
            raise UserError(f"{name}: tensor {key}: found {found}, expected {expected}")
    text = metadata.get("facts", "")
    facts = parse(text.encode(), Facts, f"{name}, facts")
    layers = math.prod(slots["layers"].shape)
    by_unit = len(slots["budgets"].shape) == 3
    budgets = slots["budgets"].shape[2] if by_unit else math.prod(slots["budgets"].shape)
    for key, count, most in (("layers", layers, len(trace.layers)), ("budgets", budgets, trace.n)):
        if not 1 <= count <= most:
            raise UserError(f"{name}: {key}: found {count} of them, expected 1 to {most}")
    units = len(trace.units(facts["share"])) // len(trace.layers)
    block = (layers, units, budgets)
    shapes = {
        "evicted_at": (*block, trace.n), "price": (*block, trace.n), "kept": block, "bound": block,
        "mass": block[:2], "layers": block[:1], "budgets": block if by_unit else block[2:],
    }  # fmt: skip
    for key, shape in shapes.items():
        if slots[key].shape != shape:
            raise UserError(f"{name}: {key} has shape {slots[key].shape}, expected {shape}")
    tensors = map_tensors(path, slots)
    _same(f"{name}: sha256", metadata.get("sha256"), digest(text, tensors))
    return facts, tensors


def _feasible(
    where: str, gone: NDArray[np.int64], price: NDArray[np.int64], k: int, p: int
) -> None:
    n = len(gone)
    came = np.maximum(np.arange(n), p - 1)
    off = np.flatnonzero((gone < came) | (gone > n))
    if len(off):
        j = int(off[0])
        raise UserError(f"{where}: token {j} leaves at {gone[j]}, expected {came[j]} to {n}")
    leave = np.bincount(gone, minlength=n + 1)[:n].cumsum()
    left = np.arange(1, n + 1) - leave
    off = np.flatnonzero(left[p - 1 : n - 1] > k)
    if len(off):
        t = int(off[0]) + p - 1
        raise UserError(f"{where}: {left[t]} tokens are left after step {t}, expected at most {k}")
    off = np.flatnonzero(price < 0)
    if len(off):
        raise UserError(f"{where}: the price of step {int(off[0])} is {price[off[0]]}, below 0")
    # beyond this no sum could leave int64, nor could any price be worth stating
    if int(price.max(initial=0)) > 1 << 40:
        raise UserError(f"{where}: a price is above 2^40 (2^16 in units of attention mass)")
    if price[:p].any():
        raise UserError(f"{where}: a step of the prompt has a price, expected 0 before step {p}")


def _read_rows(
    unit: Unit, gone: NDArray[np.int32], price: NDArray[np.int64], budgets: Sequence[int], p: int
) -> tuple[int, list[int], list[int]]:
    """One pass over the rows, all budgets at once: whole mass, values, bounds."""
    count, n = gone.shape
    worth = np.zeros((count, n), np.int64)
    best = np.zeros((count, n), np.int64)
    kept = np.zeros(count, np.int64)
    mass = own = 0
    for t in range(p, n):
        row = unit.row(t)
        older = row[:t]
        mass += int(row.sum())
        own += int(row[t])
        kept += (gone[:, :t] >= t) @ older
        now = worth[:, :t]
        now += older - price[:, t, None]
        np.maximum(best[:, :t], now, out=best[:, :t])
    values = [int(x) + own for x in kept]
    bounds = [k * int(price[b].sum()) + int(best[b].sum()) + own for b, k in enumerate(budgets)]
    return mass, values, bounds


def _same(what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise UserError(f"{what}: the file says {found}, the trace gives {expected}")
