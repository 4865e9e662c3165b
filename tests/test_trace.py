"""Traces: exact round trips, how they are read, names and carried folders."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces, sixteenths, softmax_scores, traces
from trace_cases import edit, refuses, same, softmax

from h2osim.attention.fixed_point import (
    ONE,
)
from h2osim.attention.triangle import tri, unpack
from h2osim.support import bundled
from h2osim.support.errors import UserError
from h2osim.traces import files
from h2osim.traces.catalogue import bundled_traces, open_trace
from h2osim.traces.trace import Trace


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
