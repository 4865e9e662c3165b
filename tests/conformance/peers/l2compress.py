"""The authors' compression by the norms of keys."""

from __future__ import annotations

from math import ceil
from pathlib import Path

from cases import CASES
from peers.shown import BUDGETS, Sets, kept_keys, one_set, parts_of, vectors

SOURCE = "https://github.com/alessiodevoto/l2compress, cache.py"


def sets(root: Path | None) -> Sets:
    """The prompt."""
    assert root is not None
    name = "l2_compress"
    compress = parts_of(root / "cache.py", [name], ceil=ceil)[name]
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        shown = vectors(case, case.p)
        for k in BUDGETS:
            pairs = [(shown["k"], shown["v"])]
            left = compress(pairs, keep_ratio=(k - 0.5) / case.p, prune_after=1)[0][0]
            yield one_set(case, "l2_compress", "knorm:when=prompt", k, kept_keys(shown["k"], left))
