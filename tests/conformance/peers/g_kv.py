"""G-KV: scores of earlier evictions count beside the newest, once and while decoding."""

from __future__ import annotations

from pathlib import Path

import torch
from cases import CASES
from peers.shown import Sets, kept_keys, one_set, parts_of, vectors

#: One of the cases, with ``max``, meets it.
FIRST = (
    "without a GPU its similarity leaves the first key out where a key is like no other, unlike "
    "its kernel for GPUs, which h2osim follows"
)

SOURCE = "https://github.com/microsoft/G-KV, gkv/model/compression/score_based.py"


def sets(root: Path | None) -> Sets:
    """The three ways to blend a score with that of the last eviction."""
    assert root is not None
    names = ["compute_attention_scores", "cal_similarity_raw"]
    tools = parts_of(root / "gkv/utils/compression_score.py", names)
    made = parts_of(
        root / "gkv/model/compression/score_based.py", ["ScoreBasedKV"],
        **{name: tools[name] for name in names},
    )["ScoreBasedKV"]  # fmt: skip
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        shown = vectors(case, case.n)
        for smooth, window, mix, alpha, every in (
            ("max", 8, 0.5, 0.8, 6), ("mean", 4, 1.0, 0.6, 5), ("sum", 6, 0.2, 0.9, 6),
        ):  # fmt: skip
            for k in (15, 30, 45):
                cluster = made(
                    k, window, mix_lambda=mix, suppressing_redundancy=True, alpha=alpha,
                    smooth_method=smooth, enable_score_cache=True, triton_similarity=False,
                )  # fmt: skip
                keys, score = shown["k"][:, :, : case.p], None
                for t in range(case.p - 1, case.p + 3 * every):
                    if t >= case.p:
                        keys = torch.cat([keys, shown["k"][:, :, t : t + 1]], dim=2)
                    if (t - case.p + 1) % every:
                        continue
                    asked = shown["q"][:, :, t + 1 - window : t + 1].contiguous()
                    keys, _, _, score = cluster.update_kv(keys, asked, keys, score_cache=score)
                    yield one_set(
                        case, f"ScoreBasedKV, {smooth}",
                        f"gkv:window={window},mix={mix:g},alpha={alpha:g},smooth_method={smooth},"
                        f"when=every:{every}", k, kept_keys(shown["k"], keys), after=t,
                        differs=FIRST if (name, smooth) == ("vectors-mha", "max") else None,
                    )  # fmt: skip
