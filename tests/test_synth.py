"""Seeded generators: the same bits everywhere, valid rows, and the numbers the theory states."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from h2osim.attention.fixed_point import ONE
from h2osim.attention.triangle import unpack
from h2osim.support.errors import UserError
from h2osim.support.parameters import split_call
from h2osim.traces.catalogue import open_trace
from h2osim.traces.generators import GENERATORS
from h2osim.traces.synthetic import find, synth
from h2osim.traces.trace import Trace


def matrix(trace: Trace, head: int = 0) -> np.ndarray:
    """One head as float64 [n, n]."""
    bits = trace.tensor(trace.layers[0], "scores")[head]
    return unpack(bits.view(np.float16)).astype(np.float64)


def digest(trace: Trace) -> str:
    total = hashlib.sha256()
    for layer in trace.layers:
        total.update(trace.tensor(layer, "scores").tobytes())
    return total.hexdigest()[:16]


# Bits made on one machine: another one (or another NumPy) must make the same.
PINNED = {
    "powerlaw": "f1b3696539704583",
    "drift": "5e3f5f1be10ece35",
    "needle": "8577bf97935827ab",
    "freeze": "85dc738153393255",
    "trap": "ac064fa076268737",
    "coverage": "a78c415a30ad6d46",
}


@pytest.mark.parametrize("name", GENERATORS)
def test_same_bits_on_every_machine(name: str) -> None:
    assert digest(synth(name, 300, seed=5, layers=2)) == PINNED[name]


@pytest.mark.parametrize("name", GENERATORS)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**40), layers=st.integers(1, 2))
def test_rows_are_valid(name: str, n: int, seed: int, layers: int) -> None:
    n = max(n, GENERATORS[name].least({"k": 3}))
    heads = None if GENERATORS[name].heads else 2
    trace = synth(name, n, seed=seed, layers=layers, heads=heads)
    trace.verify()
    assert trace.n == n and len(trace.layers) == layers
    if name != "powerlaw" and name != "drift":
        # 0.999 and 0.6 are rounded, the other rows are exact
        assert all(
            (np.abs(u.row_masses() - ONE * len(u.heads)) <= 2**12).all() for u in trace.units()
        )


def test_seed_layer_and_head_make_a_difference() -> None:
    one = synth("powerlaw", 50, seed=1, heads=2, layers=2)
    assert digest(one) == digest(synth("powerlaw", 50, seed=1, heads=2, layers=2))
    assert digest(one) != digest(synth("powerlaw", 50, seed=2, heads=2, layers=2))
    parts = [matrix(one, 0), matrix(one, 1)]
    assert not np.array_equal(parts[0], parts[1])
    assert not np.array_equal(one.tensor(0, "scores"), one.tensor(1, "scores"))
    # the first head of a trace does not depend on how many there are
    assert np.array_equal(parts[0], matrix(synth("powerlaw", 50, seed=1)))


def test_saved_and_reopened(tmp_path: Path) -> None:
    trace = synth("powerlaw:exponent=1.5", 64, sink=0, heads=4, group_size=2)
    again = open_trace(trace.save(tmp_path / "made"))
    assert digest(again) == digest(trace) and len(again.units()) == 2
    assert again.manifest["provenance"]["generator"].startswith("powerlaw:exponent=1.5,sink=0.0,")
    assert again.name == "powerlaw-n64-seed0"


# --- what each is about --------------------------------------------------------------------------


def test_powerlaw_has_its_exponent() -> None:
    trace = synth("powerlaw", 1500, exponent=1, sink=0, local=0, noise=0)
    last = np.sort(matrix(trace)[-1])[::-1]
    ranks = np.array([1, 3, 10, 30, 100])
    # each entry is rounded to the 11 bits of float16, a quotient has two of them
    assert last[ranks - 1] / last[0] == pytest.approx(1 / ranks, rel=2**-10)


def test_powerlaw_has_sinks_and_locality() -> None:
    rows = matrix(synth("powerlaw", 600, exponent=0, sink=0.4, local=0.4, halflife=4, noise=0))
    # float16 rounds each of up to 600 entries of a row by up to 2^-11 of it
    assert rows[100:, :4].sum(axis=1) == pytest.approx(
        0.4 + 0.2 * 4 / np.arange(101, 601), abs=2e-3
    )
    # half a life apart, but for what every token gets: 0.2 / 501 beside 0.06
    assert rows[500, 500] / rows[500, 496] == pytest.approx(2, rel=0.02)


def test_drift_moves() -> None:
    trace = synth("drift", 800, topics=4, period=100, leak=0, sink=0, local=0)
    rows = matrix(trace)
    used = [set(np.flatnonzero(rows[t, :100])) for t in (399, 499)]
    assert used[0] and used[1] and not used[0] & used[1]
    assert set(np.flatnonzero(rows[350, :100])) == used[0]


def test_needle_is_uniform_and_the_prompt_tells_nothing() -> None:
    found = [int(np.argmax(matrix(synth("needle", 12, tokens=8, seed=s))[-1])) for s in range(400)]
    assert set(found) == set(range(8))
    assert np.bincount(found).min() > 25
    trace = synth("needle", 12, tokens=8, at=5)
    assert trace.prompt_len == 8
    rows = matrix(trace)
    assert (rows[:8, :8] == np.eye(8)).all() and (rows[8:, 5] == 1).all()


def test_freeze_looks_one_token_back() -> None:
    rows = matrix(synth("freeze", 20, own=0.25))
    assert rows[0, 0] == 1
    assert all(rows[t, t] == 0.25 and rows[t, t - 1] == 0.75 for t in range(1, 20))
    # what Algorithm 1 does: the new token scores 0 in its own step and goes; a frozen cache of 3
    frozen = np.array([rows[t, [*range(min(t, 3)), t]].sum() for t in range(20)])
    assert (frozen[4:] == 0.25).all()


@pytest.mark.parametrize(("n", "ratio"), [(5, 0.47), (50, 0.034), (500, 0.0037)])
def test_trap_numbers(n: int, ratio: float) -> None:
    rows = matrix(synth("trap", n))
    # rounded to float16: half a unit in the last of 11 places
    assert rows[1, :2] == pytest.approx([0.6, 0.4], abs=2**-11)
    assert rows[n - 1, [0, 1, n - 1]] == pytest.approx([5e-4, 0.999, 5e-4], abs=2**-11)
    kept, score = 0, rows[0].copy()
    for t in range(1, n):  # H2O with k = 1, full scores, no recent window; the oldest loses a tie
        score += rows[t]
        kept = t if score[kept] <= score[t] else kept
    assert kept == 0
    # the accumulated mass of what H2O keeps, against that of the best token (which can be kept)
    assert score[kept] / score.max() == pytest.approx(ratio, rel=0.015)


@pytest.mark.parametrize(("k", "copies"), [(1, 3), (2, 0), (2, 4), (3, 0), (3, 8), (4, 2), (5, 0)])
def test_coverage_ratio(k: int, copies: int) -> None:
    n = 2 * k + 4
    trace = synth("coverage", n, k=k, copies=copies)
    (unit,) = trace.units()
    trace.verify()
    rows = [unit.head_rows(t) for t in range(n)]

    def worth(t: int, tokens: tuple[int, ...]) -> int:
        return int(np.minimum(rows[t][:, list(tokens)].sum(axis=1), ONE // 2).sum())

    kept: tuple[int, ...] = ()
    for t in range(n):
        kept = (*kept, t)
        if len(kept) > k:  # drop what costs least, the oldest among equals
            kept = max(
                (kept[:i] + kept[i + 1 :] for i in range(len(kept))), key=lambda s: worth(t, s)
            )
        if t == 2 * k - 1:
            assert kept == tuple(range(k, 2 * k)), "all the y"
        best = max(worth(t, s) for s in itertools.combinations(range(t + 1), min(k, t + 1)))
        if t < 2 * k:
            assert worth(t, kept) == best
    m, y = (copies, copies + 1) if copies else (1, 1)
    assert best == (k * y + (k - 1) * m) * ONE // 2
    assert worth(n - 1, kept) == k * y * ONE // 2
    if not copies:
        assert worth(n - 1, kept) / best == k / (2 * k - 1)
    if (k, copies) == (3, 8):
        assert worth(n - 1, kept) / best < 1 - np.exp(-1)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("powrlaw", {}, r"unknown generator 'powrlaw'; did you mean powerlaw\?"),
        ("nothing", {}, r"unknown generator 'nothing'; there are powerlaw, drift"),
        ("powerlaw", {"exponen": 1}, r"unknown parameter \'exponen\'; did you mean exponent\?"),
        ("powerlaw:exponent", {}, "not of the form parameter=value"),
        ("powerlaw:sink=0,sink=1", {}, "sink given twice"),
        ("powerlaw:sink=0", {"sink": 1}, "sink given twice"),
        ("powerlaw", {"exponent": "x"}, "exponent=x: expected number, 0 to 16"),
        ("powerlaw", {"exponent": float("nan")}, "exponent=nan: expected"),
        ("powerlaw", {"sink": 0.6, "local": 0.6}, "expected a sum up to 1"),
        ("drift", {"topics": 2.5}, "topics=2.5: expected whole number, 1 up"),
        ("needle", {"tokens": 50}, "expected at < tokens <= 20"),
        ("needle", {"tokens": 5, "at": 5}, "expected at < tokens"),
        ("coverage", {"k": 10}, "n=20: expected at least 21"),
        ("coverage", {"heads": 2}, "heads=2: this instance has 51"),
        ("trap", {"heads": 0}, "heads: found 0, expected a whole number from 1 on"),
        ("trap", {"seed": -1}, "seed: found -1, expected"),
        ("trap", {"layers": 0}, "layers: found 0, expected"),
        ("trap", {"heads": 3, "group_size": 2}, "group_size: found 2, expected a divisor of 3"),
    ],
)
def test_mistakes_are_named(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        synth(name, 20, **arguments)


def test_n_is_checked() -> None:
    with pytest.raises(UserError, match="n: found 0, expected a whole number from 1 on"):
        synth("trap", 0)


def test_parse() -> None:
    assert split_call("trap", "generator") == ("trap", {})
    found = split_call(" drift:topics=3, leak=0 ", "generator")
    assert found == ("drift", {"topics": "3", "leak": "0"})


@pytest.mark.parametrize("name", GENERATORS)
def test_documented(name: str) -> None:
    generator = find(name)
    assert generator.summary and len(generator.doc) > 100
    assert all(p.doc and p.range for p in generator.params)
