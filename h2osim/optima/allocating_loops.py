"""The compiled step of dynamic programming over units (`h2osim.allocate`)."""

from __future__ import annotations

from typing import Any

from h2osim.support.compiling import njit

NEVER = -(1 << 62)


@njit(cache=True, nogil=True)
def add_unit(before: Any, curve: Any, most: int, after: Any, choice: Any) -> None:
    """after[s] = max over k of before[s-k] + curve[k], 1 <= k <= n, for s up to `most`.

    NEVER marks what cannot be reached. choice[s] is the least such k.
    """
    n = curve.shape[0] - 1
    for k in range(1, n + 1):
        gain = curve[k]
        for s in range(k, most + 1):
            if before[s - k] != NEVER and before[s - k] + gain > after[s]:
                after[s] = before[s - k] + gain
                choice[s] = k
