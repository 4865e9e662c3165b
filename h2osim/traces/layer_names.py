"""Which arrays of a file are the attention of which layer, by their names and shapes.

Attention is square: [n, n] of one head, [heads, n, n], or [1, heads, n, n] with a batch of one, as
`output_attentions` and TransformerLens have it. Where one array holds all layers, these are its
first axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from h2osim.support.errors import UserError
from h2osim.traces.dumps import Dumped

PATTERN = "hook_pattern"
"""How TransformerLens calls attention after the softmax; its `hook_attn_scores` are before it."""

_DIGITS = 18
"""Of a number in a name, at most: time stamps have fewer, and Python refuses to read thousands."""


@dataclass(frozen=True)
class LayerArray:
    """One layer's attention: the array's name in the file, and where in it the layer is."""

    name: str
    array: Dumped
    place: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Heads, rows, columns."""
        shape = (1, *self.array.shape)
        return shape[-3], shape[-2], shape[-1]

    def read(self) -> Any:
        """The attention, [heads, n, n] but for axes of one."""
        whole = self.array.read()
        return whole if self.place is None else whole[self.place]


def layers_of(
    found: Mapping[str, Dumped], where: object, names: str | None = None
) -> dict[int, LayerArray]:
    """The attention of each layer, by the layer's number.

    names: a pattern, as of file names, for those that are meant. UserError where no array can be
    attention, where several sets of arrays can, where the names do not say which layer is which,
    for a batch of several sequences, and for layers of different shapes.
    """
    square = {name: one for name, one in found.items() if _may_be(one)}
    if names is not None:
        square = {name: one for name, one in square.items() if fnmatchcase(name, names)}
    if not square:
        which = f"that {names!r} matches" if names else "that may be attention"
        raise UserError(
            f"{where}: found no array {which}, expected floats [heads, n, n] of each layer; it "
            f"holds {_listed([f'{name} {list(one.shape)}' for name, one in found.items()])}"
        )
    sets: dict[str, list[str]] = {}
    for name in square:
        sets.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    meant = [one for one in sets if one.endswith(PATTERN)] or [*sets]
    if len(meant) > 1:
        raise UserError(
            f"{where}: found several sets of arrays that may be attention, {_listed(meant)}; "
            f"--names '{meant[0]}' takes the first"
        )
    chosen = sets[meant[0]]
    layers = _whole(square[chosen[0]], chosen[0]) if len(chosen) == 1 else {}
    if not layers:
        numbers = _numbers(chosen, where)
        layers = {
            number: LayerArray(name, square[name])
            for number, name in sorted(zip(numbers, chosen, strict=True))
        }
    for number, layer in layers.items():
        axes = layer.array.shape if layer.place is None else layer.array.shape[1:]
        if len(axes) > 3 and axes[:-3] != (1,):
            raise UserError(
                f"{where}: {layer.name}: found shape {list(layer.array.shape)}, a batch of "
                f"{axes[0]} sequences; expected one"
            )
        first = next(iter(layers.values()))
        if layer.shape != first.shape:
            raise UserError(
                f"{where}: layer {number} is {list(layer.shape)}, expected {list(first.shape)} as "
                f"the layer before"
            )
    return layers


def _may_be(one: Dumped) -> bool:
    shape = one.shape
    return one.floats != "" and 2 <= len(shape) <= 5 and shape[-1] == shape[-2] and 0 not in shape


def _whole(array: Dumped, name: str) -> dict[int, LayerArray]:
    """The layers of one array that holds them all; none where it is one layer's."""
    if len(array.shape) < 4 or (len(array.shape) == 4 and array.shape[0] == 1):
        return {}
    once = Dumped(array.shape, array.floats, cache(array.read))
    return {place: LayerArray(name, once, place) for place in range(array.shape[0])}


def _numbers(names: Sequence[str], where: object) -> list[int]:
    """The layer that each name is of: the number in which the names differ."""
    for name in names:
        if re.search(rf"\d{{{_DIGITS + 1}}}", name):
            raise UserError(f"{where}: found array {name[:40]}…, expected the number of a layer")
    found = [[int(number) for number in re.findall(r"\d+", name)] for name in names]
    if len(names) == 1:
        told = re.search(r"(?:layers?|blocks?|h)[._](\d+)", names[0])
        return [int(told[1]) if told else 0]
    differ = [column for column in zip(*found, strict=True) if len(set(column)) > 1]
    if len(differ) != 1 or len(set(differ[0])) < len(names):
        raise UserError(
            f"{where}: found arrays {_listed(names)}, expected names that differ in the layer's "
            f"number alone"
        )
    return list(differ[0])


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(n if len(n) <= 80 else f"{n[:79]}…" for n in names[:4]) or "nothing"
    return f"{shown} and {len(names) - 4} more" if len(names) > 4 else shown
