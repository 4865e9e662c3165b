"""The roles that a policy's rules play: what each may ask for, what it answers, what stands in.

This table is the only one. A declaration is checked against it, the naive engine calls the rules
by it, and the translators to numba and CUDA write their wrappers from it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: What the policy is shown of a row: see :class:`~h2osim.policies.declaration.Policy`.
SCORE_KINDS = ("full", "cached")

Rule = Callable[..., Any]

#: Among a policy's whole parameters: :func:`~h2osim.policies.parameters.period` of its ``when``. No
#: rule can ask for it.
PERIOD = "(period)"

#: The last arguments of compiled rules of every role; ``n`` is for rules that know the whole text.
STEP = ("t", "k", "p", "n", "heads")


#: Beside an input ``x``, rules may ask for that of the newest token, ``x_now``, and for the mean
#: over the cached tokens, ``x_mean``.
NOW, MEAN = "_now", "_mean"


class Own(NamedTuple):
    """The state of a unit's tokens, as compiled rules get it.

    Of a token the vectors stand one after the other; ``spans[i]`` is where vector i begins.
    """

    numbers: NDArray[np.float64]  # [fields, tokens]
    vectors: NDArray[np.float64]  # [tokens, widths]
    spans: NDArray[np.int64]  # [vectors + 1]


class Given(NamedTuple):
    """The inputs of a unit's tokens, likewise, and their means over the cached tokens."""

    numbers: NDArray[np.float64]  # [inputs, tokens]
    vectors: NDArray[np.float64]  # [tokens, widths]
    spans: NDArray[np.int64]  # [vectors + 1]
    means: NDArray[np.float64]  # [inputs]
    vector_means: NDArray[np.float64]  # [widths]


@dataclass(frozen=True)
class Role:
    """What a rule in a role is asked about, and what it answers.

    ``about`` is a token (then ``pos`` and ``age`` are known), a step, the whole cache, the cached
    tokens as a batch (which is not compiled), or the run (then ``t`` is not known). ``values`` are
    the names that only this role has. ``reads`` says what it sees of the tokens' own numbers.
    ``gives`` is the kind of its answer: new state, a number, ranks, or nothing (ranks and state
    are written into arrays). ``default`` stands for the answer where a policy has no such rule: a
    name among STEP, or a constant; None leaves things as they are.
    """

    about: Literal["token", "step", "cache", "batch", "run"]
    gives: Literal["state", "float", "int", "bool", "nothing", "ranks"]
    values: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    default: str | float | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """What a compiled rule is passed, in this order; ``pos`` where it is about a token."""
        own = ("state", "inputs") if self.reads else ()
        token = ("pos",) if self.about == "token" else ()
        return (*own[:1], *self.values, *own[1:], "ints", "floats", *token, *STEP)

    def names(self, state: Iterable[str], inputs: Iterable[str]) -> set[str]:
        """What a rule may ask for by name, besides the policy's parameters."""
        inputs = list(inputs)
        known = {*STEP, *self.values} | ({"pos", "age"} if self.about == "token" else set())
        known |= {*state} if "state" in self.reads else set()
        known |= {x + end for x in inputs for end in ("", NOW)} if "inputs" in self.reads else set()
        known |= {x + MEAN for x in inputs} if "state" in self.reads else set()
        return known - ({"t"} if self.about == "run" else set())


_BOTH = ("state", "inputs")

ROLES: Mapping[str, Role] = {
    "init": Role("token", "state", reads=("inputs",)),
    "update": Role("token", "state", ("a", "a_old"), _BOTH),
    "update_cache": Role("cache", "nothing", ("positions", "head_scores", "head_row"), _BOTH),
    "rank": Role("token", "float", reads=_BOTH, default=0.0),
    "rank_cache": Role(
        "cache", "nothing", ("positions", "ranks", "head_scores", "head_row"), _BOTH
    ),
    "rank_batch": Role(
        "batch", "ranks", ("positions", "head_scores", "head_row", "memory"), _BOTH
    ),
    "keep": Role("step", "int", ("size",), default="k"),
    "visible": Role("token", "bool", default=True),
    "linger": Role("run", "int", default=-1),
}


#: The roles whose rules are compiled.
COMPILED = tuple(name for name, role in ROLES.items() if role.about != "batch")


@cache
def arguments(rule: Rule) -> tuple[str, ...]:
    """The names of a rule's arguments."""
    return tuple(inspect.signature(rule).parameters)


def ask(rules: Mapping[str, Rule], role: str, known: Mapping[str, Any]) -> Any:
    """The answer of a policy's rule, which picks what it names from ``known``, or the default.

    In a step in which the policy does not act, it keeps what is there.
    """
    if role == "keep" and known["t"] != known["p"] - 1:
        period = known[PERIOD]
        if period == 0 or (known["t"] - known["p"] + 1) % period:
            return known["size"]
    if role in rules:
        return rules[role](*[known[name] for name in arguments(rules[role])])
    default = ROLES[role].default
    return known[default] if isinstance(default, str) else default
