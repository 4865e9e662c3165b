"""KVCache-Factory: its clusters, given queries and keys whose attention is the case's rows."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from cases import CASES, Case
from peers.shown import BUDGETS, Sets, identity_keys, kept_keys, one_set, vectors

SOURCE = "https://github.com/Zefan-Cai/KVCache-Factory, pyramidkv/pyramidkv_utils.py"


def kept(cluster: Any, case: Case) -> list[list[int]]:
    """The prompt's tokens that a cluster keeps."""
    queries, keys = identity_keys(case, case.p)
    left, _ = cluster.update_kv(keys, queries, keys.clone(), None, case.heads // case.groups)
    return kept_keys(keys, left)


def sets(root: Path | None) -> Sets:
    """SnapKV with both poolings, H2O, StreamingLLM, PyramidKV, L2Norm."""
    sys.path.insert(0, str(root))
    from pyramidkv import pyramidkv_utils as code

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
