"""StreamingLLM's own cache: the first tokens and the newest."""

from __future__ import annotations

from pathlib import Path

import torch
from cases import CASES
from peers.shown import Sets, one_set, parts_of

SOURCE = "https://github.com/mit-han-lab/streaming-llm, streaming_llm/kv_cache.py"


def sets(root: Path | None) -> Sets:
    """It makes room for the next token before that is attended, hence budgets of one less."""
    assert root is not None
    names = ["slice2d", "slice3d", "slice1d", "StartRecentKVCache"]
    space = parts_of(root / "streaming_llm/kv_cache.py", names)
    space["DIM_TO_SLICE"] = {1: space["slice1d"], 2: space["slice2d"], 3: space["slice3d"]}
    case = CASES["rows-mha"]
    for sinks in (1, 4):
        for k in (8, 15, 30):
            cache = space["StartRecentKVCache"](sinks, k + 1 - sinks)
            held = torch.arange(case.p).view(1, 1, -1, 1)
            for t in range(case.p - 1, case.p + 8):
                if t >= case.p:
                    held = torch.cat([held, torch.full((1, 1, 1, 1), t)], dim=2)
                held = cache.evict_for_space([[held, held]], 1)[0][0]
                left = [held[0, 0, :, 0].tolist()] * case.groups
                if t in (case.p - 1, case.p + 2, case.p + 7):
                    yield one_set(
                        case, "evict_for_space", f"streaming:sinks={sinks}", k, left, after=t
                    )
