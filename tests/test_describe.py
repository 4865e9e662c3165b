"""The facts about a trace, against their definitions in plain Python."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples, qk_traces, sixteenths, traces

from h2osim.support.errors import UserError
from h2osim.traces.catalogue import open_trace
from h2osim.traces.description import describe, heatmap
from h2osim.traces.synthetic import synth
from h2osim.traces.trace import Trace


def ref_layer(trace: Trace, layer: int) -> dict[str, float | int | None]:
    """The definitions of h2osim.traces.description, entry by entry."""
    units = [u for u in trace.units("head") if u.layer == layer]
    window = trace.layer_entry(layer).get("window") or trace.n
    n = trace.n
    entries = under = zeros = total = sinks = recent = heavy = 0
    for unit in units:
        late = [0] * n
        for t in range(n):
            row = [int(x) for x in unit.row(t)]
            for j in range(max(0, t - window + 1), t + 1):
                entries += 1
                under += 100 * row[j] < max(row)
                zeros += row[j] == 0
                total += row[j]
                sinks += row[j] if j < 4 else 0
                recent += row[j] if j >= 4 and j > t - 32 else 0
                late[j] += row[j] if j <= t - 32 else 0
        ranked = sorted(range(4, n), key=lambda j: (-late[j], j))
        heavy += sum(late[j] for j in ranked[: math.ceil(n / 10)])
    rest = total - sinks - recent - heavy
    return {
        "entries": entries,
        "sparsity": under / entries,
        "zeros": zeros / entries,
        "sinks": sinks / total,
        "recent": recent / total,
        "heavy": heavy / total,
        "rest": rest / total,
    }


@examples(25)
@given(trace=st.one_of(traces(max_n=60), qk_traces(max_n=60)))
def test_facts_are_their_definitions(trace: Trace) -> None:
    facts = describe(trace)
    assert [f.layer for f in facts.layers] == list(trace.layers)
    for found in facts.layers:
        for name, value in ref_layer(trace, found.layer).items():
            assert getattr(found, name) == value, name


@given(scores=sixteenths(layers=1))
def test_exact_rows_lose_nothing(scores: np.ndarray) -> None:
    (facts,) = describe(Trace.from_scores(scores)).layers
    assert facts.lost_mean == facts.lost_max == 0
    assert facts.flushed is None, "zeros of a made-up trace may be zeros"
    assert facts.zeros == np.mean(scores[..., np.tri(scores.shape[-1], dtype=bool)] == 0)


def test_loss_is_what_rounding_took() -> None:
    scores = np.tril(np.full((40, 40), 1 / 3)) * 0
    scores[0, 0] = 1
    scores[1:, 0], scores[1:, 1] = 2 / 3, 1 / 3
    (facts,) = describe(Trace.from_scores(scores)).layers
    lost = 1 - float(np.float16(2 / 3)) - float(np.float16(1 / 3))
    assert lost != 0
    # sums before rounding are kept in float32
    assert facts.lost_max == pytest.approx(abs(lost), abs=1e-7)
    assert facts.lost_mean == pytest.approx(lost * 39 / 40, abs=1e-7)
    half = Trace.from_scores(np.eye(3, dtype=np.float16))
    assert describe(half).layers[0].lost_mean is None


def test_flushed_entries_of_a_recorded_softmax() -> None:
    q = np.zeros((1, 1, 5, 1))
    q[..., 4, 0] = 1
    keys = np.array([0, 0, 0, -20.0, 0]).reshape(1, 1, 5, 1)
    (facts,) = describe(Trace.from_qk(q, keys, scale=1)).layers
    assert facts.flushed == 1 and facts.zeros == 1 / 15


def test_exponent_of_a_power_law() -> None:
    scores = np.zeros((204, 204))
    scores[:, 0] = 1  # all on a sink, which does not count, but for the last row
    shares = np.arange(1, 201) ** -1.5
    scores[-1] = [0, 0, 0, 0, *(shares / shares.sum())]
    (facts,) = describe(Trace.from_scores(scores)).layers
    # the fit is to shares that were rounded to float16, by up to 2**-11 each
    assert facts.exponent == pytest.approx(1.5, abs=1e-3)
    assert describe(Trace.from_scores(np.eye(5))).layers[0].exponent is None


def test_record_is_json_and_speaks_of_the_file(tmp_path: Path) -> None:
    path = synth("powerlaw", 200, heads=2, layers=2).save(tmp_path / "made")
    facts = describe(open_trace(path))
    record = json.loads(json.dumps(facts.record()))
    assert record["name"] == "powerlaw-n200-seed0" and record["n"] == 200
    assert record["bytes"] == sum(p.stat().st_size for p in path.glob("*.safetensors"))
    assert [layer["file"] for layer in record["layers"]] == [
        "layer-000.safetensors",
        "layer-001.safetensors",
    ]
    only = describe(open_trace(path), layers=(1,))
    assert only.layers == facts.layers[1:]
    with pytest.raises(UserError, match="no layer 7; it has 0, 1"):
        describe(open_trace(path), layers=(7,))


def test_bad_rows_are_refused_by_name() -> None:
    bits = np.zeros((1, 1, 3), np.uint16)
    with pytest.raises(UserError, match="trace scores, layer 0, head 0, row 0: found sum 0"):
        describe(Trace.from_packed(bits))


@examples(25)
@given(trace=traces(max_layers=1), cells=st.integers(1, 30))
def test_heatmap_is_the_largest_of_each_cell(trace: Trace, cells: int) -> None:
    for unit in trace.units("layer"):
        picture = heatmap(unit, cells)
        n, size = unit.n, min(cells, unit.n)
        assert picture.shape == (size, size)
        largest: dict[tuple[int, int], Fraction] = {}
        for t in range(n):
            for j, value in enumerate(unit.row(t)):
                at = (t * size // n, j * size // n)
                mean = Fraction(int(value), 2**24 * len(unit.heads))
                largest[at] = max(largest.get(at, Fraction(0)), mean)
        for (a, b), value in np.ndenumerate(picture):
            assert value == float(largest[a, b]) if b <= a else np.isnan(value)


def test_heatmap_needs_cells() -> None:
    with pytest.raises(ValueError, match="cells 0"):
        heatmap(synth("trap", 3).units()[0], 0)
