"""What a trace and a certificate must be, read with nothing of h2osim: struct, json and NumPy.

Slow and plain on purpose. It judges what the readers let in.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

WIDTHS = {"F16": "<f2", "F32": "<f4", "I8": "i1", "I32": "<i4", "I64": "<i8", "F64": "<f8"}


def whole(value: Any, least: int) -> bool:
    return type(value) is int and least <= value < 2**31


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs), "a name twice"
    return dict(pairs)


def strict_json(data: bytes) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    value = json.loads(data.decode(), object_pairs_hook=once, parse_constant=refuse)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no infinity, no half pair
    return value


def tensors_of(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Metadata and tensors of a safetensors file, which must be covered without a gap."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = strict_json(data[8 : 8 + length]), data[8 + length :]
    metadata = header.pop("__metadata__", None) or {}
    assert all(type(x) is str for pair in metadata.items() for x in pair)
    found, end = {}, 0
    for name, one in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = one["data_offsets"]
        assert type(start) is int and type(stop) is int and start == end <= stop <= len(body)
        assert all(type(size) is int and size >= 0 for size in one["shape"])
        kind = np.dtype(WIDTHS.get(one["dtype"], "V1"))
        if one["dtype"] in WIDTHS:
            assert math.prod(one["shape"]) * kind.itemsize == stop - start
            found[name] = np.frombuffer(body[start:stop], kind).reshape(one["shape"])
        end = stop
    assert end == len(body)
    return metadata, found


def check_trace(folder: Path) -> dict[str, Any]:
    """AssertionError, or another error, where a folder is no trace; its manifest otherwise."""
    m = strict_json((folder / "trace.json").read_bytes())
    assert m["format"] == "h2osim-trace" and type(m["version"]) is int and m["version"] == 1
    assert whole(m["n"], 1) and whole(m["group_size"], 1)
    name = m.get("name", folder.name)
    assert type(name) is str and name and not any(ord(c) < 32 or ord(c) == 127 for c in name)
    for heads, most in (("heads", "model_heads"), ("kv_heads", "model_kv_heads")):
        assert type(m[heads]) is list and m[heads] and all(whole(h, 0) for h in m[heads])
        assert len(set(m[heads])) == len(m[heads])
        assert m.get(most) is None or (whole(m[most], 1) and max(m[heads]) < m[most])
    assert len(m["heads"]) == m["group_size"] * len(m["kv_heads"])
    assert type(m["stores"]) is list and m["stores"] and set(m["stores"]) <= {"scores", "qk"}
    p = m.get("prompt_len")
    assert p is None or (whole(p, 1) and p <= m["n"])
    assert m.get("head_dim") is None or whole(m["head_dim"], 1)
    for field in ("created_by", "command", "tokenizer"):
        assert m.get(field) is None or type(m[field]) is str
    for field in ("model", "text", "generation", "tokens"):
        assert m.get(field) is None or type(m[field]) is dict
    assert type(m.get("provenance", {})) is dict
    for field in ("model", "text"):
        for word in ("name", "revision", "architecture", "sha256", "license"):
            assert type((m.get(field) or {}).get(word)) in (str, type(None))
    tokens = m.get("tokens") or {}
    for field, kind in (("ids", int), ("text", str)):
        some = tokens.get(field)
        assert some is None or (len(some) == m["n"] and all(type(x) is kind for x in some))
    assert all(0 <= x < 2**31 for x in tokens.get("ids") or [])
    assert type(m["layers"]) is list and m["layers"]
    for field in ("index", "file"):
        assert len({layer[field] for layer in m["layers"]}) == len(m["layers"])
    for layer in m["layers"]:
        check_layer(folder, m, layer)
    return m


def check_layer(folder: Path, m: dict[str, Any], layer: dict[str, Any]) -> None:
    assert whole(layer["index"], 0) and type(layer["file"]) is str
    path = folder / layer["file"]
    assert os.path.dirname(os.path.realpath(path)) == os.path.realpath(folder)
    data = path.read_bytes()
    assert type(layer["bytes"]) is int and layer["bytes"] == len(data)
    assert layer["sha256"] == hashlib.sha256(data).hexdigest()
    for field in ("scale", "softcap"):
        value = layer.get(field)
        assert value is None or (type(value) in (int, float) and 0 < value < math.inf)
    assert layer.get("window") is None or whole(layer["window"], 1)
    _, found = tensors_of(path)
    wanted = {"scores"} if "scores" in m["stores"] else set()
    wanted |= {"q", "k"} if "qk" in m["stores"] else set()
    assert wanted | set(layer.get("tensors") or ()) <= set(found)
    n, heads = m["n"], len(m["heads"])
    assert ("w_o" in found) == ("x_norm" in found)
    for name, tensor in found.items():
        if name in ("v_norm1", "v_norm2", "k_norm2"):
            assert tensor.dtype == np.float32 and tensor.shape == (len(m["kv_heads"]), n)
            assert (tensor >= 0).all()
        if name == "x_norm":
            assert tensor.dtype == np.float32 and tensor.shape == (n,) and (tensor >= 0).all()
        if name == "w_o":
            sizes = [found[v].shape[2] for v in ("v", "v_q8") if v in found]
            assert tensor.dtype == np.float32 and tensor.shape[:2] == (heads, sizes[0])
        if tensor.dtype == np.float32 and name not in ("lse", "extra"):
            assert np.isfinite(tensor).all()
    if "scores" not in m["stores"]:
        return
    rows = found["scores"]
    assert rows.dtype == np.float16 and rows.shape == (heads, n * (n + 1) // 2)
    before = found.get("row_sum", np.ones((heads, n), np.float32)).astype(np.float64)
    assert before.shape == (heads, n)
    for head in range(heads):
        for t in range(n):
            row = rows[head, t * (t + 1) // 2 :][: t + 1]
            assert all(0 <= x <= 1 and not np.signbit(x) for x in row)
            total, stored = math.fsum(map(float, row)), before[head, t]
            if layer.get("window") is not None:
                assert not row[: max(0, t + 1 - layer["window"])].any()
            loose = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(layer.get("computed_in") or "")
            limit = (t + 1) * 2.0**-22 + 2e-6 + (loose or 0)
            assert stored <= 1 + limit and (layer.get("sink") or stored >= 1 - limit)
            if not (layer.get("sink") and "row_sum" not in found):
                assert abs(total - stored) <= 2.0**-11 * stored + (t + 1) * 2.0**-25


def check_claims(path: Path, rows: np.ndarray, best: dict[tuple[int, int, int], int]) -> None:
    """A certificate's claims about rows [unit, n, n] of integers: worth what it says, and true.

    best: the optimum by unit, budget and prompt.
    """
    metadata, tensors = tensors_of(path)
    p, budgets = strict_json(metadata["facts"].encode())["prompt_len"], tensors["budgets"]
    assert budgets.size and tensors["layers"].size
    for unit, square in enumerate(rows):
        n = len(square)
        assert tensors["mass"][0, unit] == sum(int(square[t, : t + 1].sum()) for t in range(p, n))
        for b, k in enumerate(budgets.tolist()):
            gone = tensors["evicted_at"][0, unit, b].tolist()
            kept = tensors["kept"][0, unit, b]
            there = [[j for j in range(t + 1) if j == t or gone[j] >= t] for t in range(n)]
            assert kept == sum(int(square[t, j]) for t in range(p, n) for j in there[t])
            assert all(len(there[t]) - 1 <= k for t in range(p, n))
            assert kept <= best[unit, k, p] <= tensors["bound"][0, unit, b]
