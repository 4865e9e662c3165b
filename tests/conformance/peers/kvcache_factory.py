"""KVCache-Factory: its clusters, given queries and keys whose attention is the case's rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from peers.shown import (
    BUDGETS,
    Sets,
    attention,
    evenly_read,
    identity_keys,
    kept_keys,
    one_set,
    vectors,
)

SOURCE = "https://github.com/Zefan-Cai/KVCache-Factory, pyramidkv/pyramidkv_utils.py"

ONE_HEAD = "it takes the head of the largest sum over the window, not the largest in each row"
CUT = "where pages are cut short it reads one page more, and of the pages the oldest tokens"


def kept(cluster: Any, case: Case) -> list[list[int]]:
    """The prompt's tokens that a cluster keeps."""
    queries, keys = identity_keys(case, case.p)
    left, _ = cluster.update_kv(keys, queries, keys.clone(), None, case.heads // case.groups)
    return kept_keys(keys, left)


def clusters(code: Any) -> Sets:
    """SnapKV with both poolings, H2O, StreamingLLM, PyramidKV, L2Norm."""
    for name in ("rows-mha", "rows-gqa", "rows-mqa"):
        case = CASES[name]
        for k in (b for b in BUDGETS if b < case.p):
            size = {"window_size": 8, "max_capacity_prompt": k}
            for pool in ("avg", "max"):
                cluster = code.SnapKVCluster(kernel_size=7, pooling=f"{pool}pool", **size)
                yield one_set(
                    case, f"SnapKVCluster, {pool}pool", f"snapkv:window=8,kernel=7,pool={pool}", k,
                    kept(cluster, case),
                )  # fmt: skip
            options = {"pooling": "maxpool", "gqa_score_agg": "max", **size}
            cluster = code.SnapKVCluster(kernel_size=7, **options)
            found, calls = kept(cluster, case), "SnapKVCluster, gqa_score_agg=max"
            yield one_set(case, calls, "snapkv-kvfactory:gqa_score_agg=max", k, found)
            if case.groups < case.heads:
                rule = "snapkv:window=8,kernel=7,pool=max,heads=max"
                yield one_set(case, calls, rule, k, found, differs=ONE_HEAD)
            yield one_set(
                case, "H2OKVCluster", "h2o:recent=8,when=prompt", k,
                kept(code.H2OKVCluster(**size), case),
            )  # fmt: skip
            yield one_set(
                case, "StreamingLLMKVCluster", f"streaming:sinks={k - 8},when=prompt", k,
                kept(code.StreamingLLMKVCluster(**size), case),
            )  # fmt: skip
            for layer in (0, 3):
                cluster = code.PyramidKVCluster(
                    num_hidden_layers=4, layer_idx=layer, kernel_size=5, beta=5, **size
                )
                found = kept(cluster, case)
                yield one_set(case, "PyramidKVCluster", "snapkv:window=8", len(found[0]), found)
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        shown = vectors(case, case.p)
        for k in (b for b in BUDGETS if b < case.p):
            cluster = code.L2NormCluster(max_capacity_prompt=k, layer_idx=5, skip_layers=[])
            left, _ = cluster.update_kv(shown["k"], shown["q"], shown["v"], None, 1)
            yield one_set(
                case, "L2NormCluster", "knorm:when=prompt", k, kept_keys(shown["k"], left)
            )


def selections(package: Any) -> Sets:
    """NACL and Scissorhands without a random part, of each query head."""
    for name in ("rows-mha", "rows-gqa"):
        case = CASES[name]
        rows = attention(case, case.p)
        for k, window, recent, sinks in ((15, 6, 3, 2), (30, 1, 12, 4), (45, 20, 0, 0)):
            proxies = package.nacl.select_nacl_proxy_indices(case.p, proxy_size=min(window, 6))
            found = package.nacl.select_nacl_tokens(
                rows, token_budget=k, proxy_indices=proxies, protected_indices=torch.arange(sinks)
            )
            yield one_set(
                case, "select_nacl_tokens",
                f"nacl:window={len(proxies)},recent={len(proxies)},sinks={sinks},random=0", k,
                found[0].tolist(), share="head",
            )  # fmt: skip
            scores = package.scissorhands.reduce_scissorhands_scores(rows, history_window=window)
            found = package.scissorhands.select_scissorhands_tokens(
                scores, token_budget=k, recent_size=recent, sink_size=sinks
            )
            rule = f"scissorhands:count=mass,drop=one,window={window},recent={recent},sinks={sinks}"
            yield one_set(
                case, "select_scissorhands_tokens", rule + ",when=prompt", k, found[0].tolist(),
                share="head",
            )  # fmt: skip


def pages(quest: Any) -> Sets:
    """What Quest reads: whole pages, and where some are cut."""
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        shown = vectors(case, case.n)
        keys = shown["k"].repeat_interleave(case.heads // case.groups, dim=1)
        for page, budget in ((4, 12), (4, 24), (7, 28), (16, 48)):
            for t in range(case.p - 1, case.n, 3):
                read = quest.select_quest_tokens(
                    shown["q"][:, :, t : t + 1], keys[:, :, : t + 1], page_size=page,
                    token_budget=budget,
                )[0].tolist()  # fmt: skip
                k, earlier = evenly_read(read, t)
                if k:
                    yield one_set(
                        case, "select_quest_tokens", f"quest:page={page}", k, earlier, after=t,
                        share="head", differs=CUT if (t + 1) % page else None,
                    )  # fmt: skip


def sets(root: Path | None) -> Sets:
    """All of them."""
    sys.path.insert(0, str(root))
    import pyramidkv.nacl
    import pyramidkv.pyramidkv_utils
    import pyramidkv.quest
    import pyramidkv.scissorhands

    yield from clusters(pyramidkv.pyramidkv_utils)
    yield from selections(pyramidkv)
    yield from pages(pyramidkv.quest)
