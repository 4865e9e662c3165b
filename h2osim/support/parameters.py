"""Parameters that users write as text, ``name:parameter=value,…``: of policies and generators."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from h2osim.support.errors import UserError
from h2osim.support.wording import near

Value = int | float | str
EVERY = r"every:([1-9]\d{0,6})"
"""Every m steps, as the parameter ``when`` writes it."""


class Arrays(str):
    """The path of a .npz file, and the arrays in it by name (``content``), read-only."""

    content: Mapping[str, NDArray[Any]] = MappingProxyType({})

    @classmethod
    def read(cls, path: str, owner: str) -> Arrays:
        """The arrays of a file; UserError, naming the owner, where it holds none."""
        found = cls(path)
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as opened:
                found.content = MappingProxyType(dict(opened))
        except OSError as error:
            why = error.strerror or "it is no .npz file"
            raise UserError(f"{owner}={path}: {why}; expected a .npz file of arrays") from None
        except Exception:  # what zipfile, zlib and NumPy make of damage is of many kinds
            raise UserError(f"{owner}={path}: expected a .npz file of arrays") from None
        for array in found.content.values():
            array.flags.writeable = False
        return found


@dataclass(frozen=True)
class Param:
    """A typed, ranged, documented parameter of a policy or of a generator of traces.

    ``kind`` is ``int``, ``float``, ``choice``, ``window``: a number of tokens from 1 on, a share
    of the budget below 1 (rounded down to tokens), or ``when``: a choice in which ``every:m``
    stands for ``every:1``, ``every:2``, …; or ``arrays``: the path of a .npz file, "" for none.
    """

    name: str
    default: Value
    doc: str
    kind: Literal["int", "float", "choice", "window", "when", "arrays"] = "int"
    low: float = 0
    high: float = 2**31 - 1
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The accepted values, in words."""
        if self.kind == "arrays":
            return "a .npz file"
        if self.choices:
            return " | ".join(self.choices)
        kind = {"int": "whole number", "float": "number", "window": "tokens, or share below 1"}
        top = "" if self.high == 2**31 - 1 else f" to {self.high:g}"
        return f"{kind[self.kind]}, {self.low:g}{top or ' up'}"

    def read(self, text: Any, owner: str) -> Value:
        """What the user wrote as a value; UserError, naming the owner, where it does not fit."""
        if self.kind == "arrays":
            return Arrays.read(str(text), f"{owner}: {self.name}") if text else Arrays()
        if self.choices:
            many = self.kind == "when" and re.fullmatch(EVERY, str(text))
            if ("every:m" if many else text) in self.choices and text != "every:m":
                return str(text)
            raise self._wrong(text, owner)
        try:
            number = float(text)
        except (TypeError, ValueError):
            raise self._wrong(text, owner) from None
        whole = number.is_integer()
        fits = self.low <= number <= self.high
        if self.kind == "int" or (self.kind == "window" and number >= 1):
            fits = fits and whole
        if not fits or math.isnan(number):
            raise self._wrong(text, owner)
        return number if self.kind == "float" or not whole else int(number)

    def _wrong(self, found: Any, owner: str) -> UserError:
        return UserError(f"{owner}: {self.name}={found}: expected {self.range}")


def split_call(text: str, kind: str) -> tuple[str, dict[str, str]]:
    """Read ``name:parameter=value,…``: the name, and the parameters as texts.

    ``kind`` says in an error what the text should be: a policy, a generator.
    """
    name, _, rest = text.strip().partition(":")
    given: dict[str, str] = {}
    for part in filter(None, (word.strip() for word in rest.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not value:
            raise UserError(f"{kind} {text!r}: {part!r} is not of the form parameter=value")
        if key in given:
            raise UserError(f"{kind} {text!r}: parameter {key} given twice")
        given[key] = value
    return name, given


def named(params: Sequence[Param], name: str, owner: str) -> Param:
    """The parameter of this name; UserError with near misses if there is none."""
    known = {param.name: param for param in params}
    if name not in known:
        raise UserError(
            f"{owner}: unknown parameter {name!r}"
            + (near(name, known) or f"; it takes {', '.join(known) or 'none'}")
        )
    return known[name]


def values_of(params: Sequence[Param], given: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """The value of every parameter, the default where none is given; UserError on a bad one."""
    for name in given:
        named(params, name, owner)
    return {p.name: p.read(given.get(p.name, p.default), owner) for p in params}
