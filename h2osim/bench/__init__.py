"""Measurements that print ratios from one run, after checking what they time (``h2osim bench``)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


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


def core_seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median processor time of this thread over some repeats, after one that does not count.

    Processor time of a thread, not the clock: other work on the machine does not count, and
    nothing that is timed here runs on more than one core.
    """
    work()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return statistics.median(times)
