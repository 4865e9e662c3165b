"""The trace store: exact conversions, round trips, and one clear line for every damaged file."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from strategies import examples, qk_traces, sixteenths, softmax_scores, traces

from h2osim.attention.fixed_point import (
    ONE,
    ONE_BITS,
    bits_from_fixed,
    fixed_from_bits,
    float_from_bits,
    round_to_bits,
)
from h2osim.attention.softmax import RowMaker
from h2osim.attention.triangle import pack, row_slice, rows_in, tri, unpack
from h2osim.support import bundled
from h2osim.support.errors import UserError
from h2osim.traces import files
from h2osim.traces.catalogue import bundled_traces, open_trace
from h2osim.traces.trace import Trace
from h2osim.traces.writer import TraceWriter


def refuses(message: str) -> Any:
    """The block raises a UserError that matches this regular expression."""
    return pytest.raises(UserError, match=message)


ALL_BITS = np.arange(ONE_BITS + 1, dtype=np.uint16)


def softmax(n: int = 40, heads: int = 4, layers: int = 2, seed: int = 0) -> np.ndarray:
    """Some float32 attention [layers, heads, n, n]."""
    logits = np.random.default_rng(seed).standard_normal((layers, heads, n, n)) * 3
    logits[..., np.triu(np.ones((n, n), bool), 1)] = -np.inf
    weights = np.exp(logits.astype(np.float32) - logits.max(-1, keepdims=True).astype(np.float32))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good scores trace on disk: layers 2 and 9, four heads in groups of two, 40 tokens."""
    made = Trace.from_scores(softmax(), group_size=2, layers=[2, 9], name="good")
    return made.save(tmp_path / "good")


# --- fixed point ---------------------------------------------------------------------------------


def test_every_float16_in_unit_interval_has_its_fixed_point() -> None:
    assert len(ALL_BITS) == 15361
    fixed = fixed_from_bits(ALL_BITS)
    assert fixed.dtype == np.int64 and fixed[0] == 0 and fixed[-1] == ONE
    exact = [Fraction(float(x)) * 2**24 for x in ALL_BITS.view(np.float16)]
    assert [Fraction(int(x)) for x in fixed] == exact
    assert (np.diff(fixed) > 0).all()
    assert np.array_equal(bits_from_fixed(fixed), ALL_BITS)
    assert np.array_equal(round_to_bits(float_from_bits(ALL_BITS)), ALL_BITS)
    assert np.array_equal(round_to_bits(fixed / ONE), ALL_BITS)


def test_the_compiled_conversion_is_the_same() -> None:
    from h2osim.attention.row_loops import fixed, sum_heads

    assert [fixed(int(x)) for x in ALL_BITS] == fixed_from_bits(ALL_BITS).tolist()
    row = np.empty(ALL_BITS.size, np.int64)
    sum_heads(np.stack([ALL_BITS, ALL_BITS[::-1]]), 0, row.size, row)
    assert np.array_equal(row, fixed_from_bits(ALL_BITS) + fixed_from_bits(ALL_BITS)[::-1])


@pytest.mark.parametrize("value", [-0.0, -1.0, np.inf, np.nan, 1.001])
def test_other_float16_have_none(value: float) -> None:
    with pytest.raises(ValueError, match=r"no|not a float16 number in \[0, 1\]"):
        fixed_from_bits(np.array([value], np.float16).view(np.uint16))


@pytest.mark.parametrize("fixed", [-1, ONE + 1, 2049, ONE - 1])
def test_fixed_points_are_never_rounded(fixed: int) -> None:
    with pytest.raises(ValueError):
        bits_from_fixed(np.array([fixed]))


def test_conversions_want_their_types() -> None:
    with pytest.raises(TypeError):
        fixed_from_bits(np.zeros(3, np.int64))
    with pytest.raises(TypeError):
        bits_from_fixed(np.zeros(3))


