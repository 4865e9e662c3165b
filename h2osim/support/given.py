"""What callers give: whole numbers, and the bytes of a text."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from math import inf
from typing import Any

from h2osim.support.errors import UserError


def whole(what: str, value: Any, least: int = 0, most: int | None = None) -> int:
    """A whole number as an int, also one of NumPy's; UserError naming what it is for.

    Refused: a fraction, a truth value, text, and numbers outside least ... most.
    """
    expected = f"a whole number from {least} on" if most is None else f"{least} ... {most}"
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{what}: found {value!r}, expected {expected}") from None
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise UserError(f"{what}: found {value}, expected {expected}")
    return number


def whole_numbers(what: str, values: Any) -> list[int] | None:
    """Several whole numbers, from 0 on, or None; UserError naming what they are for."""
    if values is None:
        return None
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"{what}: found {values!r}, expected whole numbers, as in [0, 9]")
    return [whole(what, value) for value in values]


def temperature_of(value: Any) -> float:
    """A temperature as a float; UserError where logits divided by it are no finite float32."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = inf
    if not 1e-6 <= number < inf:
        raise UserError(f"temperature: found {value}, expected a finite number, 1e-6 or more")
    return number


def printable(name: str) -> str:
    """A file's name as UTF-8 can hold it: bytes that are no UTF-8 are written out, ``\\udcff``."""
    return name.encode("utf-8", "backslashreplace").decode()


def utf8(text: str, what: str) -> bytes:
    """The UTF-8 bytes of a text; UserError where it holds half of a surrogate pair."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        found = ascii(text[error.start])
        raise UserError(f"{what}: found {found}, expected characters that UTF-8 has") from None


def decode(data: bytes, where: str) -> tuple[str, bool]:
    """The UTF-8 text of a file's bytes, line ends as they are, and whether a byte-order mark was
    left out in front of it.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start})") from None
    return text.removeprefix("\ufeff"), text.startswith("\ufeff")
