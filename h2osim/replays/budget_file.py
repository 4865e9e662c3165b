"""The small JSON file that holds budgets by unit.

    {"h2osim_budgets": 2,
     "model": "SmolLM2-135M-Instruct",
     "share": "group",
     "layers": [0, 1, 2],
     "splits": [{"total": 1.4,
                 "budgets": [[0.1, 0.3, 0.2], [0.1, 0.1, 0.1], [0.2, 0.2, 0.1]]}],
     "made": "in words, or as a command: where these numbers come from"}

``splits`` has one entry for each total. Its ``budgets`` have one row a layer, named by its index in
the model in ``layers``, and one number a unit: whole numbers are tokens, numbers with a point are
shares of the text's length (above 0, up to 1.0), the same kind throughout. ``total`` is their sum,
so that a damaged or hand-edited file is noticed. ``model`` and ``share`` may be empty: then the
budgets fit any model and sharing of this shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
from msgspec import Meta, Struct

from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.support import reading
from h2osim.support.atomic import replacing
from h2osim.support.errors import UserError
from h2osim.support.reading import Index
from h2osim.traces.manifest import SHARES

VERSION = 2
_MOST_BYTES = 1 << 24


class _Split(Struct):
    """The budgets of one total."""

    budgets: list[list[Annotated[int, Meta(le=2**31 - 1)] | float]]
    total: Annotated[int, Meta(le=2**53)] | float


class _File(Struct):
    """What such a file may hold."""

    h2osim_budgets: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    model: str
    share: Annotated[str, Meta(pattern=rf"^({'|'.join(SHARES)}|)\Z")]
    layers: list[Index]
    splits: Annotated[list[_Split], Meta(min_length=1)]
    made: str


def read_budgets(path: Path) -> list[UnitBudgets]:
    """Read a file of budgets, one entry a total, ascending by mean.

    UserError in one line where it is no such file, or its parts do not agree.
    """
    path = Path(path)
    found = reading.json_of(path, _File, _MOST_BYTES)
    budgets = []
    for split in found["splits"]:
        try:
            array = np.array(split["budgets"])
        except ValueError:  # rows of several lengths
            array = np.zeros(0, int)
        kinds = {type(x) for row in split["budgets"] for x in row}
        if array.dtype.kind == "f" and kinds != {float}:
            raise UserError(
                f"budgets {path}: found tokens among shares; write 1.0 for all of the text"
            )
        about = found["model"], found["share"], found["made"]
        one = UnitBudgets(path.stem, array, tuple(found["layers"]), *about)
        if not math.isclose(split["total"], array.sum(), rel_tol=1e-9):
            raise UserError(
                f"budgets {path}: total {split['total']}, but the budgets add up to {array.sum()}"
            )
        budgets.append(one)
    first = budgets[0]
    if any(one.in_tokens != first.in_tokens for one in budgets):
        raise UserError(f"budgets {path}: found splits of tokens and of shares, expected one kind")
    budgets.sort(key=lambda one: one.mean)
    if twice := [a.mean for a, b in pairwise(budgets) if a.mean == b.mean]:
        raise UserError(f"budgets {path}: found two splits of the mean {twice[0]:g}")
    return budgets


def write_budgets(path: Path, budgets: UnitBudgets | Sequence[UnitBudgets]) -> None:
    """Write such a file, whole or not at all; several budgets differ in their mean alone."""
    several = [budgets] if isinstance(budgets, UnitBudgets) else list(budgets)
    first = several[0]
    content = {
        "h2osim_budgets": VERSION,
        "model": first.model,
        "share": first.share,
        "layers": list(first.layers or range(len(first.budgets))),
        "splits": [
            {"total": one.budgets.sum().item(), "budgets": one.budgets.tolist()} for one in several
        ],
        "made": first.made,
    }
    with replacing(Path(path)) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def at_mean(budgets: Sequence[UnitBudgets], mean: float) -> UnitBudgets:
    """Budgets of another mean, tokens (64) or a share (0.05), from splits ascending by mean.

    Between two of them it is their mixture, which has this mean because both have theirs; beyond
    the last, or where shares are asked of tokens, it is the nearest one scaled.
    """
    same_kind = budgets[0].in_tokens == isinstance(mean, int)
    for below, above in pairwise(budgets) if same_kind and not budgets[0].in_tokens else ():
        if below.mean <= mean <= above.mean:
            part = (mean - below.mean) / (above.mean - below.mean)
            return replace(below, budgets=(1 - part) * below.budgets + part * above.budgets)
    nearest = min(budgets, key=lambda one: abs(math.log(one.mean / mean))) if same_kind else None
    return (nearest or budgets[-1]).scaled(mean)
