"""Matrices, budgets and prompts that the statements of proofs/ are tried on, and a search."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from statements.simulating import simulate
from strategies import sixteenths, softmax_scores

from h2osim.attention.fixed_point import ONE
from h2osim.guarantees.history import History, Rows, follow
from h2osim.guarantees.results import Result, Verdict
from h2osim.traces.catalogue import bundled_traces, open_trace

ALLOWED = {Verdict.HOLDS, Verdict.VACUOUS, Verdict.FAILS}


def whole(scores: np.ndarray) -> np.ndarray:
    """Float16 probabilities [heads, n, n] in fixed point."""
    return np.rint(scores.astype(np.float16).astype(np.float64) * ONE).astype(np.int64)


@cache
def recorded() -> list[np.ndarray]:
    """Two heads of the first 96 tokens of every layer of every bundled trace, in fixed point."""
    found = []
    for path in bundled_traces().values():
        for unit in open_trace(path).units():
            n = min(96, unit.n)
            matrix = np.zeros((min(2, len(unit.heads)), n, n), dtype=np.int64)
            for t in range(n):
                matrix[:, t, : t + 1] = unit.head_rows(t)[: len(matrix)]
            found.append(matrix)
    return found


@st.composite
def perturbed(draw: st.DrawFn, min_n: int, max_n: int, max_heads: int) -> np.ndarray:
    """A stretch of recorded attention, among its own tokens, some entries doubled or wiped out."""
    matrix = draw(st.sampled_from(recorded()))
    n = draw(st.integers(min_n, max_n))
    at = draw(st.integers(0, matrix.shape[1] - n))
    part = matrix[: draw(st.integers(1, max_heads)), at : at + n, at : at + n].copy()
    for _ in range(draw(st.integers(0, 6))):
        t = draw(st.integers(0, n - 1))
        part[:, t, draw(st.integers(0, t))] *= draw(st.sampled_from([0, 2]))
    return part


@st.composite
def matrices(draw: st.DrawFn, *, min_n: int = 1, max_n: int = 16, max_heads: int = 2) -> np.ndarray:
    """Rows in fixed point, [heads, n, n]: full of ties, like a model's, recorded, or drifting.

    The drifting ones (adversarial) give every row a favourite of its own, so that tokens return.
    The recorded ones are perturbed, and their rows do not sum to 1.
    """
    sizes: dict[str, Any] = {"min_n": min_n, "max_n": max_n, "max_heads": max_heads}
    kind = draw(st.sampled_from(["sixteenths", "softmax", "drifting", "recorded"]))
    if kind == "recorded":
        return draw(perturbed(**sizes))
    if kind == "sixteenths":
        return whole(draw(sixteenths(layers=1, **sizes))[0])
    if kind == "softmax":
        return whole(draw(softmax_scores(max_layers=1, **sizes))[0])
    n = draw(st.integers(min_n, max_n))
    heads = draw(st.integers(1, max_heads))
    rows = np.zeros((heads, n, n))
    for head in range(heads):
        for t in range(n):
            favourite, share = draw(st.integers(0, t)), draw(st.sampled_from([0.5, 0.75, 1.0]))
            rows[head, t, favourite] += share
            rows[head, t, t] += 1 - share
    return whole(rows)


@st.composite
def runs(draw: st.DrawFn, **sizes: Any) -> tuple[np.ndarray, int, int]:
    """A matrix, a budget, a prompt length."""
    matrix = draw(matrices(**sizes))
    n = matrix.shape[1]
    return (
        matrix,
        draw(st.integers(1, max(1, n - 1))),
        draw(st.sampled_from([1, 1, 1, *range(1, n + 1)])),
    )


def history_of(case: tuple[np.ndarray, int, int], **how: Any) -> History:
    matrix, k, p = case
    rows = Rows.of(matrix)
    return follow(rows, simulate(rows, k, p, **how))


def rows_of(*rows: tuple[float, ...], heads: tuple[tuple[float, ...], ...] = ()) -> Rows:
    """Rows written out, in hundredths."""

    def square(given: tuple[tuple[float, ...], ...]) -> np.ndarray:
        matrix = np.zeros((len(given), len(given)), dtype=np.int64)
        for t, row in enumerate(given):
            matrix[t, : len(row)] = [round(100 * x) for x in row]
        return matrix

    return Rows.of(np.stack([square(rows), *([square(heads)] if heads else [])]))


def gone_after(rows: Rows, k: int, p: int = 1, **how: Any) -> list[int]:
    return simulate(rows, k, p, **how).evicted_at.tolist()


def refuted(
    strategy: st.SearchStrategy[Any], claim: Callable[[Any], bool], *, shrink: bool = True
) -> Any:
    """The smallest drawn case that refutes a wrong claim; fails when none is found."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    return find(
        strategy,
        lambda case: not claim(case),
        settings=settings(max_examples=3000, database=None, phases=phases),
        random=random.Random(0),
    )


OUTSIDE: tuple[dict[str, Any], ...] = ({"recent": 1}, {"scores": "cached"})


def found_out(check: Callable[[History], Result], how: dict[str, Any]) -> Any:
    """A case where a run outside setting P, passed off as one inside, is called violated."""

    def unnoticed(case: tuple[np.ndarray, int, int]) -> bool:
        return check(history_of(case, **how)).verdict != Verdict.VIOLATED

    return refuted(runs(max_n=7), unnoticed, shrink=False)


def ratio(history: History) -> float:
    return float(history.value[-1]) / float(history.opt[-1])
