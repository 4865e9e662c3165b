"""The translator: the same bits as Python, and a refusal that names what it can not say."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cuda_shim import COMPILER, Shim

from h2osim.cuda.device import kernel_text
from h2osim.policies.arithmetic import exp, sigmoid
from h2osim.policies.declaration import INF, Policy
from h2osim.policies.expressions import Untranslatable
from h2osim.policies.registry import all_policies
from h2osim.policies.to_cuda import rules_text

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

FLOATS = (0.0, -0.0, 1.0, -1.0, 0.5, -0.1, 3.7, -3.7, 1e-300, 2.0**-24, 1e18, -7.25, 123456.789)
INTS = (0, 1, 2, 3, 7, 40, 1000, 2**24)


def policy(rank: Callable[..., Any], **more: Any) -> Policy:
    return Policy(name="mine", summary="", source="", rank=rank, **more)


def arithmetic(score: float, pos: int, age: int) -> float:
    return (score * 3 + pos / (age + 1) - age) / 7.0


def division(score: float, pos: int, age: int) -> float:
    whole = (pos - 3 * age) // 7 + (pos - 3 * age) % 7 * 100
    if score != 0.0:
        return whole + score // 0.7 + (score % -1.3)
    return whole


def loops(score: float, pos: int, age: int) -> float:
    total = 0.0
    for i in range(10, 0, -3):
        if i == 4:
            continue
        total = total * 0.5 + i / (age + 1)
    count = 0
    while total > 1.0 and count < 5:
        total /= 3
        count += 1
    return total + count


def choices(score: float, pos: int, age: int) -> float:
    low = min(score, 2, pos)
    high = max(abs(score), math.floor(score / 2), -age)
    return low if 0 < age <= 7 or not pos > 3 else high + int(score / 3) + math.sqrt(abs(score))


def wide(score: float, pos: int, age: int) -> float:
    square = pos * pos
    return (
        (pos * pos * 3 - age) // 7
        + (pos * pos - 12345) % 1000
        + (age - square) // 3
        + 7 // (square + 1)
        + age % (square + 1)
        + (pos * pos * 2) / 3
    )


def signs(score: float, pos: int, age: int) -> float:
    if age == 0:
        return min(score, 0.0)
    if age == 1:
        return max(score, 0.0)
    if age == 2:
        return min(0.0, score)
    if age == 3:
        return max(0.0, score)
    return abs(score) if pos else -score


def called(score: float, pos: int, age: int) -> float:
    return sigmoid(-abs(score)) + exp(-float(age)) - (INF if pos < 0 else 0.0)


@needs_compiler
@pytest.mark.parametrize("rule", [arithmetic, division, wide, signs, loops, choices, called])
def test_same_bits_as_python(rule: Callable[..., float]) -> None:
    probe = """
extern "C" __global__ void masses(
    const double *scores, const int *positions, const int *ages, double *found, int many
) {
    int ip[1];
    double fp[1];
    for (int i = 0; i < many; i++)
        found[i] = rule_rank(
            scores + i, fp, ip, fp, positions[i], positions[i] + ages[i], 1, 1, 1, 1);
}
"""
    cases = [(s, p, a) for s in FLOATS for p in INTS for a in INTS[:5]]
    scores, positions, ages = (np.array(column) for column in zip(*cases, strict=True))
    found = np.zeros(len(cases))
    text = kernel_text("masses", {"T": 4}).split('extern "C"')[0]
    shim = Shim()
    shim.launch(
        text + rules_text(policy(rule, state=("score",))) + probe, "masses", 1, 4, 0,
        [scores, positions.astype(np.int32), ages.astype(np.int32), found, np.int32(len(cases))],
    )  # fmt: skip
    for case, value in zip(cases, found, strict=True):
        expected = float(rule(*case))
        assert struct.pack("d", expected) == struct.pack("d", value), (case, expected, value)


def exponential(score: float) -> float:
    return math.exp(score)


def power(score: float) -> float:
    return score**2


def container(score: float) -> float:
    return [score][0]


def rounded(score: float) -> float:
    return round(score)


def truthy(score: float, pos: int) -> float:
    return pos and score


def huge(pos: int) -> float:
    return pos * pos * pos


def brink(pos: int) -> float:
    return pos * pos * 2048  # 2**26 * 2**26 * 2**11


def difference(pos: int) -> float:
    return pos * pos * 1024 - (0 - pos * pos * 1024)


def fraction(pos: int) -> float:
    return pos * pos * 4 / 3


def below_the_brink(pos: int) -> float:
    return pos * pos * 2047 + pos * pos * 2 / 3


def test_whole_numbers_just_below_the_limits_are_translated() -> None:
    assert "rule_rank" in rules_text(policy(below_the_brink))


def endless(pos: int) -> float:
    return endless(pos)


WORD = "text"


def text(score: float) -> float:
    return score if WORD else 0.0


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        (exponential, "math.exp"),
        (power, r"score \*\* 2"),
        (container, r"\[score\]\[0\]"),
        (rounded, r"round\(\)"),
        (truthy, "`and` or `or` of numbers"),
        (huge, "64 bits"),
        (brink, "64 bits"),
        (difference, "64 bits"),
        (fraction, r"of ints beyond 2\*\*53"),
        (endless, "calls itself"),
        (text, "WORD"),
    ],
)
def test_refuses_by_name(rule: Callable[..., float], word: str) -> None:
    with pytest.raises(Untranslatable, match=f"policy mine: .*{word}"):
        rules_text(policy(rule, state=("score",)))


def test_every_policy_is_translated_or_refused_by_name() -> None:
    refused = set()
    for name, known in all_policies().items():
        try:
            assert "rule_rank" in rules_text(known)
        except Untranslatable as error:
            assert name in str(error) and "\n" not in str(error)
            refused.add(name)
    assert refused == {n for n, p in all_policies().items() if p.rank_cache or p.vectors}
