"""H2O's Hugging Face code: the dropping cache, the masking one, and the masks of lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from peers.shown import (
    Sets,
    attention,
    attention_layer,
    cached,
    causal,
    identity_keys,
    masked_layer,
    masked_steps,
    one_set,
    parts_of,
    positions,
)  # fmt: skip

SOURCE = "https://github.com/FMInference/H2O, h2o_hf/utils_{real_drop,hh,lm_eval}"


def lines(case: Case, calls: str, policy: str, k: int, kept: dict[int, Any], **more: Any) -> Sets:
    """A line of the data for each step of ``kept``."""
    for after, left in kept.items():
        yield one_set(case, calls, policy, k, left, after=after, **more)


def dropping(root: Path) -> Sets:
    """The prompt's end and twelve steps of decoding, for several splits of the budget."""
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


def masking(root: Path) -> Sets:
    """Generation under a mask: a token is held while its accumulated score is."""
    made = masked_layer(root / "h2o_hf/utils_hh/modify_llama.py")
    for name, first in (("rows-mha", None), ("rows-mha", 20), ("decode-long", 24)):
        case = CASES[name]
        p = first or case.p
        for recent, k in ((4, 8), (7, 15), (3, 18)):
            # A share of the prompt, of which the whole part is taken.
            shares = {"heavy": (k - recent + 0.5) / p, "recent": (recent + 0.5) / p}
            module = attention_layer(
                made, case, cache_budget_records=[], input_length=[],
                **{f"{part}_budget_ratio": share for part, share in shares.items()},
            )  # fmt: skip
            steps = masked_steps(module, p, case.n - 2)
            found = {t: left for t, left in steps if t - p in (-1, 0, 3, 9, 30)}
            yield from lines(
                case, "LlamaAttention_heavy_hitter, utils_hh", f"h2o-mask:recent={recent}", k,
                found, p=p, share="head",
            )  # fmt: skip


def evaluating(root: Path) -> Sets:
    """OPT's mask, as its attention joins it with the recent band; the first rows are a prompt."""
    name = "local_heavy_hitter_mask"
    made = parts_of(root / "h2o_hf/utils_lm_eval/modify_opt.py", [name])[name]
    for case in (CASES["rows-mha"], CASES["decode-long"]):
        queries, keys = identity_keys(case, case.n)
        keys = keys.repeat_interleave(case.heads // case.groups, dim=1)
        logits = (queries @ keys.transpose(2, 3) / case.n**0.5 + causal(0, case.n))[0]
        for heavy, recent in ((4, 4), (8, 7), (15, 3)):
            band = torch.ones(case.n, case.n).triu(-recent).bool()
            mask = (made(logits, heavy) | band).tril()
            found = {
                t: [one.nonzero()[:, 0].tolist() for one in mask[:, t + 1, : t + 1]]
                for t in (heavy + recent - 1, heavy + recent + 2, 40, case.n - 2)
            }
            yield from lines(
                case, name, f"h2o-lmeval:recent={recent}", heavy + recent, found, p=heavy,
                share="head",
            )  # fmt: skip


def looking_ahead(root: Path) -> Sets:
    """LLaMA's mask, of attention over the whole text: what each row attends to before itself."""
    made = masked_layer(root / "h2o_hf/utils_lm_eval/modify_llama.py")
    for case in (CASES["rows-mha"], CASES["decode-long"]):
        for heavy, recent in ((4, 4), (8, 7), (15, 3)):
            module = attention_layer(
                made, case, heavy_budget_ratio=(heavy + 0.5) / case.n,
                recent_budget_ratio=(recent + 0.5) / case.n,
            )  # fmt: skip
            hidden, mask = positions(0, case.n), causal(0, case.n)
            _, shown, _ = module(hidden, mask, output_attentions=True)
            found = {
                t: [one.nonzero()[:, 0].tolist() for one in shown[0, :, t + 1, : t + 1]]
                for t in (0, recent, heavy + recent, 40, case.n - 2)
            }
            yield from lines(
                case, "LlamaAttention_heavy_hitter, utils_lm_eval", f"h2o-global:recent={recent}",
                heavy + recent, found, p=1, n=case.n, share="head",
            )  # fmt: skip


def sets(root: Path | None) -> Sets:
    """All of them."""
    assert root is not None
    yield from dropping(root)
    yield from masking(root)
    yield from evaluating(root)
    yield from looking_ahead(root)
