"""Scalar rules that several policies share. Each is translated for every engine, so only plain
arithmetic that IEEE 754 rounds in one way (+ - * / and square roots) may be used here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

INF = math.inf


def accumulate(score: float, a: float) -> float:
    """The sum of the attention received so far."""
    return score + a


def observed(score: float, a: float, t: int, p: int, heads: int, window: int) -> float:
    """The mean over heads of what the prompt's last ``window`` rows gave."""
    if p - window <= t < p:
        return score + a / heads
    return score


def fade(score: float, a: float, gamma: float) -> float:
    """The sum of the attention received, every row's share multiplied by gamma a step."""
    return gamma * score + a


def latest(a: float) -> float:
    """The attention received in this step."""
    return a


def by_score(score: float) -> float:
    """The score alone: nothing is protected."""
    return score


def guarded_score(score: float, pos: int, age: int, sinks: int, recent: int) -> float:
    """The score; sinks and the newest ``recent`` tokens are protected."""
    if age < recent or pos < sinks:
        return INF
    return score


def exp(x: float) -> float:
    """e**x for x <= 0 from basic arithmetic alone, to a relative error below 1e-11.

    ``math.exp`` differs in the last bit between C libraries, numba and CUDA; this does not.
    The argument is halved until it is small, a Taylor polynomial is summed (Horner), and the
    result is squared back.
    """
    if x < -700.0:
        return 0.0
    halvings = 0
    while x < -0.03125:
        x *= 0.5
        halvings += 1
    total = 1.0
    for i in range(10, 0, -1):
        total = 1.0 + x * total / i
    for _ in range(halvings):
        total *= total
    return total


def sigmoid(x: float) -> float:
    """1 / (1 + e**-x), exact in the same sense as :func:`exp`."""
    if x < 0.0:
        e = exp(x)
        return e / (1.0 + e)
    return 1.0 / (1.0 + exp(-x))


def log1p(z: float) -> float:
    """log(1 + z) for z >= 0, to an absolute error below 1e-12, in the same sense as :func:`exp`.

    1 + z (rounded) is halved into (0.75, 1.5], where the series of
    log x = 2 artanh((x - 1) / (x + 1)) converges fast.
    """
    x = 1.0 + z
    halvings = 0
    while x > 1.5:
        x *= 0.5
        halvings += 1
    y = (x - 1.0) / (x + 1.0)
    total = 0.0
    for i in range(21, 0, -2):
        total = total * y * y + 1.0 / i
    return 2.0 * y * total + halvings * 0.6931471805599453


def log(x: float) -> float:
    """The natural logarithm of x > 0, in the same sense as :func:`log1p`."""
    if x < 1.0:
        return -log1p(1.0 / x - 1.0)
    return log1p(x - 1.0)


def drawn(noise: float, noise_now: float, head: int) -> float:
    """An exponential draw of mean 1 for a token, by its ``noise`` and the newest token's.

    Draws of other tokens, in other steps and for other heads are independent of it, pair by pair:
    the first 20 bits of the step's noise are the factor, and the rest the summand, of a
    multiplicative hash of the token's.
    """
    bits = noise_now * 1048576.0
    factor = math.floor(bits)
    mixed = noise * (factor + 1)
    u = (head + 1) * (mixed - math.floor(mixed)) + (bits - factor)
    return max(-log(max(u - math.floor(u), 1e-16)), 1e-16)


def dot(x: Vector, y: Vector) -> float:
    """sum_i x_i y_i, one product after the other."""
    total = 0.0
    for i in range(len(x)):
        total += x[i] * y[i]
    return float(total)


def norm(x: Vector) -> float:
    """The Euclidean norm of x."""
    return math.sqrt(dot(x, x))


def distance(x: Vector, y: Vector) -> float:
    """The Euclidean norm of x - y."""
    total = 0.0
    for i in range(len(x)):
        total += (x[i] - y[i]) * (x[i] - y[i])
    return math.sqrt(total)


def cosine(x: Vector, y: Vector) -> float:
    """The cosine of the angle between x and y; 0 where one of them is 0."""
    lengths = norm(x) * norm(y)
    return dot(x, y) / lengths if lengths > 0.0 else 0.0


def softmax(x: Vector) -> None:
    """Replace x by e**x over its sum, added up index by index; an entry must be above -inf."""
    most = -INF
    for i in range(len(x)):
        most = max(most, x[i])
    total = 0.0
    for i in range(len(x)):
        x[i] = exp(x[i] - most)
        total += x[i]
    for i in range(len(x)):
        x[i] = x[i] / total


def around(x: Vector, i: int, kernel: int) -> float:
    """The sum of x from i - kernel // 2 to i + kernel // 2, as far as x goes."""
    total = 0.0
    for s in range(max(0, i - kernel // 2), min(len(x), i + kernel // 2 + 1)):
        total += x[s]
    return float(total)


def most_around(x: Vector, i: int, kernel: int) -> float:
    """The largest of the same, and 0."""
    most = 0.0
    for s in range(max(0, i - kernel // 2), min(len(x), i + kernel // 2 + 1)):
        most = max(most, x[s])
    return float(most)


def products_with(x: Vector, positions: NDArray[np.uint32], y: Vector) -> Vector:
    """dot(x[j], y) of the cached tokens j [m], of vectors x [tokens, width]."""
    total = np.zeros(len(positions))
    for i in range(len(positions)):
        total[i] = dot(x[positions[i]], y)
    return total


def products(x: Vector, positions: NDArray[np.uint32]) -> Vector:
    """dot(x[i], x[j]) of all pairs of cached tokens [m, m], of vectors x [tokens, width].

    Added up number by number, so that pairs are worked on together and each sum keeps its order.
    """
    m = len(positions)
    across = np.zeros((x.shape[1], m))
    for i in range(m):
        across[:, i] = x[positions[i]]
    total = np.zeros((m, m))
    for c in range(x.shape[1]):
        for i in range(m):
            total[i] += across[c, i] * across[c]
    return total
