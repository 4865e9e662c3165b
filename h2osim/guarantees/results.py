"""The result of a check: a verdict, the numbers behind it, and a line in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

CLOSE = 1e-9
"""Slack of float comparisons: relative for ratios, relative to the largest norm in T5."""


class Verdict(StrEnum):
    """What a check found."""

    HOLDS = "holds"
    VACUOUS = "holds vacuously"
    FAILS = "does not apply"
    VIOLATED = "violated"


@dataclass(frozen=True)
class Result:
    """A check's finding.

    guarantee: its name in the registry. step: the first step where the assumption fails or the
    statement is violated, None otherwise. numbers: by name, at the last step unless they say
    otherwise; shares are of the optimum. note: one line in words.
    """

    guarantee: str
    verdict: Verdict
    step: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def share(part: int | float | Fraction, whole: int | float | Fraction) -> float:
    """Divide part by whole, rounded once; nan if the whole is 0."""
    return float(Fraction(part) / Fraction(whole)) if whole else math.nan
