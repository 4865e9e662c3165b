"""Whether what is to be continued is what was begun: two identities, as plain values, compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from h2osim.support.errors import UserError


def check_same(
    found: Mapping[str, Any],
    asked: Mapping[str, Any],
    where: object,
    what: str = "sweep",
    option: str = "--output",
) -> None:
    """UserError naming the first thing in which two identities differ."""
    for part in dict.fromkeys([*asked, *found]):
        here, there = found.get(part), asked.get(part)
        if here != there:
            at, old, new = _difference(part, here, there)
            raise UserError(
                f"{where}: holds another {what}: {at} is {_short(old)}, asked for is "
                f"{_short(new)}; give the same command to continue it, or another {option}"
            )


def _difference(at: str, found: Any, asked: Any) -> tuple[str, Any, Any]:
    """Where two values differ first, in words, and the two parts that differ there."""
    if isinstance(found, list) and isinstance(asked, list):
        pairs = enumerate(zip(found, asked, strict=False))
        place = next((i for i, (a, b) in pairs if a != b), None)
        if place is None:
            return at, f"{len(found)} long", f"{len(asked)} long"
        word = f"{at} {place + 1} of {len(found)}"
        return _difference(word, found[place], asked[place])
    if isinstance(found, Mapping) and isinstance(asked, Mapping):
        key = next(k for k in [*asked, *found] if found.get(k, ...) != asked.get(k, ...))
        named = f" ({found['name']})" if "name" in found and key != "name" else ""
        return _difference(f"{at}{named}, {key}", found.get(key), asked.get(key))
    return at, found, asked


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
