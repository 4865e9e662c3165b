"""H2O's dropping cache: accumulated attention and a recent window, a cache for each head."""

from __future__ import annotations

from pathlib import Path

import torch
from cases import CASES
from peers.shown import Sets, attention, cached, one_set, parts_of

SOURCE = "https://github.com/FMInference/H2O, h2o_hf/utils_real_drop/modify_llama.py"


def sets(root: Path | None) -> Sets:
    """The prompt's end and twelve steps of decoding, for several splits of the budget."""
    assert root is not None
    file = root / "h2o_hf/utils_real_drop/modify_llama.py"
    made = parts_of(file, ["H2OKVCache_LayerWise"])["H2OKVCache_LayerWise"]
    for name in ("rows-mha", "decode"):
        case = CASES[name]
        for recent, k in ((4, 8), (8, 15), (2, 15), (15, 30)):
            cache = made(hh_size=k - recent, recent_size=recent)
            rule = "h2o" if 2 * recent != k else "h2o-realdrop"
            places = torch.arange(case.p).view(1, 1, -1, 1).repeat(1, case.heads, 1, 1)
            pair = cache((places, places), attention(case, case.p))
            steps = {case.p - 1, case.p + 1, case.p + 11, case.n - 3}
            for t in range(case.p - 1, case.n - 2):
                if t >= case.p:
                    new = torch.cat([pair[0], torch.full((1, case.heads, 1, 1), t)], dim=2)
                    held = [[*map(int, one)] for one in new[0, :, :, 0]]
                    pair = cache((new, new), cached(case, t, held))
                left = pair[0][0, :, :, 0].tolist()
                if t in steps:
                    yield one_set(
                        case, "H2OKVCache_LayerWise", f"{rule}:recent={recent}", k, left, after=t
                    )
