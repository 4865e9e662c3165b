"""Which policies of a result compete for a rank, and what a table says of those that do not.

A rank compares policies that run online with at most k tokens and choose them. Outside the race
are oracles and bounds, whoever held more than the budget, and whoever a window leaves no choice: it
is another policy's cache under this one's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from h2osim.replays.facts import params_of
from h2osim.report.frames import remark, tokens_of

if TYPE_CHECKING:
    import xarray as xr


#: More budgets that a window fills are not listed one by one.
_MOST_LISTED = 4


def filled(windows: str, params: str, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """For each window that is given in tokens, written ``name=value``: which budgets it fills.

    ``windows`` and ``params`` are those coordinates of the policy, ``tokens`` budgets in tokens
    (0: none).
    """
    values = params_of(params)
    sizes = {name: values[name] for name in windows.split(",") if values.get(name, 0) >= 1}
    return {f"{name}={x}": (tokens > 0) & (tokens <= x) for name, x in sizes.items()}


def competing(results: xr.Dataset) -> list[bool]:
    """Which policies have a rank: at no budget anything keeps them out of the race."""
    return [not _outside(results.isel(policy=i)) for i in range(results.sizes["policy"])]


def notes(results: xr.Dataset) -> list[str]:
    """What a table says of each policy: why it has no rank, and how it differs from its source."""
    found = []
    for i in range(results.sizes["policy"]):
        one = results.isel(policy=i)
        words, share = _outside(one), str(one["source_share"].item())
        if share and share != results.attrs["share"]:
            words.append(f"not as published: share={share}")
        found.append(", ".join(words))
    return found


def ranks(keys: Sequence[float], racing: Sequence[bool]) -> list[str]:
    """Each policy's rank, the least key first; equals share it, and = says so."""
    rivals = [key for key, counts in zip(keys, racing, strict=True) if counts]
    return [
        f"{1 + sum(other < key for other in rivals)}{'=' * (rivals.count(key) > 1)}"
        if counts
        else "–"
        for key, counts in zip(keys, racing, strict=True)
    ]


def exceeding(one: xr.Dataset) -> str:
    """By how much a policy held more than its budget, in words; nothing where it never did."""
    held, room = one["held"].values, _room(one)
    over = np.divide(held, room, out=np.zeros(held.shape), where=room > 0)
    worst = np.unravel_index(int(over.argmax()), over.shape)
    return f"holds up to {held[worst]} of {int(room[worst])}" if over[worst] > 1 else ""


def _room(one: xr.Dataset) -> np.ndarray:
    """Each unit's budget in tokens, in the order of what it held; 0 where there is none."""
    return tokens_of(one).broadcast_like(one["held"]).transpose(*one["held"].dims).values


def _outside(one: xr.Dataset) -> list[str]:
    """Why a policy has no rank, in words; nothing where it has one."""
    words = list(filter(None, [remark(one["kind"].item())]))
    room = _room(one)
    if over := exceeding(one):
        words.append(over)
    if over and params_of(one["params"].item()).get("when") == "prompt":
        prompts = (one.coords if "prompt_len" in one.coords else one.attrs)["prompt_len"]
        p = int(np.min(prompts))
        if (room >= p).any():
            words.append(f"a prompt of {p} has nothing to evict")
    for window, at in filled(str(one["windows"].item()), one["params"].item(), room).items():
        if at.any():
            full = sorted(set(room[at]))
            listed = ", ".join(f"{k:g}" for k in full)
            some = listed if len(full) <= _MOST_LISTED else f"up to {full[-1]:g}"
            words.append(f"{window} fills a budget of {some}")
    return words