def test_rounding_is_to_nearest_even() -> None:
    halves = np.array([2.0**-25, 3 * 2.0**-25, 2.0**-25 * (1 + 2**-20), 0.5 + 2.0**-12, -0.0])
    assert fixed_from_bits(round_to_bits(halves)).tolist() == [0, 2, 1, ONE // 2, 0]


def test_triangle() -> None:
    assert [tri(t) for t in range(5)] == [0, 1, 3, 6, 10]
    assert [rows_in(tri(t)) for t in (0, 1, 7, 10**6)] == [0, 1, 7, 10**6]
    for size in (-1, 2, 11):
        with pytest.raises(ValueError):
            rows_in(size)
    with pytest.raises(ValueError, match="need 4 columns"):
        pack(np.zeros((2, 3)), first=2)


@given(
    n=st.integers(1, 12),
    first=st.integers(0, 11),
    turn=st.sampled_from([lambda a: a, np.asfortranarray, lambda a: np.repeat(a, 2, 1)[:, ::2]]),
)
def test_pack_and_unpack(n: int, first: int, turn: Callable[[np.ndarray], np.ndarray]) -> None:
    first = min(first, n - 1)
    square = np.tril(np.random.default_rng(n).random((n, n)))
    packed = pack(turn(square)[first:], first)
    assert packed.flags.c_contiguous and packed.shape == (tri(n) - tri(first),)
    for t in range(first, n):
        assert np.array_equal(packed[row_slice(t, first)], square[t, : t + 1])
    assert np.array_equal(unpack(packed, first), square[first:])


# --- from arrays to disk and back ----------------------------------------------------------------


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


@examples(20)
@given(trace=st.one_of(traces(norms=True), qk_traces(values=True)))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, trace: Trace) -> None:
    path = trace.save(tmp_path_factory.mktemp("round") / "trip")
    again = open_trace(path)
    again.verify()
    same(trace, again)
    assert sorted(p.name for p in path.parent.iterdir()) == ["trip"]
    for layer in again.layers:
        with safetensors.safe_open(path / again.layer_entry(layer)["file"], "numpy") as file:
            assert sorted(file.keys()) == sorted(again.tensors(layer))
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                assert tensor.dtype == (np.float16 if name == "scores" else np.float32)
                assert tensor.tobytes() == again.tensor(layer, name).tobytes()


@given(scores=sixteenths())
def test_sixteenths_are_stored_exactly(scores: np.ndarray) -> None:
    trace = Trace.from_scores(scores)
    trace.verify()
    layers, heads, n, _ = scores.shape
    for unit in trace.units("head"):
        square = scores[unit.layer, unit.heads[0]]
        for t in range(n):
            assert (unit.row(t) == square[t, : t + 1] * ONE).all()
        assert (unit.row_masses() == ONE).all()
    for unit in trace.units("layer"):
        total = scores[unit.layer].sum(axis=0) * ONE
        assert (unit.column_sums() == total.sum(axis=0)).all()
        assert (unit.row_masses() == heads * ONE).all()
    assert all((trace.tensor(layer, "row_sum") == 1).all() for layer in range(layers))


@given(scores=softmax_scores())
def test_rows_are_rounded_to_nearest(scores: np.ndarray) -> None:
    trace = Trace.from_scores(scores)
    trace.verify()
    for layer, head in np.ndindex(scores.shape[:2]):
        stored = unpack(trace.tensor(layer, "scores")[head].view(np.float16))
        assert np.array_equal(stored, scores[layer, head].astype(np.float16))
        sums = scores[layer, head].sum(axis=1, dtype=np.float64).astype(np.float32)
        assert np.array_equal(trace.tensor(layer, "row_sum")[head], sums)


TWISTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.swapaxes(-1, -2)).swapaxes(-1, -2),
    "every second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "heads last": lambda a: np.moveaxis(np.ascontiguousarray(np.moveaxis(a, 1, -1)), -1, 1),
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "float64": lambda a: a.astype(np.float64),
}


