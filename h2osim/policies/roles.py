"""The roles that a policy's rules play, and what each of them may ask for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

#: What the policy is shown of a row: see :class:`Policy`.
SCORE_KINDS = ("full", "cached")

Rule = Callable[..., Any]

#: The roles a rule can play and the values it may name besides parameters, state and inputs.
_SCALARS = {"t", "k", "p", "n", "heads"}

_TOKEN = _SCALARS | {"pos", "age"}

ROLES: Mapping[str, set[str]] = {
    "init": _TOKEN,
    "update": _TOKEN | {"a", "a_old"},
    "rank": _TOKEN,
    "rank_cache": _SCALARS | {"positions", "ranks", "head_scores", "head_row"},
    "keep": _SCALARS | {"size"},
    "visible": _TOKEN,
    "linger": _SCALARS,
}

_PER_TOKEN = {"init", "update", "rank", "rank_cache"}  # these also see state and inputs


@cache
def arguments(rule: Rule) -> tuple[str, ...]:
    """The names of a rule's arguments."""
    return tuple(inspect.signature(rule).parameters)
