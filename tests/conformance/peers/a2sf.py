"""A2SF: its attention in blocks, which adds up rows as its policies weigh them."""

from __future__ import annotations

from pathlib import Path

from cases import CASES
from peers.shown import BUDGETS, Sets, identity_keys, one_set, parts_of

SOURCE = "https://github.com/Dirac-Notation/A2SF, utils_real_drop/policies"


def sets(root: Path | None) -> Sets:
    """Forgetting accumulated attention, and its SnapKV, which does not pool."""
    assert root is not None
    here = root / "utils_real_drop"
    base = parts_of(here / "policies/base.py", ["CompressionPolicy"])["CompressionPolicy"]
    forgetting = parts_of(here / "policies/a2sf.py", ["A2SFPolicy"], CompressionPolicy=base)
    observing = parts_of(here / "policies/snap.py", ["SnapPolicy"], CompressionPolicy=base)
    name = "compressed_attention"
    attend = parts_of(here / "attention.py", [name], CompressionPolicy=base)[name]
    for name in ("rows-mha", "rows-gqa", "rows-mqa"):
        case = CASES[name]
        queries, keys = identity_keys(case, case.p)
        keys = keys.repeat_interleave(case.heads // case.groups, dim=1)
        for k in (b for b in BUDGETS if b < case.p):
            rules = [
                (forgetting["A2SFPolicy"](case.groups, k, gamma, recent), f"decay:gamma={gamma},"
                 f"recent={recent},when=prompt")
                for gamma, recent in ((1.0, 8), (0.9, 8), (0.5, 4), (0.97, 0))
            ]  # fmt: skip
            rules += [
                (observing["SnapPolicy"](case.groups, k, window, window),
                 f"snapkv:window={window},kernel=1")
                for window in (4, 8)
            ]  # fmt: skip
            for policy, rule in rules:
                _, left = attend(
                    queries, keys, keys, policy=policy, attn_mask=None, head_dim=case.p,
                    q_block_size=16,
                )  # fmt: skip
                yield one_set(case, type(policy).__name__, rule, k, left[0].tolist())
