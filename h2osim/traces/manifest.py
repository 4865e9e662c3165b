"""trace.json: what may stand in it, and reading it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, structs

from h2osim.support import reading
from h2osim.support.errors import UserError
from h2osim.support.given import printable
from h2osim.support.reading import Count, Index, Sha256, wrong

FORMAT = "h2osim-trace"
VERSION = 1
STORES = ("scores", "qk")
SHARES = ("head", "group", "layer")
MOST_BYTES = 1 << 26
"""A larger trace.json is refused unread: that of a million tokens takes half of it."""

Name = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z")]
Positive = Annotated[float, Meta(gt=0, le=sys.float_info.max)]
Store = Annotated[str, Meta(pattern=rf"^({'|'.join(STORES)})\Z")]


class LayerEntry(Struct):
    """A layer in memory."""

    index: Index
    scale: Positive | None = None
    softcap: Positive | None = None
    window: Count | None = None
    cache_of: Index | None = None
    sink: bool | None = None
    computed_in: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    tensors: list[str] | None = None


class StoredLayerEntry(LayerEntry, kw_only=True):
    """A layer in a file of the trace's folder."""

    file: Annotated[str, Meta(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*\Z", max_length=255)]
    sha256: Sha256
    bytes: Annotated[int, Meta(ge=1)]


class Origin(Struct):
    """Of a model or a text: what h2osim shows of it."""

    name: str | None = None
    revision: str | None = None
    architecture: str | None = None
    sha256: str | None = None
    license: str | None = None


class Tokens(Struct):
    """Of each token."""

    ids: list[Index] | None = None
    text: list[str] | None = None


class Manifest(Struct, kw_only=True):
    """The fields of a trace; None is for what is not known."""

    name: Name
    n: Count
    group_size: Count
    heads: Annotated[list[Index], Meta(min_length=1)]
    kv_heads: Annotated[list[Index], Meta(min_length=1)]
    stores: Annotated[list[Store], Meta(min_length=1)]
    layers: Annotated[Sequence[LayerEntry], Meta(min_length=1)]
    created_by: str | None = None
    command: str | None = None
    model: Origin | None = None
    tokenizer: str | None = None
    text: Origin | None = None
    tokens: Tokens | None = None
    prompt_len: Count | None = None
    generation: dict[str, Any] | None = None
    model_heads: Count | None = None
    model_kv_heads: Count | None = None
    head_dim: Count | None = None
    provenance: dict[str, Any] = {}


class StoredManifest(Manifest, kw_only=True):
    """The fields of a trace in a folder."""

    layers: Annotated[Sequence[StoredLayerEntry], Meta(min_length=1)]


OPTIONAL: dict[str, Any] = {
    field.name: {} if field.name == "provenance" else None
    for field in structs.fields(Manifest)
    if not field.required
}
"""Fields a manifest may lack, and what is meant then."""


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a trace folder, checked, with the optional fields filled in."""
    path = folder / "trace.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; a trace is a folder with a trace.json")
    if not (path.exists() or path.is_symlink()):
        raise UserError(f"{folder}: no trace.json in it, so not a trace")
    manifest = reading.json_of(path, dict[str, Any], MOST_BYTES)
    version = manifest.get("version")
    if manifest.get("format") != FORMAT:
        raise wrong(path, "format", manifest.get("format"), f'"{FORMAT}"')
    if type(version) is int and version > VERSION:
        raise UserError(
            f"{path}: field version: found {version}, this h2osim reads up to {VERSION}; "
            f"upgrade h2osim"
        )
    if type(version) is not int or version < 1:
        raise wrong(path, "version", version, str(VERSION))
    filled = {"name": printable(folder.resolve().name), **OPTIONAL, **manifest}
    return check(filled, str(path), StoredManifest)


def check(
    manifest: dict[str, Any], where: str, schema: type[Manifest] = Manifest
) -> dict[str, Any]:
    """The manifest itself; UserError naming the first field at fault."""
    reading.check(manifest, schema, where)
    m = manifest
    for field, most in (("heads", m["model_heads"]), ("kv_heads", m["model_kv_heads"])):
        if len(set(m[field])) < len(m[field]):
            raise wrong(where, field, m[field], "different head indices")
        if most is not None and max(m[field]) >= most:
            raise wrong(where, field, m[field], f"head indices below model_{field}, {most}")
    if len(m["heads"]) != m["group_size"] * len(m["kv_heads"]):
        expected = f"group_size {m['group_size']} of them for each of kv_heads"
        raise wrong(where, "heads", m["heads"], expected)
    if (m["prompt_len"] or 0) > m["n"]:
        raise wrong(where, "prompt_len", m["prompt_len"], f"null or 1 ... {m['n']}")
    for field in ("ids", "text"):
        listed = (m["tokens"] or {}).get(field)
        if listed is not None and len(listed) != m["n"]:
            raise wrong(where, f"tokens.{field}", len(listed), f"{m['n']} entries")
    if "qk" in m["stores"] and m["head_dim"] is None:
        raise wrong(where, "head_dim", None, "a number, since queries and keys are stored")
    seen: set[Any] = set()
    for i, layer in enumerate(m["layers"]):
        for field in ("index", "file"):
            if (value := layer.get(field)) in seen:
                raise wrong(where, f"layers[{i}].{field}", value, "one that no layer before has")
            seen |= {value} - {None}
        if "qk" in m["stores"] and layer.get("scale") is None:
            expected = "a number, since queries and keys are stored"
            raise wrong(where, f"layers[{i}].scale", None, expected)
    return m
