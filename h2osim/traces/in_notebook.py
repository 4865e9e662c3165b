"""A trace as a notebook shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from h2osim.support.html import facts_html

_LAYERS = 12
_WORDS = 40


def trace_html(manifest: Mapping[str, Any], tensors: Sequence[str], path: Path | None) -> str:
    """The facts of a trace: its model and text, how long and how wide it is, where it lies.

    tensors: the names of what a layer holds. path: its folder, None in memory.
    """
    model, text = manifest["model"] or {}, manifest["text"] or {}
    words = (manifest["tokens"] or {}).get("text") or []
    beginning = "".join(words[:_WORDS]) + ("…" if len(words) > _WORDS else "")
    layers = [entry["index"] for entry in manifest["layers"]]
    listed = ", ".join(map(str, layers[:_LAYERS])) + (", …" if len(layers) > _LAYERS else "")
    prompt = manifest["prompt_len"]
    facts = {
        "model": " ".join(filter(None, (model.get("name"), model.get("revision")))),
        "text": text.get("name"),
        "begins": beginning,
        "tokens": f"{manifest['n']}" + (f", prompt of {prompt}" if prompt else ""),
        "layers": f"{len(layers)}: {listed}",
        "heads": f"{len(manifest['heads'])} in {len(manifest['kv_heads'])} KV heads",
        "holds": ", ".join(tensors),
        "in": "memory" if path is None else str(path),
    }
    return facts_html(f"Trace {manifest['name']}", facts)
