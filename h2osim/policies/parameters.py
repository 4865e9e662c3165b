"""Parameters that several policies share, and windows in tokens."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

from h2osim.support.parameters import EVERY, Param, Value


def resolve_window(window: float, k: int) -> int:
    """A window in tokens: itself from 1 on, its share of the budget (rounded down) below 1.

    Decimal fractions are taken as written, so that 0.29 of 100 is 29.
    """
    return int(window) if window >= 1 else math.floor(Fraction(str(window)) * k)


#: The shared parameters; a policy picks its default with :func:`shared`.
_SHARED = {
    "sinks": Param(
        "sinks", 0, "oldest tokens that are never evicted (if all that is protected fits)"
    ),
    "recent": Param("recent", 0.5, "newest tokens that are never evicted", "window"),
    "scores": Param(
        "scores",
        "cached",
        "what the policy sees of a row: the recorded one, or one renormalised over the cache",
        "choice",
        choices=("full", "cached"),
    ),
    "gamma": Param("gamma", 0.98, "decay of the accumulated score a step", "float", 0, 1),
    "window": Param("window", 64, "observation window: rows of the prompt's end", "int", 1),
    "kernel": Param(
        "kernel", 5, "keys averaged around each key (an even width acts as the next odd)", "int", 1
    ),
    "when": Param(
        "when",
        "always",
        "evict in every step from the prompt's end on, then alone, or then every m steps",
        "when",
        choices=("always", "prompt", "every:m"),
    ),
    "heads": Param(
        "heads",
        "sum",
        "what a token is shown of the heads that share the cache: their sum, their mean (which "
        "decides as the sum does), or the largest of them times their number",
        "choice",
        choices=("sum", "max", "mean"),
    ),
    "seed": Param("seed", 0, "seed of the per-token hash", "int", 0, 2**53),
}


#: What every policy takes that they make sense for, and lists only where its default is another.
COMMON = (_SHARED["when"], _SHARED["heads"])


def period(when: str) -> int:
    """The steps between two in which a policy acts; 0: it acts at the prompt's end alone."""
    many = re.fullmatch(EVERY, when)
    return int(many[1]) if many else int(when == "always")


def shared(name: str, default: Value, **changes: Any) -> Param:
    """A shared parameter with this policy's own default (and, if need be, range or words)."""
    known = _SHARED[name]
    return Param(**{**known.__dict__, "default": default, **changes})
