"""Prompts to record, from a file of JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from h2osim.support.errors import UserError
from h2osim.support.reading import json_lines

_Text = Annotated[str, Meta(min_length=1)]


class _Line(Struct):
    prompt: _Text | None = None
    text: _Text | None = None
    name: _Text | None = None


def read_prompts(path: Path, option: str) -> dict[str, str]:
    """Prompts by name: the line's "name", else the file's name and the line's number.

    A line is ``{"prompt": "…"}`` or ``{"text": "…"}``; what else it holds is passed over. UserError
    in one line that names the line.
    """
    found: dict[str, str] = {}
    for number, where, line in json_lines(path, _Line, option):
        given = [line[key] for key in ("prompt", "text") if line.get(key) is not None]
        if len(given) != 1:
            raise UserError(f"{where}: found {len(given)} of prompt and text, expected one")
        name = line.get("name") or f"{path.stem}-{number:04d}"
        if name in found:
            raise UserError(f"{where}: the name {name!r} is taken")
        found[name] = given[0]
    if not found:
        raise UserError(f"{option} {path}: no prompt in it")
    return found
