"""Running command lines inside the tests' process; the fixtures `run` and `folder` use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def fails(ended: Ended, *parts: str) -> None:
    """One clear line on standard error, exit code 2, nothing on standard output."""
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("h2osim: error: ")
    assert ended.err.count("\n") == 1
    for part in parts:
        assert part in ended.err
