"""Parameters of policies: their kinds, ranges and defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from h2osim.support.errors import UserError

Value = int | float | str


@dataclass(frozen=True)
class Param:
    """A typed, ranged, documented parameter of a policy.

    ``kind`` is ``int``, ``float``, ``choice`` or ``window``: a number of tokens from 1 on, a share
    of the budget below 1 (rounded down to tokens).
    """

    name: str
    default: Value
    doc: str
    kind: Literal["int", "float", "choice", "window"] = "int"
    low: float = 0
    high: float = 2**31 - 1
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The accepted values, in words."""
        if self.kind == "choice":
            return " | ".join(self.choices)
        kind = {"int": "whole number", "float": "number", "window": "tokens, or share below 1"}
        top = "" if self.high == 2**31 - 1 else f" to {self.high:g}"
        return f"{kind[self.kind]}, {self.low:g}{top or ' up'}"

    def read(self, text: Value, policy: str) -> Value:
        """Turn what the user wrote into a value, or raise :class:`UserError`."""
        if self.kind == "choice":
            if text in self.choices:
                return text
            raise self._wrong(text, policy)
        try:
            number = float(text)
        except ValueError:
            raise self._wrong(text, policy) from None
        whole = number.is_integer()
        fits = self.low <= number <= self.high
        if self.kind == "int" or (self.kind == "window" and number >= 1):
            fits = fits and whole
        if not fits or math.isnan(number):
            raise self._wrong(text, policy)
        return number if self.kind == "float" or not whole else int(number)

    def _wrong(self, found: Value, policy: str) -> UserError:
        return UserError(f"policy {policy}: {self.name}={found}: expected {self.range}")


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
        "evict in every step, or once at the prompt's end and never again",
        "choice",
        choices=("always", "prompt"),
    ),
    "seed": Param("seed", 0, "seed of the per-token hash", "int", 0, 2**53),
}


def shared(name: str, default: Value, **changes: Any) -> Param:
    """A shared parameter with this policy's own default (and, if need be, range or words)."""
    known = _SHARED[name]
    return Param(**{**known.__dict__, "default": default, **changes})
