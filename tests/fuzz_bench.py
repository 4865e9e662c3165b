"""What the fuzzers draw and work on: spoiled values and bytes, and the valid files of `Bench`."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_oracle import check_trace
from hypothesis import strategies as st

import h2osim
from h2osim import Trace
from h2osim.optima.certificate import save_certificate
from h2osim.replays.facts import trace_facts

N, PROMPT, BUDGETS = 7, 2, (2, 3)


class Invalid(Exception):
    """A reader has let in what the oracle refuses."""


NASTY = st.one_of(
    st.none(), st.booleans(), st.text(max_size=4), st.floats(), st.just([]), st.just({}),
    st.integers(-2, N + 2),
    st.sampled_from([2**31, 2**53, 2**63, 10**30, -1, 0.5, "0", "1", "\0", "../x", "/dev/zero",
                     ".", "trace.json", "scores", "row_sum", "qk", "F32", [[]], [0], {"name": 3}]),
)  # fmt: skip
PIECES = st.sampled_from(
    [b"NaN", b"Infinity", b"1e999", b"9" * 5000, b'"\\ud800"', b'"\\u0000"', b"\xff", b"[" * 3000,
     b'{"a":1,"a":2}', b"", b",", b"}", b"\xef\xbb\xbf", b"-0", b"0", b"null", b"true", b"1.0"]
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be changed in a JSON value: the ways to all that is in it."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in items:
        found.append((*path, key))
        if isinstance(one, dict | list) and len(one) < 40:
            found += places(one, (*path, key))
    return found


def mutate(data: st.DataObject, value: Any, fields: tuple[str, ...] = ()) -> bytes:
    """A JSON text with one to three changes."""
    value = json.loads(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.sampled_from(places(value) + [(field,) for field in fields]))
        parent = value
        for key in where[:-1]:
            parent = parent[key]
        if data.draw(st.booleans()) or where[0] in fields:
            parent[where[-1]] = copy.deepcopy(data.draw(NASTY))  # it may be changed in turn
        elif len(where) > 1 or len(value) > 1:
            del parent[where[-1]]
        if not value:
            break
    text = json.dumps(value).encode()
    if data.draw(st.integers(0, 3)) == 0 and text:
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(PIECES) + text[at + data.draw(st.integers(0, 3)) :]
    return text


def flip(data: st.DataObject, content: bytes) -> bytes:
    """Bytes changed, cut off, doubled or added."""
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    match data.draw(st.integers(0, 3)):
        case 0:
            return content[:at]
        case 1:
            return content + data.draw(st.binary(min_size=1, max_size=9))
        case 2:
            return content[:at] + content[at : at + 8] + content[at:]
    return content[:at] + bytes([content[at] ^ data.draw(st.integers(1, 255))]) + content[at + 1 :]


class Bench:
    """The valid files that mutants are made from, in a folder of this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(1)
        scores = np.tril(rng.gamma(0.5, size=(2, 2, N, N)) + 1e-2)
        trace = Trace.from_scores(
            scores / scores.sum(-1, keepdims=True), group_size=1, name="fuzzed",
            v_norm1=rng.random((2, 2, N)), v=rng.random((2, 2, N, 1)), x_norm=rng.random((2, N)),
            w_o=rng.random((2, 2, 1, 2)), model={"name": "m", "architecture": "a"},
            text={"name": "t"}, tokens={"ids": [*range(N)], "text": ["a"] * N}, prompt_len=PROMPT,
        )  # fmt: skip
        self.base = trace.save(folder / "base")
        self.trace = folder / "trace"
        shutil.copytree(self.base, self.trace)
        self.whole = {path.name: path.read_bytes() for path in self.base.iterdir()}
        self.manifest = json.loads(self.whole["trace.json"])
        opened = h2osim.open_trace(self.base)
        found = h2osim.optimum(opened, list(BUDGETS), layers=[0])
        self.certificate = save_certificate(found, opened, folder / "c").read_bytes()
        self.rows = np.array(
            [[np.pad(u.row(t), (0, N - 1 - t)) for t in range(N)] for u in opened.units()[:2]]
        )
        self.best = {}
        for p in range(1, N):
            every = h2osim.optimum(opened, "all", layers=[0], prompt_len=p)
            for unit in range(2):
                for k in every["budget"].values:
                    kept = every["kept"].sel(budget=k).values
                    self.best[unit, int(k), p] = int(kept[0, unit])
        self.grid = ("h2o:recent=0|1,tova", [2, 4])
        self.expected = h2osim.sweep(self.base, *self.grid, folder / "store", chunk=(2, 2)).load()

    def reset(self) -> None:
        for name, content in self.whole.items():
            if (self.trace / name).read_bytes() != content:
                (self.trace / name).write_bytes(content)

    def seal(self, name: str, content: bytes) -> None:
        """Put a layer's file there, and its size and digest into the manifest."""
        (self.trace / name).write_bytes(content)
        fields = json.loads(self.whole["trace.json"])
        for layer in fields["layers"]:
            if layer["file"] == name:
                layer |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (self.trace / "trace.json").write_text(json.dumps(fields))

    def read(self) -> None:
        """Open the mutant as commands do; what they let in is judged."""
        trace = h2osim.open_trace(self.trace)
        trace.verify()
        trace_facts(trace)
        for unit in trace.units():
            unit.row(trace.n - 1)
        try:
            check_trace(self.trace)
        except Exception as error:
            raise Invalid(repr(error)) from error


Fuzzer = Callable[[Bench, st.DataObject], None]
