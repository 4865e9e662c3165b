"""Budgets that differ by layer and unit, and the small JSON file that holds them.

    {"h2osim_budgets": 1,
     "model": "SmolLM2-135M-Instruct",
     "share": "group",
     "layers": [0, 1, 2],
     "budgets": [[0.1, 0.3, 0.2], [0.1, 0.1, 0.1], [0.2, 0.2, 0.1]],
     "total": 1.4,
     "made": "in words, or as a command: where these numbers come from"}

``budgets`` has one row a layer, named by its index in the model in ``layers``, and one number a
unit: whole numbers are tokens, numbers with a point are shares of the text's length (above 0, up
to 1.0), the same kind throughout. ``total`` is their sum, so that a damaged or hand-edited file is
noticed. ``model`` may be empty: then the budgets fit any model of this shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from h2osim.replays.budgets import budget_tokens
from h2osim.support import reading
from h2osim.support.atomic import replacing
from h2osim.support.errors import UserError
from h2osim.support.reading import Index
from h2osim.traces.manifest import SHARES

VERSION = 1
_MOST_BYTES = 1 << 24


class _File(Struct):
    """What such a file may hold."""

    h2osim_budgets: Annotated[int, Meta(ge=VERSION, le=VERSION)]
    model: str
    share: Annotated[str, Meta(pattern=rf"^({'|'.join(SHARES)})\Z")]
    layers: list[Index]
    budgets: list[list[Annotated[int, Meta(le=2**31 - 1)] | float]]
    total: Annotated[int, Meta(le=2**53)] | float
    made: str


@dataclass(frozen=True, eq=False)
class UnitBudgets:
    """A budget for every unit. ``name`` is what results call it.

    budgets: [layers, units], int64 tokens or float64 shares of n. layers: the model's indices of
    the rows; empty: all of the model's attention layers, in order. share: which heads are a unit;
    empty: whatever is asked for.
    """

    name: str
    budgets: NDArray[Any]
    layers: tuple[int, ...] = ()
    model: str = ""
    share: str = ""
    made: str = ""

    def __post_init__(self) -> None:
        array = self.budgets
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iuf":
            raise UserError(
                f"budgets {self.name}: found shape {list(array.shape)} of {array.dtype}, expected "
                "numbers [layers, units]"
            )
        whole = array.dtype.kind != "f"
        good = array >= 1 if whole else (array > 0) & (array <= 1)
        if not good.all():
            layer, unit = np.argwhere(~good)[0]
            expected = "tokens from 1 on" if whole else "shares of n above 0 up to 1.0"
            raise UserError(
                f"budgets {self.name}: found {array[layer, unit]} in row {layer}, unit {unit}, "
                f"expected {expected}"
            )
        if self.layers and (len(self.layers), len(set(self.layers))) != (len(array),) * 2:
            raise UserError(
                f"budgets {self.name}: {len(array)} rows, expected one for each of "
                f"{len(set(self.layers))} layers"
            )

    @property
    def mean(self) -> float:
        """The mean over the units, in tokens or as a share."""
        return float(self.budgets.mean())

    def for_model(self, model: str, share: str, layers: Sequence[int]) -> None:
        """UserError unless the budgets are for this model's layers, shared like this."""
        for word, own, other in (("model", self.model, model), ("share", self.share, share)):
            if own and own != other:
                raise UserError(f"budgets {self.name}: made for {word} {own}, asked for is {other}")
        rows = len(self.layers) or len(self.budgets)
        if rows != len(layers) or (self.layers and set(self.layers) != set(layers)):
            raise UserError(
                f"budgets {self.name}: {rows} layers, expected one row for each of the "
                f"{len(layers)} layers {', '.join(map(str, layers))}"
            )

    def tokens(self, n: int, layers: Sequence[int], units: int) -> NDArray[np.int64]:
        """Tokens int64 [layers, units] for a text of n, in the order of ``layers``.

        UserError where the number of units is another, or a budget is above n.
        """
        if self.budgets.shape[1] != units:
            raise UserError(
                f"budgets {self.name}: {self.budgets.shape[1]} units a layer, expected {units}"
            )
        rows = [self.layers.index(layer) for layer in layers] if self.layers else slice(None)
        chosen = self.budgets[rows]
        try:
            flat = [budget_tokens(b, n, n) for b in chosen.ravel().tolist()]
        except UserError as error:
            raise UserError(f"budgets {self.name}: {error}") from None
        return np.array(flat, np.int64).reshape(chosen.shape)


def read_budgets(path: Path) -> UnitBudgets:
    """Read a file of budgets; UserError in one line where it is none, or its parts do not agree."""
    found = reading.json_of(path, _File, _MOST_BYTES)
    try:
        array = np.array(found["budgets"])
    except ValueError:  # rows of several lengths
        array = np.zeros(0, int)
    if array.dtype.kind == "f" and {type(x) for row in found["budgets"] for x in row} != {float}:
        raise UserError(f"budgets {path}: found tokens among shares; write 1.0 for all of the text")
    about = found["model"], found["share"], found["made"]
    budgets = UnitBudgets(path.stem, array, tuple(found["layers"]), *about)
    total = found["total"]
    if not math.isclose(total, array.sum(), rel_tol=1e-9):
        raise UserError(f"budgets {path}: total {total}, but the budgets add up to {array.sum()}")
    return budgets


def write_budgets(path: Path, budgets: UnitBudgets) -> None:
    """Write such a file, whole or not at all."""
    content = {
        "h2osim_budgets": VERSION,
        "model": budgets.model,
        "share": budgets.share,
        "layers": list(budgets.layers),
        "budgets": budgets.budgets.tolist(),
        "total": budgets.budgets.sum().item(),
        "made": budgets.made,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
