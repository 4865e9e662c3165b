"""trace.json: reading it, and refusing what is not one, by name of the field."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path, PurePath
from typing import Any, TypeGuard

from h2osim.support.errors import UserError

FORMAT = "h2osim-trace"
VERSION = 1
STORES = ("scores", "qk")
SHARES = ("head", "group", "layer")

OPTIONAL: dict[str, Any] = {
    "created_by": None, "command": None, "model": None, "tokenizer": None, "text": None,
    "tokens": None, "prompt_len": None, "generation": None, "model_heads": None,
    "model_kv_heads": None, "head_dim": None, "provenance": {},
}  # fmt: skip
"""Fields a manifest may lack, and what is meant then."""


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a trace folder, checked, with the optional fields filled in."""
    path = folder / "trace.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: not a folder; a trace is a folder with a trace.json")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no trace.json in it, so not a trace") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON: {error.msg} in line {error.lineno}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise UserError(f'{path}: field format: found {found!r}, expected "{FORMAT}"')
    version = manifest.get("version")
    if not _is_int(version) or version < 1:
        raise UserError(f"{path}: field version: found {version!r}, expected {VERSION}")
    if version > VERSION:
        raise UserError(
            f"{path}: field version: found {version}, this h2osim reads up to {VERSION}; "
            f"upgrade h2osim"
        )
    return check({"name": folder.resolve().name, **OPTIONAL, **manifest}, str(path))


def check(manifest: dict[str, Any], where: str) -> dict[str, Any]:
    """The manifest itself; UserError naming the first field at fault."""

    def bad(field: str, expected: str, found: Any = ...) -> UserError:
        if found is ...:
            if field not in manifest:
                return UserError(f"{where}: field {field} is missing, expected {expected}")
            found = manifest[field]
        text = json.dumps(found, default=repr)
        text = text if len(text) <= 60 else text[:57] + "..."
        return UserError(f"{where}: field {field}: found {text}, expected {expected}")

    if not isinstance(manifest.get("name"), str):
        raise bad("name", "a string")
    for field in ("n", "group_size"):
        if not _is_int(manifest.get(field)) or manifest[field] < 1:
            raise bad(field, "a whole number from 1 on")
    n, group_size = manifest["n"], manifest["group_size"]
    for field in ("heads", "kv_heads"):
        value = manifest.get(field)
        if not _is_list_of_indices(value) or not value:
            raise bad(field, "a list of different head indices")
    if len(manifest["heads"]) != group_size * len(manifest["kv_heads"]):
        raise bad("heads", f"group_size {group_size} of them for each of kv_heads")
    stores = manifest.get("stores")
    if not isinstance(stores, list) or not stores or any(s not in STORES for s in stores):
        raise bad("stores", 'a list of "scores", "qk"')
    prompt_len = manifest["prompt_len"]
    if prompt_len is not None and (not _is_int(prompt_len) or not 1 <= prompt_len <= n):
        raise bad("prompt_len", f"null or 1 ... {n}")
    for field in ("head_dim", "model_heads", "model_kv_heads"):
        value = manifest[field]
        if value is not None and (not _is_int(value) or value < 1):
            raise bad(field, "null or a whole number from 1 on")
    if "qk" in stores and manifest["head_dim"] is None:
        raise bad("head_dim", "a whole number, since queries and keys are stored")
    for field in ("model", "text", "generation", "tokens"):
        if manifest[field] is not None and not isinstance(manifest[field], dict):
            raise bad(field, "null or an object")
    if not isinstance(manifest["provenance"], dict):
        raise bad("provenance", "an object")
    if manifest["tokens"] is not None:
        for field in ("ids", "text"):
            listed = manifest["tokens"].get(field)
            if listed is not None and (not isinstance(listed, list) or len(listed) != n):
                found = len(listed) if isinstance(listed, list) else listed
                raise bad(f"tokens.{field}", f"{n} entries", found)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or not layers:
        raise bad("layers", "a list of at least one layer")
    seen: set[int] = set()
    for i, layer in enumerate(layers):
        label = f"layers[{i}]"
        if not isinstance(layer, dict):
            raise bad(label, "an object", layer)
        index = layer.get("index")
        if not _is_int(index) or index < 0 or index in seen:
            raise bad(f"{label}.index", "a layer number not yet used", index)
        seen.add(index)
        file = layer.get("file")
        if file is not None and (
            not isinstance(file, str) or PurePath(file).name != file or file.startswith(".")
        ):
            raise bad(f"{label}.file", "the name of a file in the trace's folder", file)
        for field in ("scale", "softcap"):
            value = layer.get(field)
            if value is not None and not (isinstance(value, (int, float)) and 0 < value < inf):
                raise bad(f"{label}.{field}", "null or a positive number", value)
        if "qk" in stores and layer.get("scale") is None:
            raise bad(f"{label}.scale", "a number, since queries and keys are stored", None)
        window = layer.get("window")
        if window is not None and (not _is_int(window) or window < 1):
            raise bad(f"{label}.window", "null or a whole number from 1 on", window)
    return manifest


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of_indices(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(_is_int(v) and v >= 0 for v in value)
        and len(set(value)) == len(value)
    )
