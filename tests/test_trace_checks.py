"""What is wrong with arrays or with a layer's tensors is one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from trace_cases import edit, refuses, replace, softmax

from h2osim.attention.triangle import tri
from h2osim.traces.catalogue import open_trace
from h2osim.traces.trace import Trace


def broken(change: Callable[[np.ndarray], None], dtype: Any = np.float32) -> np.ndarray:
    scores = softmax().astype(dtype)
    change(scores)
    return scores


def put(value: float, *at: int) -> Callable[[np.ndarray], None]:
    def change(scores: np.ndarray) -> None:
        scores[at] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(np.nan, 1, 2, 7, 3), "layer 1, head 2, row 7, column 3: found nan, expected a number"),
        (put(-0.25, 0, 3, 39, 0), r"layer 0, head 3, row 39, column 0: found -0.25"),
        (put(1.5, 0, 0, 1, 1), r"row 1, column 1: found 1.5, expected a number in \[0, 1\]"),
        (put(np.inf, 0, 0, 1, 1), "row 1, column 1: found inf"),
        (put(0.125, 1, 0, 5, 6), "head 0, row 5, column 6: found 0.125, expected 0.*diagonal"),
        (put(np.nan, 1, 0, 5, 39), "row 5, column 39: found nan, expected 0"),
        (put(0, 1, 1, 0, 0), "layer 1, head 1, row 0: found sum 0, expected 1 within 1.1e-06"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_bad_scores(change: Callable[[np.ndarray], None], message: str, dtype: Any) -> None:
    if dtype == np.float16:
        message = message.replace("1.1e-06", ".*")
    with refuses(message):
        Trace.from_scores(broken(change, dtype))


def test_tolerance_is_the_dtypes() -> None:
    scores = softmax(n=300).astype(np.float64)
    off = scores * (1 + 2e-4)
    with refuses("row 1: found sum 1.0002, expected 1 within 1.2e-06"):
        Trace.from_scores(np.minimum(off, 1))
    Trace.from_scores(softmax(n=300).astype(np.float16))
    half = np.tril(np.ones((9, 9)) / np.arange(1, 10)[:, None]).astype(np.float16)
    half[8, 0] += np.float16(0.01)
    with refuses("row 8: found sum 1.0"):
        Trace.from_scores(half)


@pytest.mark.parametrize(
    ("scores", "arguments", "message"),
    [
        (
            np.zeros((2, 3, 4), np.float32),
            {},
            r"found shape \[2, 3, 4\], expected \[layers",
        ),
        (np.zeros((0, 0)), {}, r"found shape \[0, 0\]"),
        (np.zeros(4), {}, r"found shape \[4\]"),
        (np.eye(3, dtype=int), {}, "scores: found dtype int64, expected a float dtype"),
        ("text", {}, "found dtype <U4"),
        (np.eye(3), {"group_size": 2}, "group_size: found 2, expected a divisor of 1 heads"),
        (np.eye(3), {"group_size": 0}, "group_size: found 0"),
        (np.eye(3), {"prompt_len": 4}, "prompt_len: found 4, expected 1 ... 3"),
        (np.eye(3), {"prompt_len": 0}, "prompt_len: found 0, expected 1 ... 3"),
        (np.eye(3), {"layers": [1, 2]}, "layers: found 2 indices, expected 1"),
        (np.eye(3), {"layers": [-1]}, "layers: found -1, expected a whole number from 0 on"),
        (
            np.eye(3),
            {"v_norm1": [[1, 2]]},
            r"v_norm1: found shape \[1, 1, 2\], expected",
        ),
        (
            np.eye(3),
            {"v_norm1": [[1, 2, -1]]},
            "v_norm1, head 0, row 2: found -1.0, expected a",
        ),
        (np.eye(3), {"v_norm2": [[1, np.nan, 1]]}, "v_norm2, head 0, row 1: found nan"),
        (np.eye(3), {"tokens": {"ids": [1]}}, "field tokens.ids: found 1, expected 3 entries"),
    ],
)
def test_bad_arguments(scores: Any, arguments: dict[str, Any], message: str) -> None:
    with refuses(message):
        Trace.from_scores(scores, **arguments)


def test_bad_packed_and_qk() -> None:
    with refuses("found float64"):
        Trace.from_packed(np.zeros((1, 1, 3)))
    with refuses("4 entries are no triangle"):
        Trace.from_packed(np.zeros((1, 1, 4), np.float16))
    with refuses(r"expected \[layers, heads, n, d\]"):
        Trace.from_qk(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)), scale=1)
    with refuses("3 heads do not share 2 KV heads"):
        Trace.from_qk(np.zeros((1, 3, 4, 2)), np.zeros((1, 2, 4, 2)), scale=1)
    with refuses(r"k: found shape \[1, 1, 4, 3\]"):
        Trace.from_qk(np.zeros((1, 1, 4, 2)), np.zeros((1, 1, 4, 3)), scale=1)
    with refuses(r"layers\[0\].scale: found 0"):
        Trace.from_qk(np.zeros((1, 1, 4, 2)), np.zeros((1, 1, 4, 2)), scale=0)
    with refuses("tensor q, head 0, row 1: found inf, expected a finite"):
        Trace.from_qk(np.full((1, 1, 2, 1), [[1], [np.inf]]), np.zeros((1, 1, 2, 1)), scale=1)


# --- damaged folders -----------------------------------------------------------------------------


def with_score(path: Path, head: int, row: int, column: int, value: float) -> None:
    scores = load_file(path / "layer-002.safetensors")["scores"].copy()
    scores[head, tri(row) + column] = value
    replace(path, scores=scores)


def test_files_of_the_safetensors_package_are_read(saved: Path) -> None:
    before = [open_trace(saved).tensor(2, t).tobytes() for t in ("scores", "row_sum")]
    replace(saved)
    trace = open_trace(saved)
    assert before == [trace.tensor(2, t).tobytes() for t in ("scores", "row_sum")]
    trace.check_layer(2)
    replace(saved, lse=np.zeros((4, 40), np.float32), extra=np.zeros(3, np.float64))
    assert set(open_trace(saved).tensors(2)) == {"scores", "row_sum", "lse"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"column 3: found nan, expected a number in \[0, 1\]"),
        (-0.5, "column 3: found -0.5"),
        (-0.0, "column 3: found -0.0"),
        (1.5, "column 3: found 1.5"),
        (np.inf, "column 3: found inf"),
        (1.0, r"found sum 1\.\d+, expected 1 within 0.00049 \(what rounding"),
    ],
)
def test_bad_rows_in_a_file(saved: Path, value: float, message: str) -> None:
    with_score(saved, 1, 30, 3, value)
    trace = open_trace(saved)
    trace.check_layer(9)
    where = "layer-002.safetensors, layer 2, head 1, row 30"
    with refuses(f"{where}[:,] {message}"):
        trace.check_layer(2)
    with refuses(f"{where}[:,] {message}"):
        trace.verify()


def test_row_sums_in_a_file(saved: Path) -> None:
    sums = open_trace(saved).tensor(2, "row_sum").copy()
    for value, message in [
        (1.001, "found stored sum before rounding 1.00"),
        (np.nan, "found stored sum before rounding nan"),
    ]:
        sums[3, 17] = value
        replace(saved, row_sum=sums)
        with refuses(f"layer 2, head 3, row 17: {message}"):
            open_trace(saved).check_layer(2)
    replace(saved, row_sum=None)
    with refuses("tensor row_sum is missing"):
        open_trace(saved)
    fields = json.loads((saved / "trace.json").read_text())
    fields["layers"][0]["tensors"] = ["scores"]
    edit(saved, layers=fields["layers"])
    open_trace(saved).check_layer(2)  # a sum of 1 is expected then, and is what it is


def test_float32_summation_is_forgiven(saved: Path) -> None:
    sums = open_trace(saved).tensor(2, "row_sum").copy()
    sums[0, 39] += 40 * 2.0**-23
    replace(saved, row_sum=sums)
    open_trace(saved).check_layer(2)


def test_entries_before_the_window(saved: Path) -> None:
    fields = json.loads((saved / "trace.json").read_text())
    fields["layers"][0]["window"] = 10
    edit(saved, layers=fields["layers"])
    with refuses("head 0, row 10, column 0: found .*, expected 0 before the window"):
        open_trace(saved).check_layer(2)


def test_other_tensors_are_checked(saved: Path) -> None:
    norms = np.ones((2, 40), np.float32)
    norms[1, 5] = -1
    replace(saved, v_norm1=norms)
    with refuses("tensor v_norm1, head 1, row 5: found -1.0"):
        open_trace(saved).check_layer(2)
