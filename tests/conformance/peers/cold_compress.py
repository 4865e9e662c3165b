"""cold-compress: its caches while decoding, and its compressors of a prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from peers.shown import Sets, attention, kept_keys, one_set, parts_of, vectors

SOURCE = "https://github.com/AnswerDotAI/cold-compress, cache.py, prompt_compression.py"

COUNTS = (
    "it counts rows from 1/(keys cached) on, divided by the rows that the token has seen, and "
    "evicts a token that was never counted while there is room"
)
DIVIDED = "it divides the mass in the window by the rows that the token has seen"
POOLED = "it pools over the window's keys too, and over fewer keys at both ends"


def code(file: Path) -> dict[str, Any]:
    """The classes of a file."""
    text = file.read_text(encoding="utf-8")
    names = [line[6:].split("(")[0] for line in text.splitlines() if line.startswith("class ")]
    return parts_of(file, names, ABC=ABC, abstractmethod=abstractmethod)


def decoded(made: Any, case: Case, p: int, size: int, **options: Any) -> Iterator[tuple[int, Any]]:
    """What each cache holds after each step, before the next token takes the place of another.

    The cache makes room for a token before that attends, so that the budget is its size less one.
    """
    rows = case.kind == "rows"
    keys = identity(case, 1) if rows else vectors(case, case.n)["k"]
    cache = made(
        1, case.groups, keys.shape[-1], torch.float64, max_cache_length=size, cache_bits=None,
        **options,
    )  # fmt: skip
    if options.get("attn_thresholding"):  # torch no longer puts whole numbers among truth values
        cache.attn_history_num = cache.attn_history_num.int()
    for t in range(p - 1, case.n - 1):
        places = torch.arange(t if t >= p else 0, t + 1, dtype=torch.int32)
        new = identity(case, len(places)) if rows else keys[:, :, places]
        cache.update_kv(places, new[..., : keys.shape[-1]], new[..., : keys.shape[-1]], t < p)
        slots = cache.pos.expand(1, case.groups, size)[0].tolist()
        if t >= p:
            yield t - 1, [[j for j in one if 0 <= j < t] for one in slots]
        attended = shown(case, t, slots)[..., : size if t >= p else p] if rows else None
        cache.update_state(places, new, new, t < p, attended)


def shown(case: Case, t: int, slots: list[list[int]]) -> torch.Tensor:
    """Row t by slots, the mean over a group's heads: float64 [1, groups, 1, slots]; -1: empty."""
    found = torch.zeros(1, case.groups, 1, len(slots[0]), dtype=torch.float64)
    group = case.heads // case.groups
    for g, held in enumerate(torch.tensor(slots)):
        rows = attention(case, t + 1)[0, g * group : (g + 1) * group, t, held[held >= 0].long()]
        found[0, g, 0, held >= 0] = (rows / rows.sum(dim=-1, keepdim=True)).mean(dim=0)
    return found


def decoding(caches: dict[str, Any]) -> Sets:
    """Its caches after a short prompt."""
    heavy = {"history_window_size": 1, "attn_thresholding": False}
    lately = {"history_window_size": 16, "attn_thresholding": False}
    often = {"history_window_size": 16, "attn_thresholding": True}
    several = "scissorhands:window=16,drop=one,recent={recent},sinks={sinks},count="
    rules: tuple[tuple[str, str, dict[str, Any], str | None], ...] = (
        ("KVCacheHeavyHitter", "h2o-mean:recent={recent},sinks={sinks}", heavy, None),
        ("KVCacheHeavyHitter", several + "mass", lately, DIVIDED),
        ("KVCacheHeavyHitter", several + "low", often, COUNTS),
        ("KVCacheRecentGlobal", "streaming:sinks={sinks}", {}, None),
        ("KVCacheL2", "knorm:recent={recent},sinks={sinks}", {}, None),
    )
    for calls, rule, options, differs in rules:
        for name in ("vectors-mha", "vectors-gqa") if "L2" in calls else ("decode", "decode-long"):
            for k, recent, sinks in ((10, 4, 0), (14, 5, 2), (29, 10, 4)):
                case = CASES[name]
                p = 1 if "Hitter" in calls else 6  # "Global" slots are those of the prompt
                steps = decoded(
                    caches[calls], case, p, k + 1, global_tokens=sinks, recent_window=recent,
                    **options,
                )  # fmt: skip
                for after, left in steps:
                    if after in (k - 1, k, k + 8, case.n - 4):
                        yield one_set(
                            case, calls, rule.format(recent=recent, sinks=sinks), k, left,
                            after=after, p=p, differs=differs,
                        )  # fmt: skip


def compressing(compressors: dict[str, Any]) -> Sets:
    """Its compressors of a prompt."""
    rules = (
        ("PromptCompressorRecentGlobal", "streaming:sinks={sinks},when=prompt", None),
        ("PromptCompressorL2", "knorm:recent={recent},sinks={sinks},when=prompt", None),
        ("PromptCompressorHeavyHitter", "snapkv:window=16,kernel=5", POOLED),
    )
    for calls, rule, differs in rules:
        for name in ("vectors-mha", "vectors-gqa") if "L2" in calls else ("rows-mha", "rows-gqa"):
            case = CASES[name]
            keys = vectors(case, case.p)["k"] if "L2" in calls else identity(case, case.p)
            group = case.heads // case.groups
            rows = attention(case, case.p).view(1, case.groups, group, case.p, case.p).mean(dim=2)
            for k, recent, sinks in ((20, 8, 4), (30, 5, 2), (45, 0, 0)):
                made = compressors[calls](
                    True, max_cache_length=k, recent_window=recent, global_tokens=sinks
                )
                places = torch.arange(case.p)
                _, left, _, _ = made(places, keys, keys, attn=rows.clone())
                yield one_set(
                    case, calls, rule.format(recent=recent, sinks=sinks), k, kept_keys(keys, left),
                    differs=differs,
                )  # fmt: skip


def identity(case: Case, n: int) -> torch.Tensor:
    """The unit vectors as keys of n tokens."""
    return torch.eye(n, dtype=torch.float64).repeat(1, case.groups, 1, 1)


def sets(root: Path | None) -> Sets:
    """All of them."""
    assert root is not None
    yield from decoding(code(root / "cache.py"))
    yield from compressing(code(root / "prompt_compression.py"))
