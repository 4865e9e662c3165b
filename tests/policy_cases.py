"""Small attention squares, written in sixteenths, and who is evicted from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray

from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace


def square(*rows: Sequence[int]) -> np.ndarray:
    """A matrix [n, n] from the rows of its lower triangle, each divided by its sum."""
    scores = np.zeros((len(rows), len(rows)))
    for t, row in enumerate(rows):
        assert len(row) == t + 1 and sum(row) in (16, 64), f"row {t} of the example"
        scores[t, : t + 1] = np.array(row) / sum(row)
    return scores


def trace(*rows: Sequence[int], **more: Any) -> Trace:
    """A trace of one head."""
    return Trace.from_scores(square(*rows), **more)


def run(
    given: Trace, policy: Any, k: int, p: int = 1, share: str = "group", engine: str = "naive"
) -> xarray.Dataset:
    """One replay, by the definition or another engine."""
    found = replay(given, policy, k, prompt_len=p, share=share, engine=engine, step_recall=True)
    return found.isel(policy=0, layer=0, budget=0)


def gone(
    given: Trace, policy: Any, k: int, p: int = 1, share: str = "group", engine: str = "naive"
) -> list[int]:
    """The step after which each token is gone, for the first unit."""
    evicted_at: list[int] = run(given, policy, k, p, share, engine).evicted_at.values[0].tolist()
    return evicted_at


def kept_of(given: Trace, policy: str, k: int, p: int = 1) -> list[list[int]]:
    """The tokens that each unit holds at the end."""
    evicted_at = run(given, policy, k, min(p, given.n - 1)).evicted_at.values
    return [[j for j in range(given.n) if one[j] == given.n] for one in evicted_at]


def seen(given: Trace, policy: str, k: int, p: int, whole: int) -> list[float]:
    """The mass attended in each decode step, in the units of the example."""
    masses: list[float] = (run(given, policy, k, p).step_recall.values[0] * whole).tolist()
    return masses


EVEN = trace((16,), (8, 8), (4, 4, 8), (4, 4, 4, 4), (4, 4, 4, 2, 2), (4, 4, 2, 2, 2, 2))
