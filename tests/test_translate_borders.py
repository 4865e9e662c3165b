"""Numbers at the borders of C's types: where a rule in CUDA could differ from the one in Python."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_shim import COMPILER, Shim

from h2osim.cuda.device import kernel_text
from h2osim.policies.declaration import Policy
from h2osim.policies.expressions import LARGEST, Untranslatable
from h2osim.policies.to_cuda import rules_text

POSITIONS = (0, 1, 2, 46341, 2**20 + 1, LARGEST - 1, LARGEST)
SCORES = (0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 1e18, -1e18)

PROBE = """
extern "C" __global__ void masses(
    const double *scores, const int *positions, double *found, int many
) {
    int ip[1];
    double fp[1];
    for (int i = 0; i < many; i++)
        found[i] = rule_rank(scores + i, fp, ip, fp, positions[i], positions[i], 1, 1, 1, 1);
}
"""


def policy(rule: Callable[..., Any]) -> Policy:
    return Policy(name="mine", summary="", source="", rank=rule, state=("score",))


def product_just_fits(pos: int) -> float:
    return pos * pos * 2047


def sum_just_fits(pos: int) -> float:
    return pos * pos * 1023 + pos * pos * 1024


def thirty_second_power(pos: int) -> float:
    return pos * 32 - 1


def quotient_of_long(pos: int) -> float:
    return (pos * pos) // 7 + (1 - pos * pos) // 7


def large_quotient(pos: int) -> float:
    return (pos * pos) // 7


def quotients_by_negatives(pos: int) -> float:
    return pos // -7 * 3 + (1 - pos) // -2 + (pos * pos) // -5 + (3 - pos * pos) // -11


def quotient_by_long(pos: int) -> float:
    return (3 - pos) // (pos * pos + 1)


def remainder_of_long(pos: int) -> float:
    return (pos * pos) % 1000 + (1 - pos * pos) % 1000


def remainder_by_long(pos: int) -> float:
    return (3 - pos) % (pos * pos + 1) + pos % (-1 - pos * pos)


def exact_quotient(pos: int) -> float:
    return (pos * pos * 2) / 3


def compared_with_long(pos: int) -> float:
    return 1.0 if pos < pos * pos else 2.0 if pos * pos > 2147483648 else 3.0


def chosen_long(pos: int) -> float:
    return (pos * pos if pos > 5 else 7) + (7 if pos > 5 else pos * pos)


def size_of_long(pos: int) -> float:
    return abs(-(pos * pos)) + abs(3 - pos)


def long_variable(pos: int) -> float:
    total = 1
    for _ in range(3):
        total = total + pos * pos
    return total


def loops_that_end_before_their_ends(pos: int) -> float:
    total = 0
    for i in range(10, 1, -3):
        total = total * 10 + i
    for i in range(2, 6):
        total = total * 10 + i
    return total + pos


def least_of_zeros(score: float, pos: int) -> float:
    return min(score, pos * -0.0)


def most_of_zeros(score: float, pos: int) -> float:
    return max(score, pos * -0.0)


def least_of_three(score: float, pos: int) -> float:
    return min(pos * -0.0, score, 0.0)


def most_of_long(score: float, pos: int) -> float:
    return max(pos * pos, pos, 3) - min(pos, pos * pos, -1) + max(score, pos * pos)


def quotient_of_floats(score: float, pos: int) -> float:
    return score // 0.7 + (score / 3) // -0.7 if score < 1e17 else score // (pos + 1)


def quotient_that_may_be_zero(score: float) -> float:
    return score // 4.0


def quotient_that_may_be_minus_zero(score: float) -> float:
    return score // -4.0


def remainder_of_floats(score: float, pos: int) -> float:
    return score % (pos + 0.5)


def negative_remainder_of_floats(score: float, pos: int) -> float:
    return score % -(pos + 0.5)


# The text is C++, which is run here as such; .ci/run has a compiler.
@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
@pytest.mark.parametrize(
    "rule",
    [
        product_just_fits, sum_just_fits, thirty_second_power, quotient_of_long, large_quotient,
        quotients_by_negatives, quotient_by_long, quotient_that_may_be_zero,
        quotient_that_may_be_minus_zero,
        remainder_of_long, remainder_by_long, exact_quotient, compared_with_long, chosen_long,
        size_of_long, long_variable, loops_that_end_before_their_ends, least_of_zeros,
        most_of_zeros, least_of_three, most_of_long,
        quotient_of_floats, remainder_of_floats, negative_remainder_of_floats,
    ],
)  # fmt: skip
def test_same_bits_as_python(rule: Callable[..., float]) -> None:
    cases = [(score, pos) for score in SCORES for pos in POSITIONS]
    scores, positions = np.array([s for s, _ in cases]), np.array([p for _, p in cases], np.int32)
    found = np.zeros(len(cases))
    text = kernel_text("masses", {"T": 4}).split('extern "C"')[0] + rules_text(policy(rule)) + PROBE
    args = [scores, positions, found, np.int32(len(cases))]
    Shim().launch(text, "masses", 1, 4, 0, args)
    for (score, pos), value in zip(cases, found, strict=True):
        names = rule.__code__.co_varnames[: rule.__code__.co_argcount]
        expected = float(rule(*[{"score": score, "pos": pos}[name] for name in names]))
        assert struct.pack("d", expected) == struct.pack("d", value), (score, pos, expected, value)


def product_of_two_to_the_63(pos: int) -> float:
    return pos * pos * 2048


def sum_of_two_to_the_63(pos: int) -> float:
    return pos * pos * 1024 + pos * pos * 1024


def quotient_beyond_53_bits(pos: int) -> float:
    return (pos * pos * 2 + 1) / 3


def quotient_of_54_bits(pos: int) -> float:
    return (pos * pos * 4) / 3


def quotient_by_54_bits(pos: int) -> float:
    return 3 / (pos * pos * 4)


def number_of_53_bits(pos: int) -> float:
    return pos + 9007199254740992


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        (product_of_two_to_the_63, "may not fit 64 bits"),
        (sum_of_two_to_the_63, "may not fit 64 bits"),
        (quotient_beyond_53_bits, r"beyond 2\*\*53"),
        (quotient_of_54_bits, r"beyond 2\*\*53"),
        (quotient_by_54_bits, r"beyond 2\*\*53"),
        (number_of_53_bits, "9007199254740992"),
    ],
)
def test_what_may_not_be_exact_is_refused(rule: Callable[..., float], word: str) -> None:
    with pytest.raises(Untranslatable, match=f"policy mine: {rule.__name__}, line 2: .*{word}"):
        rules_text(policy(rule))
