"""Files of others: regular ones only, and JSON that one schema allows; one line says what is wrong.

A schema is a msgspec type. What is read stays plain dicts and lists: fields that the schema does
not know are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import msgspec

from h2osim.support.errors import UserError
from h2osim.support.given import decode

Index = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]

MOST_TEXT = 1 << 28
"""Bytes of a text, at most."""


def regular(path: Path, where: object) -> int:
    """The size in bytes of a regular file; UserError for a pipe, a device or a folder.

    To open one of those may wait, or never end.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where}: cannot be read: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"{where}: cannot be read: expected a regular file")
    return status.st_size


def sha256_of(path: Path) -> str:
    """SHA-256 of a regular file, in hexadecimal; UserError for a pipe, a device or a folder."""
    regular(path, path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_of(path: Path, where: object) -> bytes:
    """The bytes of a text, also from a pipe or, for ``-``, standard input.

    UserError where there are more than :data:`MOST_TEXT`: some devices never end.
    """
    piped = str(path) == "-"
    if piped and sys.stdin is None:  # it was closed from the start
        raise UserError(f"{where}: found standard input closed, expected a text")
    try:
        with nullcontext(sys.stdin.buffer) if piped else path.open("rb") as file:
            data = file.read(MOST_TEXT + 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MOST_TEXT:
        raise UserError(f"{where}: found more than {MOST_TEXT} bytes, expected a text")
    return data


def json_of(path: Path, schema: Any, most: int) -> Any:
    """The value of a JSON file of at most so many bytes, checked against a schema."""
    if (size := regular(path, path)) > most:
        raise UserError(f"{path}: found {size} bytes, expected at most {most}")
    try:
        return parse(path.read_bytes(), schema, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def parse(data: bytes, schema: Any, where: object) -> Any:
    """The value of a JSON text (RFC 8259, UTF-8), checked against a schema; UserError otherwise.

    Refused are also what Python's own reader lets pass: a name twice in an object, NaN, infinities,
    halves of surrogate pairs, and what is nested or long beyond any use.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_once)
        msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not valid JSON: {error.msg} in line {error.lineno}") from None
    except RecursionError:
        raise UserError(f"{where}: not valid JSON: nested too deep") from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise UserError(f"{where}: not valid JSON: {str(error).split(';')[0]}") from None
    check(value, schema, where)
    return value


def json_lines(path: Path, schema: Any, option: str) -> Iterator[tuple[int, str, Any]]:
    """The number of each line of a JSON-lines file, what messages call it, and its value.

    Empty lines are passed over. option: of the command line, by which the file was given.
    """
    text, _ = decode(text_of(path, f"{option} {path}"), f"{option} {path}")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{option} {path}: line {number}"
            yield number, where, parse(line.encode(), schema, where)


def check(value: Any, schema: Any, where: object) -> None:
    """UserError naming the first field that the schema does not allow: found and expected."""
    try:
        msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        message, _, at = str(error).rstrip("`").partition(" - at `$")
        if missing := re.fullmatch("Object missing required field `(.*)`?", message):
            field = f"{at}.{missing[1]}".strip(".`")
            raise UserError(f"{where}: field {field} is missing") from None
        if unknown := re.fullmatch("Object contains unknown field `(.*)`?", message):
            raise UserError(f"{where}: unknown field {unknown[1].rstrip('`')}") from None
        if "[...]" in at:  # a key of an object that may have any
            raise UserError(f"{where}: field {at.lstrip('.')}: {message}") from None
        found = value
        for key in re.findall(r"\w+", at):
            found = found[int(key) if key.isdigit() else key]
        expected = re.sub("`, got `.*", "`", message).removeprefix("Expected ").replace("`", "")
        raise wrong(where, at.lstrip("."), found, expected) from None


def wrong(where: object, field: str, found: Any, expected: str) -> UserError:
    """The error of a field that holds something else than expected."""
    text = json.dumps(found, default=repr)
    text = text if len(text) <= 60 else text[:57] + "..."
    place = f"{where}: field {field}" if field else str(where)
    return UserError(f"{place}: found {text}, expected {expected}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's fields, each there once."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"field {next(n for n in names if names.count(n) > 1)!r} twice")
    return fields
