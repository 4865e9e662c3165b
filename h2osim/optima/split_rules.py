"""Published rules for splitting slots over units, as their authors' code has them.

What differs is said with each rule. All spend exactly the slots that there are, so that rules are
compared at the same memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from h2osim.replays.unit_budgets import share_out
from h2osim.traces.unit import Unit

Ints = NDArray[np.int64]


def equal_split(slots: int, room: Ints) -> Ints:
    """As equal as whole numbers and `room` allow; the first get what does not divide."""
    return share_out(np.ones(len(room)), slots, room)


def pyramid_split(
    slots: int,
    layers: int,
    per_layer: int,
    n: int,
    beta: float = 20.0,
    window: int = 8,
    reverse: bool = False,
) -> Ints:
    """PyramidKV (arXiv 2406.02069): more in early layers, by a straight line.

    As in KVCache-Factory every unit holds the window, and the line splits what lies outside it:
    from 2b - b/beta in the first layer to b/beta in the last, b being the mean outside. Where the
    first layer would exceed the text it gets all of it, and the line is flatter. A mean that does
    not hold the window is split equally. Where we differ: their line falls by whole tokens a layer,
    which leaves the last layers more than their share and the total above the budget; here the
    total is kept and tokens go by largest remainders. ``reverse``: more in late layers.
    """
    count = layers * per_layer
    room = np.full(count, n)
    outside = slots / count - window
    if outside <= 0 or layers == 1:
        return equal_split(slots, room)
    last = outside / beta
    first = min(2 * outside - last, n - window)
    line = np.linspace(first, 2 * outside - first, layers)
    weight = np.repeat(line[::-1] if reverse else line, per_layer)
    # What lies outside, shared out one slot higher because a share is at least 1 and may be 0 here.
    return window - 1 + share_out(weight + 1, slots - count * (window - 1), room - window + 1)


def adakv_split(
    units: Sequence[Unit],
    slots: int,
    layers: int,
    p: int,
    n: int | None = None,
    floor: float = 0.2,
    window: int = 32,
    kernel: int = 7,
) -> Ints:
    """Ada-KV (arXiv 2407.11550): equal layers; within one, more for units of spread attention.

    As in the authors' code every unit holds the last ``window`` tokens of the prompt of p tokens.
    The others are scored by the attention of the window's rows, the largest of ``kernel``
    neighbours, and a unit's part of a layer's largest scores, as many as there are slots outside
    the window, is what it gets of them; ``floor`` of an equal share is safe. A unit's heads are
    added up. Without a prompt (p < 2) all of the text counts as one, in hindsight. Where a window
    does not fit an equal share, a layer is split equally. ``n``: the most slots of a unit, its
    text's length if not given.
    """
    count, n = len(units), units[0].n if n is None else n
    per_layer = count // layers
    p = units[0].n if p < 2 else p
    layer_slots = equal_split(slots, np.full(layers, per_layer * n))
    split = np.zeros(count, np.int64)
    for at in range(layers):
        inside = slice(at * per_layer, (at + 1) * per_layer)
        scores = np.stack([window_scores(unit, p, window, kernel) for unit in units[inside]])
        split[inside] = adakv_of_scores(scores, int(layer_slots[at]), n, floor, min(window, p))
    return split


def adakv_of_scores(scores: Ints, slots: int, n: int, floor: float, window: int) -> Ints:
    """One layer's slots by the scores [units, tokens before the window] of its units."""
    units, room = len(scores), np.full(len(scores), n)
    outside = slots - units * window
    if outside <= 0 or not scores.size:
        return equal_split(slots, room)
    order = np.argsort(-scores.ravel(), kind="stable")[:outside]
    largest = np.bincount(order // scores.shape[1], minlength=units)
    weight = (1 - floor) * largest + floor * outside / units
    return window - 1 + share_out(weight + 1, outside + units, room - window + 1)


def window_scores(unit: Unit, p: int, window: int, kernel: int) -> Ints:
    """int64 [p - window]: what the last ``window`` prompt rows give each token before them.

    Of each token the largest among the ``kernel`` tokens around it.
    """
    from scipy.ndimage import maximum_filter1d

    before = max(0, p - window)
    scores = np.zeros(before, np.int64)
    for t in range(before, p):
        scores += unit.row(t)[:before]
    return maximum_filter1d(scores, kernel, mode="constant") if before else scores
