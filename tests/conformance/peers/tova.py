"""TOVA's own cache, which evicts by the newest row's mean over a layer's heads."""

from __future__ import annotations

from pathlib import Path

import torch
from cases import CASES
from peers.shown import Sets, attention, cached, one_set, parts_of

SOURCE = "https://github.com/schwartz-lab-NLP/TOVA, src/tova_cache.py"


class Bare:
    """What TOVACache needs of the cache class that it inherits from."""

    def __init__(self) -> None:
        self.key_cache: list[torch.Tensor] = []
        self.value_cache: list[torch.Tensor] = []


def sets(root: Path | None) -> Sets:
    """The prompt's end and ten steps of decoding."""
    assert root is not None
    made = parts_of(root / "src/tova_cache.py", ["TOVACache"], DynamicCache=Bare)["TOVACache"]
    for name in ("rows-mha", "rows-gqa", "rows-mqa"):
        case = CASES[name]
        for k in (8, 15, 30):
            cache = made(k)
            places = torch.arange(case.p).view(1, 1, -1, 1).repeat(1, case.groups, 1, 1)
            cache.key_cache, cache.value_cache = [places], [places]
            cache.reduce(0, attention(case, case.p))
            for t in range(case.p - 1, case.p + 10):
                if t >= case.p:
                    new = torch.full((1, case.groups, 1, 1), t)
                    cache.key_cache = [torch.cat([cache.key_cache[0], new], dim=2)]
                    cache.value_cache = list(cache.key_cache)
                    held = [[*map(int, one)] for one in cache.key_cache[0][0, :, :, 0]]
                    cache.reduce(0, cached(case, t, held))
                left = cache.key_cache[0][0, :1, :, 0].tolist()
                if t in (case.p - 1, case.p, case.p + 4, case.p + 9):
                    yield one_set(case, "TOVACache", "tova", k, left, after=t, share="layer")
