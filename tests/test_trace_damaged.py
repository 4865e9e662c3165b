"""Damaged files and manifests are one clear line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trace_cases import edit, refuses, replace

from h2osim.support.errors import UserError
from h2osim.traces.catalogue import open_trace


def test_flipped_byte(saved: Path) -> None:
    file = saved / "layer-009.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    trace = open_trace(saved)
    with refuses(r"layer-009.safetensors: sha256 found \w{64}, trace.json"):
        trace.verify()
    with refuses("sha256"):
        trace.verify()  # still, after the first time


@pytest.mark.parametrize("size", [0, 4, 8, 100, -1])
def test_truncated(saved: Path, size: int) -> None:
    file = saved / "layer-009.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:size])
    with pytest.raises(
        UserError, match=f"layer-009.safetensors: truncated.*found {len(data[:size])}"
    ):
        open_trace(saved)


def test_too_long_and_other_size(saved: Path) -> None:
    file = saved / "layer-009.safetensors"
    data = file.read_bytes()
    file.write_bytes(data + b"x")
    with pytest.raises(
        UserError, match=f"too long: found {len(data) + 1} bytes, trace.json says {len(data)}"
    ):
        open_trace(saved)
    file.write_bytes(data)
    fields = json.loads((saved / "trace.json").read_text())
    fields["layers"][1]["bytes"] += 5
    edit(saved, layers=fields["layers"])
    with refuses(f"truncated: found {len(data)} bytes, trace.json says"):
        open_trace(saved)


def test_a_file_that_changes_is_checked_again(saved: Path) -> None:
    trace = open_trace(saved)
    trace.check_layer(trace.layers[0])
    file = saved / "layer-002.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(file, ns=(0, 0))  # clocks of file systems are coarse
    with pytest.raises(UserError, match="sha256 found"):
        trace.check_layer(trace.layers[0])


def test_truncated_after_opening(saved: Path) -> None:
    trace = open_trace(saved)
    file = saved / "layer-009.safetensors"
    os.truncate(file, 1000)
    with refuses("truncated since it was opened: found 1000 bytes"):
        trace.tensor(9, "scores")


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda header: b"{",
        lambda header: b"[]",
        lambda header: b"\xff\xfe",
        lambda header: {**header, "scores": {"dtype": "F16"}},
        lambda header: {**header, "scores": {**header["scores"], "data_offsets": [0, 4]}},
        lambda header: {**header, "scores": {**header["scores"], "shape": [4, -1]}},
        lambda header: {**header, "scores": {**header["scores"], "shape": "wide"}},
        lambda header: {**header, "scores": 3},
    ],
)
def test_damaged_header(saved: Path, damage: Callable[[dict[str, Any]], Any]) -> None:
    file = saved / "layer-002.safetensors"
    header, rest = header_of(file)
    text = damage(header)
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + rest)
    entries = json.loads((saved / "trace.json").read_text())["layers"]
    edit(saved, layers=[{**entries[0], "bytes": file.stat().st_size}, *entries[1:]])
    with refuses("layer-002.safetensors: its safetensors header is damaged"):
        open_trace(saved)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"scores": np.zeros((4, 820), np.float32)}, "tensor scores: found F32, expected F16"),
        ({"scores": np.zeros((4, 820), np.uint16)}, "tensor scores: found U16, expected F16"),
        ({"row_sum": np.zeros((4, 40))}, "tensor row_sum: found F64, expected F32"),
        (
            {"scores": np.zeros((4, 40, 40), np.float16)},
            r"\[4, 40, 40\], expected \[4, 820\]",
        ),
        (
            {"scores": np.zeros((3, 820), np.float16)},
            r"shape \[3, 820\], expected \[4, 820\]",
        ),
        (
            {"v": np.zeros((2, 41, 3), np.float32)},
            r"v: .*\[2, 41, 3\], expected \[2, 40, any\]",
        ),
        ({"scores": None}, "tensor scores is missing; found row_sum"),
    ],
)
def test_wrong_tensors(saved: Path, tensors: dict[str, Any], message: str) -> None:
    replace(saved, **tensors)
    with refuses(f"layer-002.safetensors: .*{message}"):
        open_trace(saved)


def test_missing_file(saved: Path) -> None:
    (saved / "layer-009.safetensors").unlink()
    with refuses("layer-009.safetensors: cannot be read: No such file"):
        open_trace(saved)


def test_not_a_trace(tmp_path: Path) -> None:
    with refuses("no trace.json in it, so not a trace"):
        open_trace(tmp_path)
    file = tmp_path / "file"
    file.write_text("x")
    with refuses("file: not a folder"):
        open_trace(file)
    for text, message in [
        ("{", r"trace.json: not valid JSON: .* in line 1"),
        ("[]", r"trace.json: found \[\], expected object"),
        ("{}", "field format: found null"),
    ]:
        (tmp_path / "trace.json").write_text(text)
        with refuses(message):
            open_trace(tmp_path)
    (tmp_path / "trace.json").write_bytes(b"\xff")
    with refuses("not UTF-8 text"):
        open_trace(tmp_path)


LAYER = {"index": 0, "file": "layer-002.safetensors", "sha256": "0" * 64, "bytes": 1}


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in LAYER.items() if name != field}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "field version: found 2, this h2osim reads up to 1; upgrade"),
        ({"version": "1"}, 'field version: found "1", expected 1'),
        ({"version": ...}, "field version: found null"),
        ({"n": ...}, "field n is missing"),
        ({"n": 40.0}, "field n: found 40.0"),
        ({"n": True}, "field n: found true"),
        ({"n": 41}, r"tensor scores: found shape|tensor row_sum: found shape"),
        ({"name": 3}, "field name: found 3"),
        ({"group_size": 3}, "field heads: found .*expected group_size 3 of them"),
        ({"heads": [0, 1, 1, 2]}, "field heads: found .*expected different head indices"),
        ({"kv_heads": []}, "field kv_heads"),
        ({"stores": ["rows"]}, "field stores"),
        ({"stores": ["qk"]}, "field head_dim: found null"),
        ({"stores": ["scores", "qk"], "head_dim": 4}, r"layers\[0\].scale: found null"),
        ({"prompt_len": 41}, "field prompt_len: found 41, expected null or 1 ... 40"),
        ({"head_dim": -1}, "field head_dim"),
        ({"model": "smol"}, 'field model: found "smol", expected object | null'),
        ({"provenance": None}, "field provenance"),
        ({"tokens": {"text": ["a"]}}, "field tokens.text: found 1, expected 40 entries"),
        ({"tokens": {"ids": "abc"}}, "field tokens.ids"),
        ({"layers": []}, r"field layers: found \[\], expected array of length >= 1"),
        ({"layers": [3]}, r"field layers\[0\]: found 3"),
        (
            {"layers": [LAYER, LAYER]},
            r"field layers\[1\].index: found 0, expected one that no layer before has",
        ),
        ({"layers": [{**LAYER, "file": "../x"}]}, r"layers\[0\].file: found \"../x\""),
        ({"layers": [without("file")]}, r"layers\[0\].file is missing"),
        ({"layers": [without("sha256")]}, r"layers\[0\].sha256 is missing"),
        ({"layers": [{**LAYER, "bytes": "1"}]}, r'layers\[0\].bytes: found "1", expected int'),
        ({"layers": [{**LAYER, "window": 0}]}, r"layers\[0\].window: found 0"),
        ({"layers": [{**LAYER, "softcap": float("inf")}]}, "not valid JSON"),
    ],
)
def test_bad_manifest(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with refuses(message):
        open_trace(saved)
