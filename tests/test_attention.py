"""Fixed point, the triangle's layout, and rows made from queries and keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from trace_cases import bits_from_fixed

from h2osim.attention.fixed_point import (
    ONE,
    ONE_BITS,
    fixed_from_bits,
    round_to_bits,
)
from h2osim.attention.softmax import RowMaker
from h2osim.attention.triangle import pack, row_slice, rows_in, tri, unpack
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

ALL_BITS = np.arange(ONE_BITS + 1, dtype=np.uint16)


# --- fixed point ---------------------------------------------------------------------------------


def test_every_float16_in_unit_interval_has_its_fixed_point() -> None:
    assert len(ALL_BITS) == 15361
    fixed = fixed_from_bits(ALL_BITS)
    assert fixed.dtype == np.int64 and fixed[0] == 0 and fixed[-1] == ONE
    exact = [Fraction(float(x)) * 2**24 for x in ALL_BITS.view(np.float16)]
    assert [Fraction(int(x)) for x in fixed] == exact
    assert (np.diff(fixed) > 0).all()
    assert np.array_equal(bits_from_fixed(fixed), ALL_BITS)
    assert np.array_equal(round_to_bits(ALL_BITS.view(np.float16)), ALL_BITS)
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
