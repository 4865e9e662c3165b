"""Quest's attention for evaluations, which hides all pages but the best."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from cases import CASES
from peers.shown import Sets, attention_layer, evenly_read, one_set, parts_of, positions

SOURCE = "https://github.com/mit-han-lab/Quest, evaluation/quest_attention.py"


def sets(root: Path | None) -> Sets:
    """What some queries read: at least three pages, each head its own."""
    assert root is not None
    repeated = {"repeat_kv": lambda x, _: x, "apply_rotary_pos_emb": lambda q, k, *_: (q, k)}
    forward = parts_of(
        root / "evaluation/quest_attention.py", ["forward", "local_heavy_hitter_mask"],
        DynamicCache=SimpleNamespace, **repeated,
    )["forward"]  # fmt: skip
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        for page, budget in ((4, 12), (4, 24), (7, 28), (16, 48)):
            layer = attention_layer(
                torch.nn.Module, case, num_key_value_heads=case.heads, num_key_value_groups=1,
                layer_id=2, layer_idx=2, chunk_size=page, token_budget=budget,
            )  # fmt: skip
            for t in range(case.p, case.n, 3):
                past = positions(0, t)
                shape = (1, t, case.heads, case.d)
                keys = layer.k_proj(past).view(shape).transpose(1, 2)
                _, shown, _ = forward(
                    layer, positions(t, t + 1), None, torch.tensor([[t]]), (keys, keys), True
                )
                read = [one.nonzero()[:, 0].tolist() for one in shown[0, :, 0]]
                k, earlier = evenly_read(read, t)
                if k:
                    yield one_set(
                        case, "forward", f"quest:page={page}", k, earlier, after=t, share="head"
                    )