@pytest.mark.parametrize("twist", TWISTS)
def test_strides_and_byte_order_do_not_matter(twist: str, tmp_path: Path) -> None:
    scores, turn = softmax(), TWISTS[twist]
    norms = np.random.default_rng(1).random((2, 2, 40)).astype(np.float32)
    plain = Trace.from_scores(scores, group_size=2, v_norm1=norms)
    twisted = Trace.from_scores(turn(scores), group_size=2, v_norm1=turn(norms[..., None])[..., 0])
    same(plain, twisted)
    same(plain, open_trace(twisted.save(tmp_path / "t")))
    q = np.random.default_rng(2).standard_normal((1, 4, 30, 6)).astype(np.float32)
    k = np.random.default_rng(3).standard_normal((1, 2, 30, 6)).astype(np.float32)
    again = open_trace(Trace.from_qk(turn(q), turn(k), scale=0.5).save(tmp_path / "qk"))
    same(Trace.from_qk(q, k, scale=0.5), again)


def test_fewer_axes_and_group_sizes() -> None:
    scores = softmax(layers=1)
    same(Trace.from_scores(scores), Trace.from_scores(scores[0]))
    one = Trace.from_scores(scores[0, 0])
    assert one.heads == (0,) and one.layers == (0,)
    trace = Trace.from_scores(scores, group_size=2, layers=[7], prompt_len=5)
    assert trace.layers == (7,) and trace.kv_heads == (0, 1) and trace.prompt_len == 5
    shares = {share: trace.units(share) for share in ("head", "group", "layer")}
    assert [u.heads for u in shares["head"]] == [(0,), (1,), (2,), (3,)]
    assert [u.kv for u in shares["head"]] == [(0,), (0,), (1,), (1,)]
    assert [u.heads for u in shares["group"]] == [(0, 1), (2, 3)]
    assert [u.heads for u in shares["layer"]] == [(0, 1, 2, 3)]
    assert [u.index for u in shares["group"]] == [0, 1]
    assert shares["group"][1].label == "layer 7, KV head 1"
    assert shares["head"][3].label == "layer 7, head 3"
    assert shares["layer"][0].label == "layer 7"
    assert trace.units("group")[0] is shares["group"][0], "units keep what they have computed"


def test_float16_input_has_no_sum_before_rounding() -> None:
    scores = softmax(n=300).astype(np.float16)
    trace = Trace.from_scores(scores)
    assert "row_sum" not in trace.tensors(0)
    trace.verify()


def test_norms_of_values_and_keys() -> None:
    scores = softmax(layers=1)
    rng = np.random.default_rng(4)
    v = rng.standard_normal((1, 2, 40, 6)).astype(np.float32)
    norm = np.abs(v.astype(np.float64)).sum(-1).astype(np.float32)
    stored = Trace.from_scores(scores, group_size=2, v_norm1=norm)
    unit = stored.units()[1]
    assert np.array_equal(unit.value_norms(), norm[0, 1])
    layer = stored.units("layer")[0]
    assert np.array_equal(layer.value_norms(), norm[0].astype(np.float64).sum(axis=0))
    with refuses("trace scores: layer 0 has no tensor v_norm2; record with"):
        unit.value_norms(order=2)
    with refuses("no tensor k_norm2.*--store qk"):
        unit.key_norms()
    with refuses("no tensor v;"):
        unit.values()
    with pytest.raises(ValueError, match="order 3"):
        unit.value_norms(order=3)
    whole = Trace.from_scores(scores, group_size=2, v=v).units()[1]
    # norms are kept as float32
    assert whole.value_norms(1) == pytest.approx(np.abs(v[0, 1]).sum(-1), rel=1e-6)
    assert whole.value_norms(2) == pytest.approx(np.linalg.norm(v[0, 1], axis=-1), rel=1e-6)
    assert np.array_equal(whole.values(), v[:, 1])
    qk = Trace.from_qk(np.ones((1, 2, 5, 3)), np.full((1, 1, 5, 3), 2.0), scale=1).units()[0]
    assert qk.key_norms() == pytest.approx(np.sqrt(12))  # a float32 here as well
    assert qk.keys().shape == (1, 5, 3) and qk.queries().shape == (2, 5, 3)


# --- reading -------------------------------------------------------------------------------------


