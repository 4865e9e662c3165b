"""A good trace, in memory and on disk, and ways to spoil it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from h2osim.attention.fixed_point import ONE, SHIFT, fixed_from_bits
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace


def refuses(message: str) -> Any:
    """The block raises a UserError that matches this regular expression."""
    return pytest.raises(UserError, match=message)


def softmax(n: int = 40, heads: int = 4, layers: int = 2, seed: int = 0) -> np.ndarray:
    """Some float32 attention [layers, heads, n, n]."""
    logits = np.random.default_rng(seed).standard_normal((layers, heads, n, n)) * 3
    logits[..., np.triu(np.ones((n, n), bool), 1)] = -np.inf
    weights = np.exp(logits.astype(np.float32) - logits.max(-1, keepdims=True).astype(np.float32))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def bits_from_fixed(fixed: Any) -> NDArray[np.uint16]:
    """Float16 bit patterns of fixed-point integers, the same shape, uint16.

    Exact or not at all: an integer outside 0 ... 2^24, or one that float16 cannot hold (more than
    eleven significant binary digits), raises ValueError.
    """
    values = np.asarray(fixed)
    if values.dtype.kind not in "iu":
        raise TypeError(f"fixed-point numbers are integers, not {values.dtype}")
    if values.size and (int(values.min()) < 0 or int(values.max()) > ONE):
        raise ValueError(f"fixed-point numbers lie in 0 ... 2^{SHIFT}")
    half = np.ldexp(values.astype(np.float64), -SHIFT).astype(np.float16)
    bits = half.view(np.uint16)
    if np.any(fixed_from_bits(bits) != values):
        raise ValueError("a fixed-point number has more digits than float16 holds")
    return bits


def random_trace(n: int = 24, layers: int = 2, heads: int = 2, seed: int = 0, **more: Any) -> Trace:
    """A scores trace of random rows; ``more`` goes to `Trace.from_scores`."""
    scores = np.tril(np.random.default_rng(seed).gamma(0.4, size=(layers, heads, n, n)) + 1e-3)
    return Trace.from_scores(scores / scores.sum(-1, keepdims=True), **{"name": f"t{seed}", **more})


def same(one: Trace, two: Trace) -> None:
    """Two traces hold the same numbers, to the bit."""
    kept = ("n", "prompt_len", "layers", "heads", "kv_heads", "group_size", "stores", "name")
    for field in kept:
        assert getattr(one, field) == getattr(two, field), field
    for layer in one.layers:
        assert sorted(one.tensors(layer)) == sorted(two.tensors(layer))
        for name in one.tensors(layer):
            a, b = one.tensor(layer, name), two.tensor(layer, name)
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), name
        for field in ("scale", "window", "softcap"):
            assert one.layer_entry(layer).get(field) == two.layer_entry(layer).get(field)


def edit(path: Path, **changes: Any) -> None:
    """Change fields of trace.json; a field set to ... goes away."""
    fields = json.loads((path / "trace.json").read_text())
    for field, value in changes.items():
        if value is ...:
            del fields[field]
        else:
            fields[field] = value
    (path / "trace.json").write_text(json.dumps(fields))


def replace(path: Path, layer: int = 2, **tensors: Any) -> None:
    """Rewrite a layer's file with other tensors, its sha256 and size in trace.json in order."""
    file = path / f"layer-{layer:03d}.safetensors"
    kept = {**load_file(file), **tensors}
    save_file({k: np.ascontiguousarray(v) for k, v in kept.items() if v is not None}, file)
    fields = json.loads((path / "trace.json").read_text())
    for entry in fields["layers"]:
        if entry["index"] == layer:
            entry["bytes"] = file.stat().st_size
            entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (path / "trace.json").write_text(json.dumps(fields))
