"""NACL's eviction, written for Paddle, of which NumPy and torch take the place here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cases import CASES, Case
from peers.shown import Sets, attention, kept_keys, one_set, parts_of

SOURCE = "https://github.com/PaddlePaddle/Research, NLP/ACL2024-NACL/src/llama_nacl_patch.py"


def paddle_of(case: Case) -> Any:
    """The functions of Paddle that it calls; proxy rows see no later keys, as in the case."""

    def scores(queries: torch.Tensor, *_: Any) -> torch.Tensor:
        return attention(case, case.p)[:, :, -queries.shape[1] :].sum(dim=2, keepdim=True)

    flash = SimpleNamespace(calc_reduced_attention_scores=scores)
    return SimpleNamespace(
        _C_ops=SimpleNamespace(flash_attn=lambda *_: (None,) * 4),
        nn=SimpleNamespace(functional=SimpleNamespace(flash_attention=flash)), topk=torch.topk,
        to_tensor=lambda x: torch.tensor(np.array(x)),
        take_along_axis=lambda x, index, axis: x.gather(axis, index.expand(-1, -1, -1, x.shape[3])),
    )  # fmt: skip


class Keys:
    """A tensor whose ``transpose`` is Paddle's, of all axes at once."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x, self.shape = x, list(x.shape)

    def transpose(self, axes: tuple[int, ...]) -> Any:
        """With its axes in this order."""
        return Keys(self.x.permute(axes))

    def gather(self, axis: int, index: torch.Tensor) -> Keys:
        """As torch's."""
        return Keys(self.x.gather(axis, index))


def sets(root: Path | None) -> Sets:
    """Without its random part: its draws are another generator's."""
    assert root is not None
    name = "kvcache_eviction"
    for case in (CASES["rows-mha"], CASES["rows-mqa"]):
        evict = parts_of(
            root / "NLP/ACL2024-NACL/src/llama_nacl_patch.py", [name], paddle=paddle_of(case),
            np=np, scipy=__import__("scipy.special"),
        )[name]  # fmt: skip
        keys = torch.eye(case.p, dtype=torch.float64)[None, :, None].repeat(1, 1, case.heads, 1)
        for window, recent, sinks, top in ((6, 6, 4, 5), (1, 8, 2, 20), (12, 3, 0, 25)):
            sizes = {
                "proxy_tokens_ratio": window, "proxy_token_keep_ratio": top,
                "random_token_keep_ratio": 0, "token_protect_ratio": recent + sinks,
            }  # fmt: skip
            # Of a share of the prompt the whole part is taken.
            given = {name: (size + 0.5) / case.p for name, size in sizes.items()}
            given["sink_tokens"] = sinks
            owner = SimpleNamespace(config=SimpleNamespace(kvcache_eviction=given))
            left, _ = evict(owner, keys, Keys(keys), Keys(keys))
            yield one_set(
                case, name, f"nacl:window={window},recent={recent},sinks={sinks},random=0",
                sinks + recent + top,
                kept_keys(keys.transpose(1, 2), left.x.transpose(1, 2)), share="head",
            )  # fmt: skip
