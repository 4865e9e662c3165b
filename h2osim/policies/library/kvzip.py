"""KVzip: what the model looks at when it repeats its context."""

import numpy as np

from h2osim.attention.fixed_point import UNIT
from h2osim.policies.declaration import Policy
from h2osim.policies.inputs import Numbers, Values
from h2osim.policies.parameters import shared
from h2osim.traces.unit import Unit


def repeated(unit: Unit, values: Values) -> Numbers:
    """The largest attention of a head that a token gets in any row after the prompt."""
    found = np.zeros(unit.n)
    for t in range(int(values["p"]), unit.n):
        np.maximum(found[: t + 1], unit.head_rows(t).max(axis=0) * UNIT, out=found[: t + 1])
    return found


def rank(repeated: float, pos: int, p: int) -> float:
    if pos >= p:
        return 2.0
    return repeated


POLICY = Policy(
    name="kvzip",
    summary="oracle: keep the prompt's tokens of largest attention from any later row",
    source="arXiv 2505.23416",
    params=(shared("when", "prompt"),),
    inputs={"repeated": repeated},
    rank=rank,
    oracle=True,
    inclusive=True,
    notes="The source lets the model repeat its context in a second pass and keeps what that looks "
    "at: record a text that follows its own copy, with the first as the prompt. On any other text "
    "it is an oracle of what comes. The source ranks all heads of the model together.",
)
