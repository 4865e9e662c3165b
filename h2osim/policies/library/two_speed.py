"""A slow and a fast average of the attention received, for search: many rules are its corners."""

from __future__ import annotations

import numpy as np

from h2osim.policies.declaration import INF, Policy, fixed_window
from h2osim.policies.inputs import Numbers, Values, value_norm
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param
from h2osim.traces.unit import Unit


def weight(unit: Unit, values: Values) -> Numbers:
    """The L1 norm of the token's value to the power ``value``; not asked for where that is 0."""
    power = float(values["value"])
    return value_norm(unit, values) ** power if power else np.ones(unit.n)


def update(
    slow: float, seen: float, quick: float, a: float, gamma: float, fast: float, power: int
) -> tuple[float, float, float]:
    gain = a if power == 1 else a * a
    return gamma * slow + gain, gamma * seen + 1.0, fast * quick + gain


def rank(
    slow: float, seen: float, quick: float, weight: float, pos: int, age: int, sinks: int,
    recent: int, fast: float, mix: float, prior: float, join: int,
) -> float:  # fmt: skip
    if age < recent or pos < sinks:
        return INF
    lasting = (1.0 - mix) * slow / (seen + prior)
    current = mix * (1.0 - fast) * quick
    return weight * (lasting + current if join == 0 else max(lasting, current))


POLICY = Policy(
    name="two-speed",
    summary="a slow mean of the attention received so far and a fast one, blended",
    source="this project (docs/which-policy.md)",
    params=(
        shared("gamma", 1.0, doc="decay a step of the slow mean"),
        Param("fast", 0.9, "decay a step of the fast mean", "float", 0, 1),
        Param("mix", 0.25, "weight of the fast mean; 1 - mix is the slow one's", "float", 0, 1),
        Param("join", "sum", "how the two make a rank", "choice", choices=("sum", "max")),
        Param("prior", 0.0, "rows without attention that the slow mean starts with", "float"),
        Param("power", 1, "of the attention that is averaged: itself or its square", "int", 1, 2),
        Param("value", 0.0, "power of the value's L1 norm that the rank is multiplied by", "float"),
        shared("recent", 0.25),
        shared("sinks", 0),
        shared("scores", "cached"),
    ),
    state=("slow", "seen", "quick"),
    inputs={"weight": weight},
    needs=lambda values: ("value_norms",) if values["value"] else (),
    update=update,
    rank=rank,
    inclusive=fixed_window,
    notes="Slow: the sum over the rows i so far of gamma^(t-i) A[i, j], divided by the same sum of "
    "ones and `prior`. Fast: (1 - fast) times the sum of fast^(t-i) A[i, j]. `mix=0` decides as "
    "h2o-mean, with a huge `prior` as h2o, `mix=1` as decay, up to the rounding of products. "
    "Where `value` is above 0, value norms are read.",
)
