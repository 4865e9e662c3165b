"""Files of others are read whole or refused in one line: traces, headers, certificates.

Each test names a kind of fault that ended in a traceback, in a wait without end, in memory without
bound or in silence. Who reads is `h2osim info` or `certify`, through the door of the real command.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails
from safetensors.numpy import load_file, save_file

import h2osim
from h2osim import UserError
from h2osim.optima.certificate import save_certificate
from h2osim.optima.certifying import certify
from h2osim.traces.checks import check_scores


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "trace"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    fields = json.loads((path / "trace.json").read_text())
    change(fields)
    (path / "trace.json").write_text(json.dumps(fields))


def put(field: str, value: Any, layer: int | None = None) -> Callable[[dict[str, Any]], None]:
    def change(fields: dict[str, Any]) -> None:
        (fields if layer is None else fields["layers"][layer])[field] = value

    return change


def raw(path: Path, old: str, new: str | bytes) -> None:
    """Replace text in trace.json, byte by byte."""
    data = (path / "trace.json").read_bytes()
    assert old.encode() in data
    new = new if isinstance(new, bytes) else new.encode()
    (path / "trace.json").write_bytes(data.replace(old.encode(), new, 1))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"provenance": {', '"provenance": ' + "[" * 100_000 + "{", "nested too deep"),
        ('"provenance": {', '"provenance": ' + '{"a":' * 100_000 + "{", "nested too deep"),
        ('"n": 40', f'"n": {"9" * 5000}', "not valid JSON"),
        ('"n": 40', f'"n": {10**30}', "field n: found 1000"),
        ('"n": 40', '"n": Infinity', "not valid JSON"),
        ('"n": 40', '"n": NaN', "not valid JSON"),
        ('"n": 40', '"n": 1e999', "not valid JSON"),
        ('"n": 40', '"n": 40, "n": 40', "field 'n' twice"),
        ('"small"', '"\\ud800"', "not valid JSON"),
        ('"small"', '"\\u0000"', "field name"),
        ('"small"', '"a\\nb"', "field name"),
        ('"small"', b'"\xff"', "not UTF-8"),
        ('"small"', b'"\xed\xa0\x80"', "not UTF-8"),
        ("{", b"\xef\xbb\xbf{", "not valid JSON"),
        ("{", "", "not valid JSON"),
    ],
)
def test_json_that_pythons_reader_lets_pass_or_dies_of(
    run: Run, copy: Path, old: str, new: str | bytes, expected: str
) -> None:
    raw(copy, old, new)
    fails(run("info", copy), "trace.json", expected)


LAYERS: list[Any] = [None, 3, "x", [], {}, [3], [[]], [None], [{}]]
WRONG: dict[str, list[Any]] = {
    "name": [None, 3, [], ""], "n": [None, 0, -1, 2**40, 40.0, True, "40", []],
    "heads": [None, 3, [], [0, 0], [-1, 0], [0, True], [0, 1.0], ["0", "1"], [[]], [0, 2**40]],
    "kv_heads": [None, [], [0], [{}]], "stores": [None, [], ["x"], [["scores"]], "scores", {}],
    "group_size": [None, 0, 2, "1"], "prompt_len": [0, 41, "1", 2.5], "head_dim": [0, "4", []],
    "model": [3, "x", [], {"name": 3}, {"name": []}, {"architecture": {}}, {"revision": 5}],
    "text": ["x", {"name": 1}, {"license": [1]}, {"sha256": 5}], "created_by": [3, {}],
    "command": [3, ["x"]], "generation": [3, []], "provenance": [3, None], "tokenizer": [[]],
    "tokens": [3, [], {"ids": 3}, {"ids": ["x"] * 40}, {"ids": [0.5] * 40}, {"text": [3] * 40},
               {"text": ["a"] * 39}, {"ids": [-1] * 40}, {"text": "a" * 40}],
    "model_heads": [0, 1, "9"], "model_kv_heads": [-1, 1], "layers": LAYERS,
    "format": [None, 3, [], {}], "version": [None, 0, 2, True, [], "1", 1.0],
}  # fmt: skip
OF_A_LAYER: dict[str, list[Any]] = {
    "index": [None, -1, 1.0, True, "0", [], 1, 2**40],
    "file": [None, 3, "", ".", "..", "../x", "a/b", ".hidden", "a\0b", "x" * 300, "a\\b", "none",
             "trace.json"],
    "sha256": [None, 3, "", "0" * 63, "G" * 64, "0" * 64 + "\n"],
    "bytes": [None, 0, -1, "1", 1.5, 2**62], "tensors": [3, [[]], [3], {}, "scores", ["none"]],
    "scale": [0, -1, "x", [], True], "softcap": [0, "x"], "window": [0, 2.5, "x", []],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "layer"), [(f, None) for f in WRONG] + [(f, 0) for f in OF_A_LAYER]
)
def test_wrong_types_and_values_anywhere(copy: Path, field: str, layer: int | None) -> None:
    """Also where only `info` looks, and where only a replay would."""
    whole = (copy / "trace.json").read_bytes()
    for value in (WRONG if layer is None else OF_A_LAYER)[field]:
        edit(copy, put(field, value, layer))
        with pytest.raises(UserError) as caught:
            h2osim.open_trace(copy)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500, value
        (copy / "trace.json").write_bytes(whole)
    h2osim.open_trace(copy)


def test_two_layers_on_one_file_are_refused(run: Run, copy: Path) -> None:
    edit(copy, lambda m: m["layers"][1].update(file=m["layers"][0]["file"]))
    fails(run("info", copy), "layers[1].file", "one that no layer before has")


@pytest.mark.parametrize("made", ["fifo", "device", "folder", "out", "loop", "dangling"])
@pytest.mark.parametrize("what", ["trace.json", "layer-001.safetensors"])
def test_what_is_no_file_of_the_folder_is_refused(
    run: Run, copy: Path, tmp_path: Path, made: str, what: str
) -> None:
    """To open a pipe waits for a writer; to read a device may never end."""
    path = copy / what
    outside = Path(shutil.move(path, tmp_path / "outside"))
    match made:
        case "fifo":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            others = {"device": Path("/dev/zero"), "loop": path, "dangling": Path("none")}
            path.symlink_to(others.get(made, outside))
    ended = run("info", copy)
    if (made, what) == ("out", "trace.json"):  # its content is all checked: nothing is let in
        assert ended.code == 0
    else:
        fails(ended, what)


def reseal(path: Path, data: bytes) -> None:
    """Another file for layer 0, with the size and digest that the manifest wants."""
    file = path / "layer-000.safetensors"
    file.write_bytes(data)
    new = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(path, lambda m: m["layers"][0].update(new))


def header(path: Path, change: Callable[[dict[str, Any]], Any]) -> bytes:
    data = (path / "layer-000.safetensors").read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    text = change(json.loads(data[8 : 8 + length]))
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def of_scores(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda h: {**h, "scores": {**h["scores"], **fields}}


@pytest.mark.parametrize(
    "change",
    [
        of_scores(shape=["2", "820"]), of_scores(shape="2"), of_scores(shape=[2, -820]),
        of_scores(shape=[2, 820.0]), of_scores(shape=[[2], 820]), of_scores(shape=[2, 10**30]),
        of_scores(shape=[2**62, 4]), of_scores(shape=[True, 820]), of_scores(shape=[]),
        of_scores(data_offsets=["0", "1"]), of_scores(data_offsets=[0]), of_scores(dtype=3),
        of_scores(data_offsets=[-4, 0]), of_scores(data_offsets=[0, 2**63]), of_scores(dtype="X"),
        lambda h: {**h, "__metadata__": {"a": 1}}, lambda h: {**h, "__metadata__": 3},
        lambda h: {**h, "v": h["row_sum"]},
        lambda h: {**h, "v": {"dtype": "F32", "shape": [2, 40, 0], "data_offsets": [0, 0]}},
        lambda h: {}, lambda h: [], lambda h: b"", lambda h: b"null", lambda h: b"[" * 100_000,
        lambda h: b'{"scores":' * 50_000, lambda h: json.dumps(h).encode() + b"x",
        lambda h: json.dumps(h)[:-1].encode() + b',"scores":' + json.dumps(h["scores"]).encode()
        + b"}",
    ],
)  # fmt: skip
def test_a_header_that_safetensors_refuses(
    run: Run, copy: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    reseal(copy, header(copy, change))
    fails(run("info", copy), "layer-000.safetensors")


def test_names_that_a_terminal_would_obey_are_shown_and_not_obeyed(copy: Path) -> None:
    """Found by the fuzzers: the name of a tensor broke a message into two lines."""
    names = {"row_sum": "a\n\x1b[31m\u2028"}
    reseal(copy, header(copy, lambda h: {names.get(name, name): one for name, one in h.items()}))
    with pytest.raises(UserError, match="row_sum is missing") as caught:
        h2osim.open_trace(copy)
    assert r"a\n\x1b[31m\u2028" in str(caught.value) and str(caught.value).isprintable()


def test_values_of_size_0_are_refused(run: Run, copy: Path) -> None:
    tensors = load_file(copy / "layer-000.safetensors")
    save_file({**tensors, "v": np.zeros((2, 40, 0), np.float32)}, copy / "new")
    reseal(copy, (copy / "new").read_bytes())
    fails(run("info", copy), "tensor v", "[2, 40, any]")


def test_a_bad_row_of_the_second_head_without_stored_sums_is_named() -> None:
    scores = np.zeros((2, 3), np.uint16)
    scores[:] = np.array([1, 0.5, 0.5], np.float16).view(np.uint16)
    scores[1, 2] = 0
    with pytest.raises(UserError, match=r"here, head 5, row 1: found sum 0\.5, expected 1"):
        check_scores("here", (4, 5), scores, None, 2, None)


def test_memory_follows_the_file_and_not_its_claims(
    run: Run, copy: Path, tmp_path: Path
) -> None:
    """A sparse file of 2 GB in each place of a trace or certificate costs no memory and no time."""
    holes = tmp_path / "holes"
    size = 2 << 30
    for start in (b"", struct.pack("<Q", size - 8), struct.pack("<Q", 90 << 20)):
        holes.write_bytes(start)
        os.truncate(holes, size)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fails(run("certify", holes, copy), "safetensors")
        shutil.move(copy / "layer-000.safetensors", tmp_path / "kept")
        shutil.move(holes, copy / "layer-000.safetensors")
        edit(copy, put("bytes", size, 0))
        fails(run("info", copy), "safetensors")
        shutil.move(copy / "layer-000.safetensors", copy / "trace.json.new")
        shutil.move(tmp_path / "kept", copy / "layer-000.safetensors")
        shutil.copy(copy / "trace.json", tmp_path / "kept")
        os.replace(copy / "trace.json.new", copy / "trace.json")
        fails(run("info", copy), "trace.json", "expected at most")
        shutil.move(tmp_path / "kept", copy / "trace.json")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


# --- certificates --------------------------------------------------------------------------------


@pytest.mark.parametrize("grown", ["layers", "budgets", "evicted_at"])
def test_a_certificate_is_measured_before_it_is_read(
    folder: Path, tmp_path: Path, grown: str
) -> None:
    """A sparse certificate of 2 GB cost 4.4 GB and 50 s; an empty one was certified."""
    trace = h2osim.open_trace(folder)
    found = h2osim.optimum(trace, [4], layers=[0])
    path = save_certificate(found, trace, tmp_path / "c")
    tensors = load_file(path)
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    said = json.loads(data[8 : 8 + length])
    end, header = 0, {"__metadata__": said["__metadata__"]}
    for name, tensor in tensors.items():
        shape = list(tensor.shape)
        if name == grown:
            shape[0] = (1 << 31) // tensor[:1].nbytes
        size = int(np.prod(shape)) * tensor.itemsize
        header[name] = {**said[name], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    big = tmp_path / "big"
    big.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(big, 8 + len(text) + end)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=grown):
        certify(big, trace)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


@pytest.mark.parametrize("none", ["layers", "budgets"])
def test_an_empty_certificate_proves_nothing(folder: Path, tmp_path: Path, none: str) -> None:
    from test_certify import read, write

    from h2osim.optima.certifying import digest

    trace = h2osim.open_trace(folder)
    path = save_certificate(h2osim.optimum(trace, [4], layers=[0]), trace, tmp_path / "c")
    metadata, tensors = read(path)
    axis = 0 if none == "layers" else 2
    for name, tensor in tensors.items():
        if name == none or (name not in ("layers", "budgets") and tensor.ndim > axis):
            tensors[name] = tensor.take([], 0 if name == none else axis)
    facts = json.loads(metadata["facts"])
    facts["sha256"] = facts["sha256"] if none == "budgets" else []
    metadata["facts"] = json.dumps(facts)
    metadata["sha256"] = digest(metadata["facts"], tensors)
    with pytest.raises(UserError, match=f"{none}: found 0 of them, expected 1 to"):
        certify(write(tmp_path / "c", metadata, tensors), trace)


@pytest.mark.parametrize("made", ["fifo", "device", "folder"])
def test_a_certificate_that_is_no_file(run: Run, folder: Path, tmp_path: Path, made: str) -> None:
    path = tmp_path / "c"
    {"fifo": os.mkfifo, "folder": os.mkdir, "device": lambda p: p.symlink_to("/dev/zero")}[made](
        path
    )
    fails(run("certify", path, folder), "expected a regular file")
