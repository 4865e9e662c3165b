"""LagKV's own cache, which keeps the same share of every partition."""

from __future__ import annotations

from pathlib import Path

from cases import CASES
from peers.shown import Sets, kept_keys, one_set, parts_of, vectors

SOURCE = "https://github.com/AI-Lab-China-Merchants-Bank/LagKV, lag_kv.py"


class Bare:
    """What LagKV needs of the cache class that it inherits from."""

    def __init__(self, *_: object) -> None:
        self.key_cache: list[object] = []
        self.value_cache: list[object] = []
        self._seen_tokens = 0


def sets(root: Path | None) -> Sets:
    """The prompt, at budgets that give every partition the same number of tokens."""
    assert root is not None
    made = parts_of(root / "lag_kv.py", ["LagKV"], DynamicCache=Bare)["LagKV"]
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        shown = vectors(case, case.p)
        for lag, sinks, each in ((8, 4, 3), (8, 0, 1), (14, 4, 7), (20, 2, 5), (10, 5, 6)):
            cache = made(ratio=(each + 0.5) / lag, sink_size=sinks, lag_size=lag)
            cache.update(shown["k"].clone(), shown["v"].clone(), 0)
            left = cache.key_cache[0]
            yield one_set(
                case, "LagKV", f"lagkv:lag={lag},sinks={sinks}", left.shape[2],
                kept_keys(shown["k"], left),
            )  # fmt: skip
