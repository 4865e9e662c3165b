"""Measurements that print ratios from one run, after checking what they time (``h2osim bench``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from h2osim.traces.unit import Unit


@dataclass(frozen=True)
class Measurement:
    """One measured number: what it is, its unit, and the goal it is held against, if any.

    ``at_least`` tells which side of the goal is good.
    """

    what: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = True

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def median_seconds(
    work: Callable[[], Any], repeats: int = 5, clock: Callable[[], float] = time.thread_time
) -> float:
    """Median time of some repeats of work, after one that does not count.

    By default processor time of this thread: other work on the machine does not count.
    """
    work()
    times = []
    for _ in range(repeats):
        start = clock()
        work()
        times.append(clock() - start)
    return statistics.median(times)


def fed(run: Any, unit: Unit) -> Any:
    """The result of an engine's run that is fed all rows of a unit, on this thread."""
    for block in unit.blocks():
        run.feed(block)
    return run.result()
