"""What a row may be, to the last bit: the borders of all bounds that a trace's rows are held to."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from trace_cases import bits_from_fixed

from h2osim.attention.fixed_point import ONE, ONE_BITS, round_to_bits
from h2osim.attention.triangle import row_slice, tri
from h2osim.support.errors import UserError
from h2osim.traces.checks import check_floats, check_scores

HEAD = 7  # the model's number of the only head: not its place


def entries(total: int, count: int) -> list[int]:
    """`count` fixed-point numbers that float16 holds and that sum to `total`."""
    found = []
    while total:
        shift = max(0, total.bit_length() - 11)
        found.append(total >> shift << shift)
        total -= found[-1]
    assert len(found) <= count
    return [*found, *[0] * (count - len(found))]


def sums_of(
    last: list[int], stored: float | None = None, window: int | None = None
) -> NDArray[np.int64]:
    """Check a trace whose rows give all to their own token, except for the last row."""
    n = len(last)
    bits = np.zeros((1, tri(n)), np.uint16)
    for t in range(n):
        bits[0, row_slice(t)][t] = ONE_BITS
    bits[0, row_slice(n - 1)] = bits_from_fixed(np.array(last))
    row_sum = None
    if stored is not None:
        row_sum = np.ones((1, n), np.float32)
        row_sum[0, -1] = stored
    return check_scores("here", (HEAD,), bits, row_sum, n, window)


def refused(match: str, last: list[int], **more: float | None) -> None:
    with pytest.raises(UserError, match=f"^here, head {HEAD}, row {len(last) - 1}{match}"):
        sums_of(last, **more)  # type: ignore[arg-type]


# one entry alone cannot be above 1
@pytest.mark.parametrize(("count", "sign"), [(1, -1), (128, -1), (128, 1), (1024, -1), (1024, 1)])
def test_a_sum_may_miss_by_what_rounding_explains(count: int, sign: int) -> None:
    """2^-11 of the sum, as a float16 has eleven digits, and 2^-25 an entry for subnormal ones."""
    most = (1 << 13) + count // 2  # of 2^-24
    assert sums_of(entries(ONE + sign * most, count))[0, -1] == ONE + sign * most
    beyond = most + (1 if count > 1 else 1 << 13)  # one entry below 1 has steps of 2^-11
    refused(": found sum .*what rounding", entries(ONE + sign * beyond, count))


@pytest.mark.parametrize(("count", "most"), [(1, 9), (64, 72), (1024, 1032)])
@pytest.mark.parametrize("sign", [-1, 1])
def test_a_stored_sum_may_miss_by_what_summing_explains(count: int, most: int, sign: int) -> None:
    """2^-23 an entry and 1e-6 (8.4 of 2^-23), whatever the stored entries sum to."""
    row = entries(ONE, count)
    sums_of(row, stored=1 + sign * most * 2.0**-23)
    refused(": found stored sum", row, stored=1 + sign * (most + 1) * 2.0**-23)
    refused(": found stored sum before rounding nan", row, stored=float("nan"))


def test_the_entry_that_is_wrong_is_the_one_that_is_named() -> None:
    """The largest number in [0, 1] is 1.0; the next float16 is 1.001."""
    bits = np.array([[ONE_BITS, ONE_BITS, ONE_BITS + 1]], np.uint16)
    with pytest.raises(UserError, match=r"head 7, row 1, column 1: found 1\.00097\d*, .*\[0, 1\]"):
        check_scores("here", (HEAD,), bits, None, 2, None)
    bits = np.array([[ONE_BITS, ONE_BITS + 1, 0]], np.uint16)
    with pytest.raises(UserError, match=r"head 7, row 1, column 0: found 1\.00097"):
        check_scores("here", (HEAD,), bits, None, 2, None)
    assert sums_of([0, 0, ONE])[0].tolist() == [ONE] * 3


def test_a_window_of_w_tokens_holds_the_newest_w() -> None:
    half = ONE // 2
    assert sums_of([0, 0, half, half], window=2)[0, -1] == ONE
    refused(r", column 1: found 0\.5, expected 0 before the window", [0, half, 0, half], window=2)
    refused(r", column 0: found 5\.96\d*e-08, expected 0 before", [1, 0, half, half], window=3)
    assert sums_of([0, half, 0, half], window=3)[0, -1] == ONE
    assert sums_of([half, 0, 0, half], window=4)[0, -1] == ONE


def test_fixed_points_end_at_one_and_zero_has_no_sign() -> None:
    for value in (-1, ONE + 1, ONE + 2**14):
        with pytest.raises(ValueError, match="lie in 0"):
            bits_from_fixed(value)
    assert bits_from_fixed(np.array([0, ONE])).tolist() == [0, ONE_BITS]
    assert round_to_bits([-0.0, 0.0, 1.0]).tolist() == [0, 0, ONE_BITS]


def test_floats_are_finite_and_norms_begin_at_zero() -> None:
    zero = np.zeros((2, 3), np.float32)

    def checked(name: str, value: float) -> None:
        tensor = zero.copy()
        tensor[1, 2] = value
        check_floats("here", (4, 5), (8, 9), {"other": np.full((2, 3), np.nan), name: tensor})

    for name in ("v_norm1", "k_norm2", "lse"):
        checked(name, 0.0)
    checked("lse", -1.0)
    for value in (-1e-30, np.nan, np.inf):
        with pytest.raises(UserError, match=r"tensor k_norm2, head 9, row 2: found .* from 0 on"):
            checked("k_norm2", value)
    with pytest.raises(UserError, match="tensor lse, head 5, row 2: found -inf"):
        checked("lse", -np.inf)