def test_scores_are_views_of_the_file(saved: Path) -> None:
    trace = open_trace(saved)
    whole = trace.tensor(9, "scores")
    for share, count in (("head", 4), ("group", 2), ("layer", 1)):
        units = [u for u in trace.units(share) if u.layer == 9]
        assert len(units) == count
        for unit in units:
            (block,) = unit.blocks()
            assert type(block.bits) is np.ndarray and block.bits.dtype == np.uint16
            assert (block.start, block.stop, block.first) == (0, 40, 0)
            assert block.bits.flags.c_contiguous and block.bits.flags.aligned
            assert not block.bits.flags.writeable
            assert np.shares_memory(block.bits, whole)
    base: Any = whole
    while isinstance(base, np.ndarray) and not isinstance(base, np.memmap):
        base = base.base
    assert isinstance(base, np.memmap)


def test_opening_reads_headers_only(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of 7 GB with nothing in it opens at once, and is not even mapped."""
    n = 60_000
    tensors = {"scores": ("F16", (2, tri(n))), "row_sum": ("F32", (2, n))}
    header, slots = files.layout(tensors)
    end = slots["scores"].offset + slots["scores"].nbytes
    with open(saved / "layer-002.safetensors", "wb") as file:
        file.write(header)
        file.truncate(end)
    entry = {"index": 2, "file": "layer-002.safetensors", "sha256": "0" * 64, "bytes": end}
    edit(saved, n=n, heads=[0, 1], kv_heads=[0], layers=[entry])
    monkeypatch.setattr(np, "memmap", lambda *a, **k: pytest.fail("mapped the file"))
    started = time.monotonic()
    trace = open_trace(saved)
    assert time.monotonic() - started < 1
    assert trace.n == n and trace.name == "good" and trace.path == saved
    assert trace.units()[0].n == n


@examples(20)
@given(
    trace=st.one_of(traces(max_layers=1), qk_traces(max_layers=1)),
    rows=st.one_of(st.none(), st.integers(1, 26)),
    lag=st.integers(0, 30),
    share=st.sampled_from(["head", "group", "layer"]),
)
def test_blocks_and_rows_agree(trace: Trace, rows: int | None, lag: int, share: str) -> None:
    for unit in trace.units(share):
        expected = [unit.head_rows(t) for t in range(trace.n)]
        reached = 0
        for block in unit.blocks(rows, lag):
            assert block.start == reached and block.first == max(0, block.start - lag)
            assert rows is None or block.stop - block.start <= rows
            assert block.bits.shape == (len(unit.heads), tri(block.stop) - tri(block.first))
            assert block.bits.flags.c_contiguous and not block.bits.flags.writeable
            for t in range(block.first, block.stop):
                assert np.array_equal(block.head_rows(t), expected[t])
            reached = block.stop
        assert reached == trace.n
        columns = np.zeros(trace.n, np.int64)
        for t, row in enumerate(expected):
            assert row.shape == (len(unit.heads), t + 1) and row.dtype == np.int64
            assert np.array_equal(unit.row(t), row.sum(axis=0))
            columns[: t + 1] += row.sum(axis=0)
        assert np.array_equal(unit.column_sums(), columns)
        assert unit.row_masses().tolist() == [int(row.sum()) for row in expected]


def test_wrong_rows_and_shares() -> None:
    trace = Trace.from_scores(softmax(n=5))
    unit = trace.units()[0]
    for t in (-1, 5):
        with pytest.raises(IndexError):
            unit.row(t)
    with pytest.raises(ValueError, match="rows 0"):
        next(unit.blocks(0))
    with pytest.raises(ValueError, match="lag -1"):
        next(unit.blocks(lag=-1))
    with refuses("share: found 'heads', expected one of head, group, layer"):
        trace.units("heads")
    with refuses("no layer 5; it has 0, 1"):
        trace.check_layer(5)


def test_reading_in_threads(saved: Path) -> None:
    n = 700
    q = np.random.default_rng(5).standard_normal((1, 4, n, 8))
    qk = Trace.from_qk(q, q[:, :2], scale=0.4)
    for trace in (open_trace(saved), qk):
        units = [u for share in ("head", "group", "layer") for u in trace.units(share)] * 3
        expected = [u.row(u.n - 1) for u in units]
        start = threading.Barrier(4)

        def read(i: int, units: Any = units, start: Any = start) -> list[np.ndarray]:
            start.wait()
            units[0].trace.verify()
            return [np.array([u.row(t).sum() for t in (0, u.n - 1)]) for u in units[i::4]]

        with ThreadPoolExecutor(4) as pool:
            for i, found in enumerate(pool.map(read, range(4))):
                for unit, sums, row in zip(units[i::4], found, expected[i::4], strict=True):
                    assert sums[1] == row.sum(), unit


# --- rows from queries and keys ------------------------------------------------------------------


@examples(40)
@given(
    n=st.integers(1, 40),
    group_size=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    size=st.integers(1, 9),
    softcap=st.sampled_from([None, 0.5, 5.0]),
    window=st.one_of(st.none(), st.integers(1, 45)),
    spread=st.sampled_from([0.0, 1.0, 6.0]),
)
def test_rows_are_a_softmax(
    n: int,
    group_size: int,
    kv_heads: int,
    size: int,
    softcap: float | None,
    window: int | None,
    spread: float,
) -> None:
    rng = np.random.default_rng(n)
    heads = group_size * kv_heads
    q = (rng.standard_normal((heads, n, size)) * spread).astype(np.float32)
    k = rng.standard_normal((kv_heads, n, size)).astype(np.float32)
    maker = RowMaker(k, group_size=group_size, scale=0.7, softcap=softcap, window=window)
    made = maker.make(q, 0)
    row, column = np.indices((n, n))
    hidden = (column > row) | (column <= row - (window or n))
    for h in range(heads):
        logits = 0.7 * q[h].astype(np.float64) @ k[h // group_size].astype(np.float64).T
        if softcap:
            logits = softcap * np.tanh(logits / softcap)
        logits[hidden] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        exact = weights / weights.sum(axis=1, keepdims=True)
        stored = unpack(made.bits[h].view(np.float16)).astype(np.float64)
        # half a unit of float16, and a little for float32 on the way
        assert np.all(np.abs(stored - exact) <= exact * (2**-11 + 2e-5) + 2**-25 + 1e-9)
        assert not stored[hidden].any()
        lse = logits.max(axis=1) + np.log(weights.sum(axis=1))
        # both are made from float32 logits and kept as float32
        assert made.lse[h] == pytest.approx(lse, abs=1e-4)
        assert made.row_sum[h] == pytest.approx(1, abs=1e-6)


def test_a_row_has_the_same_bits_whatever_is_made_with_it() -> None:
    rng = np.random.default_rng(6)
    q, k = rng.standard_normal((4, 530, 16)) * 2, rng.standard_normal((2, 530, 16))
    maker = RowMaker(k, group_size=2, scale=0.25, window=400)
    whole = maker.make(q, 0)
    for start, stop in ((0, 1), (1, 5), (3, 530), (511, 514), (529, 530)):
        part = maker.make(q[:, start:stop], start)
        assert np.array_equal(part.bits, whole.bits[:, tri(start) : tri(stop)])
        assert np.array_equal(part.row_sum, whole.row_sum[:, start:stop])
        assert np.array_equal(part.lse, whole.lse[:, start:stop])
    alone = RowMaker(k[1:2], group_size=1, scale=0.25, window=400).make(q[3:4], 0)
    assert np.array_equal(alone.bits[0], whole.bits[3])


@pytest.mark.parametrize(
    ("softcap", "window", "expected"),
    [(None, None, "c14566d9216fc1e1"), (3.0, 50, "935a83d1b09ecb93")],
)
def test_rows_have_the_same_bits_on_every_machine(
    softcap: float | None, window: int | None, expected: str
) -> None:
    words = np.random.PCG64(7).random_raw(3 * 130 * 12) >> np.uint64(40)  # 24 bits: exact below
    q, k, _ = (words.astype(np.float32) * np.float32(2.0**-21) - 4).reshape(3, 1, 130, 12)
    maker = RowMaker(k, scale=0.3, softcap=softcap, window=window)
    made = maker.make(q, 0)
    assert made.bits.max() > 0x3A00 and (made.bits[0, tri(129) :] < 0x400).any()
    digest = hashlib.sha256(made.bits.tobytes() + made.row_sum.tobytes()).hexdigest()
    assert digest[:16] == expected


def test_rows_of_extreme_logits() -> None:
    q = np.array([1.0, 1e4, -1e4, 100.0]).reshape(1, 4, 1)
    maker = RowMaker(np.array([0.0, 1.0, 2.0, -1.0]).reshape(1, 4, 1), scale=1.0)
    rows = unpack(maker.make(q, 0).bits[0].view(np.float16))
    assert rows.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]


def test_probabilities_of_every_size_are_rounded_to_nearest() -> None:
    """Rows (p, 1 - p) with p from 1 down to 2^-29, also between the float16 numbers."""
    for x in -np.linspace(0, 20, 300, dtype=np.float32):
        maker = RowMaker(np.array([[[x], [0.0]]]), scale=1.0)
        p = 1 / (1 + np.exp(-np.float64(x)))
        made = float(maker.make(np.ones((1, 1, 1)), 1).bits[0, :1].view(np.float16)[0])
        assert abs(made - p) <= abs(float(np.float16(p)) - p) + 1e-6 * p


def test_row_maker_refuses() -> None:
    k = np.zeros((1, 4, 2))
    with pytest.raises(ValueError, match="keys have shape"):
        RowMaker(k[0], scale=1)
    maker = RowMaker(k, scale=1)
    with pytest.raises(ValueError, match="queries have shape"):
        maker.make(np.zeros((1, 4, 3)), 0)
    with pytest.raises(ValueError, match="not 2"):
        maker.make(np.zeros((2, 4, 2)), 0)
    with pytest.raises(ValueError, match="needs 5 keys"):
        maker.make(np.zeros((1, 4, 2)), 1)
    with pytest.raises(ValueError, match="too small"):
        maker.make(np.zeros((1, 4, 2)), 0, first=0, out=np.zeros((1, 9), np.uint16))
    huge = RowMaker(np.full((1, 4, 2), 1e30), scale=1)
    with pytest.raises(ValueError, match="logits of head 0, row 2 are not finite"):
        huge.make(np.full((1, 2, 2), 1e30), 2)
    q = np.zeros((1, 20, 2))
    q[0, 17] = 1e30, -1e30  # infinity minus infinity, in one logit of many
    k = np.zeros((1, 20, 2))
    k[0, 5] = 1e30
    with pytest.raises(ValueError, match="logits of head 0, row 17 are not finite"):
        RowMaker(k, scale=1).make(q, 0)


def test_overflowing_logits_name_the_unit() -> None:
    huge = np.full((1, 1, 3, 1), 1e30)
    with pytest.raises(
        UserError, match="trace qk, layer 0, layer 0, head 0: logits of head 0, row"
    ):
        Trace.from_qk(huge, huge, scale=1).units()[0].row(1)


# --- mistakes in arrays --------------------------------------------------------------------------


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


# --- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_writing_stops(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "new" / "folder" / "trace"
    with (
        pytest.raises(error),
        TraceWriter(target, stores=["scores"], group_size=1) as writer,
        writer.layer(0, 3, 1, 1, tensors=["scores", "row_sum"]) as file,
    ):
        file["row_sum"][...] = 1
        assert any(tmp_path.iterdir())
        raise error
    assert not any(tmp_path.iterdir())


def test_nothing_is_left_when_saving_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace.from_scores(softmax(n=6))
    calls = []

    def stop(*args: Any) -> str:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return "0" * 64

    monkeypatch.setattr("h2osim.traces.files.sha256_of", stop)
    with pytest.raises(KeyboardInterrupt):
        trace.save(tmp_path / "trace")
    assert len(calls) == 2 and not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files")
def test_all_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut there is a whole trace, or none: each file and folder is flushed first."""
    events: list[str] = []

    def flush(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("folder" if place.name.endswith(".partial.trace") else place.name)

    rename = os.rename

    def named(old: Path, new: Path) -> None:
        events.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", named)
    Trace.from_scores(softmax(layers=2, n=6)).save(tmp_path / "trace")
    layers = ["layer-000.safetensors", "layer-001.safetensors"]
    assert events == [*layers, "trace.json", "folder", "rename", tmp_path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from h2osim.traces.writer import TraceWriter\n"
        "with TraceWriter(sys.argv[1], stores=['scores'], group_size=1) as w:\n"
        "    with w.layer(0, 3, 1, 1, tensors=['scores', 'row_sum']) as f:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "trace")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    assert any(tmp_path.iterdir())
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert not any(tmp_path.iterdir())


def test_a_bad_trace_is_not_saved(tmp_path: Path) -> None:
    with refuses("found sum 0"):
        Trace.from_packed(np.zeros((2, 1, 3), np.uint16)).save(tmp_path / "bad")
    assert not any(tmp_path.iterdir())


def test_existing_folders(saved: Path, tmp_path: Path) -> None:
    trace = Trace.from_scores(softmax(n=7, layers=1))
    before = (saved / "trace.json").read_bytes()
    with refuses("good: exists already; nothing was written"):
        trace.save(saved)
    assert (saved / "trace.json").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    with refuses("exists and is no trace; only a trace is overwritten"):
        trace.save(other, overwrite=True)
    assert (other / "precious").exists()
    same(trace, open_trace(trace.save(saved, overwrite=True)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good", "other"]


def test_overwriting_a_trace_with_itself(saved: Path) -> None:
    trace = open_trace(saved)
    scores = trace.tensor(2, "scores").tobytes()
    trace.save(saved, overwrite=True)
    again = open_trace(saved)
    again.verify()
    assert again.tensor(2, "scores").tobytes() == scores == trace.tensor(2, "scores").tobytes()


def test_the_old_trace_survives_a_failed_overwrite(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename_, calls = os.rename, []

    def fail(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename_(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with refuses("good: cannot be written: Input/output error"):
        Trace.from_scores(softmax(n=7)).save(saved, overwrite=True)
    open_trace(saved).verify()
    assert open_trace(saved).n == 40
    assert [p.name for p in saved.parent.iterdir()] == ["good"]


def test_a_full_disk_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("h2osim.traces.writer._reserve", full)
    with refuses("trace: cannot be written: No space left on device"):
        Trace.from_scores(softmax(n=7)).save(tmp_path / "trace")
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with refuses("cannot be made: Not a directory|exists"):
        Trace.from_scores(softmax(n=7)).save(tmp_path / "file" / "trace")


def test_streaming_rows(tmp_path: Path) -> None:
    expected = Trace.from_scores(softmax(n=30, layers=1, heads=2), layers=[4], name="stream")
    bits = expected.tensor(4, "scores")
    fields: dict[str, Any] = {"stores": ["scores"], "group_size": 2, "tokens": None}
    with TraceWriter(tmp_path / "stream", **fields) as writer:
        shapes = {"scores": ("float16", (2, tri(30))), "row_sum": (np.float32, (2, 30))}
        with writer.layer(4, 30, 2, [3], 8, tensors=shapes, scale=0.5) as file:
            for head in (1, 0):
                for start, stop in ((20, 30), (0, 1), (1, 20)):
                    part = bits[head, tri(start) : tri(stop)]
                    # float16 or patterns, any strides
                    part = part.view(np.float16) if head else np.repeat(part, 2)[::2]
                    file.write_rows("scores", head, start, part)
            file["row_sum"][:, :10] = expected.tensor(4, "row_sum")[:, :10]
            file["row_sum"][:, 10:] = expected.tensor(4, "row_sum")[:, 10:]
        writer.manifest["prompt_len"] = 12  # known late
    trace = open_trace(tmp_path / "stream")
    trace.verify()
    assert trace.kv_heads == (3,) and trace.heads == (0, 1) and trace.prompt_len == 12
    assert trace.manifest["created_by"].startswith("h2osim")
    assert trace.tensor(4, "scores").tobytes() == bits.tobytes()
    assert trace.layer_entry(4)["scale"] == 0.5 and trace.manifest["head_dim"] == 8


def test_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    one = {"n": 4, "heads": [0], "kv_heads": [0], "group_size": 1}
    fields: dict[str, Any] = {"stores": ["scores"], **one}
    with pytest.raises(TypeError, match="no such fields in a manifest: colour"):
        TraceWriter(tmp_path / "t", colour="red")
    with pytest.raises(RuntimeError, match="with statement"):
        TraceWriter(tmp_path / "t", **fields).layer(0, tensors=["scores"]).__enter__()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n": 5, "tensors": ["scores"]}, "n 5, but 4 before"),
        ({"tensors": ["score"]}, "no tensor of a trace is called score"),
        ({"tensors": []}, "at least one tensor"),
        ({"tensors": ["v"]}, "tensor v: its shape needs head_dim"),
        ({"tensors": {"lse": ("float16", (1, 4))}}, r"tensor lse: float16 \(1, 4\), expected F32"),
        ({"tensors": {"lse": ("float32", (4,))}}, r"expected F32 \[1, 4\]"),
    ]
    for arguments, message in wrong:
        with (
            pytest.raises(ValueError, match=message),
            TraceWriter(tmp_path / "t", **fields) as writer,
            writer.layer(0, **arguments),
        ):
            pass
    for head, first, bits, error in [
        (1, 0, np.zeros(1, np.uint16), IndexError),
        (0, 4, np.zeros(5, np.uint16), IndexError),
        (0, 1, np.zeros(3, np.uint16), ValueError),
        (0, 0, np.zeros(1, np.float32), TypeError),
    ]:
        with (
            pytest.raises(error),
            TraceWriter(tmp_path / "t", **fields) as writer,
            writer.layer(0, tensors=["scores"]) as file,
        ):
            file.write_rows("scores", head, first, bits)
    with (
        refuses("field layers: found"),
        TraceWriter(tmp_path / "t", **fields),
    ):
        pass
    assert not any(tmp_path.iterdir())


# --- names and carried folders -------------------------------------------------------------------


def test_bundled_names(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "traces"
    (root / "local").mkdir(parents=True)
    shutil.copytree(saved, root / "smollm2-prose")
    shutil.copytree(saved, root / "local" / "mine")
    shutil.copytree(saved, root / "local" / "smollm2-prose")
    (root / "no-trace").mkdir()
    monkeypatch.setattr(bundled, "traces", lambda: root)
    assert list(bundled_traces()) == ["mine", "smollm2-prose"]
    monkeypatch.chdir(tmp_path)
    assert open_trace("smollm2-prose").path == root / "smollm2-prose"
    assert open_trace("mine").path == root / "local" / "mine"
    assert open_trace("good").path == Path("good"), "a folder goes first"
    with refuses(r"trace smollm2-pros: .*did you mean smollm2-prose\?"):
        open_trace("smollm2-pros")
    with pytest.raises(
        UserError, match="neither a folder nor a bundled trace; bundled traces: mine"
    ):
        open_trace("x/y/z")


def test_carried_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (bundled.traces, bundled.proofs, bundled.gpu):
        assert folder().is_dir() and folder().name == folder.__name__
    package = tmp_path / "site" / "h2osim"
    package.mkdir(parents=True)
    monkeypatch.setattr(bundled, "_PACKAGE", package)
    assert bundled_traces() == {}
    with refuses("folder gpu/ of h2osim not found: looked at .*_carried"):
        bundled.gpu()
    (tmp_path / "site" / "gpu").mkdir()
    assert bundled.gpu() == tmp_path / "site" / "gpu"
    (package / "_carried" / "gpu").mkdir(parents=True)
    assert bundled.gpu() == package / "_carried" / "gpu", "the installed copy goes first"
