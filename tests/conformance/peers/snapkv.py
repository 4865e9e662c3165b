"""SnapKV's own code, which has a cache for each query head."""

from __future__ import annotations

from pathlib import Path

from cases import CASES
from peers.shown import BUDGETS, Sets, identity_keys, kept_keys, one_set, parts_of

SOURCE = "https://github.com/FasterDecoding/SnapKV, snapkv/monkeypatch/snapkv_utils.py"


def sets(root: Path | None) -> Sets:
    """Both poolings, several windows."""
    assert root is not None
    file = root / "snapkv/monkeypatch/snapkv_utils.py"
    made = parts_of(file, ["SnapKVCluster", "repeat_kv"])["SnapKVCluster"]
    case = CASES["rows-mha"]
    queries, keys = identity_keys(case, case.p)
    for window, kernel in ((8, 5), (12, 7), (4, 1)):
        for pool in ("avg", "max"):
            for k in BUDGETS:
                cluster = made(window, k, kernel, f"{pool}pool")
                left, _ = cluster.update_kv(keys, queries, keys.clone(), None, 1)
                yield one_set(
                    case, f"SnapKVCluster, {pool}pool",
                    f"snapkv:window={window},kernel={kernel},pool={pool}", k, kept_keys(keys, left),
                )  # fmt: skip
