"""R-KV: attention and redundancy, at the prompt's end and every few steps after it."""

from __future__ import annotations

from pathlib import Path

import torch
from cases import CASES
from peers.shown import Sets, kept_keys, one_set, parts_of, vectors

SOURCE = "https://github.com/Zefan-Cai/R-KV, rkv/compression/r1_kv.py"


ELSEWHERE = "it normalises attention over the keys before the window alone"


def redundant(root: Path) -> Sets:
    """R-KV at the prompt's end, and three evictions while decoding."""
    tools = parts_of(root / "rkv/utils.py", ["compute_attention_scores", "cal_similarity"])
    made = parts_of(
        root / "rkv/compression/r1_kv.py", ["R1KV"],
        cal_similarity=tools["cal_similarity"],
        compute_attention_scores=tools["compute_attention_scores"],
    )["R1KV"]  # fmt: skip
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        shown = vectors(case, case.n)
        for window, kernel, mix, every in ((8, 7, 0.07, 6), (4, 5, 0.5, 5), (6, 1, 0.93, 6)):
            for k in (15, 30, 45):
                cluster = made(k, window, kernel, mix)
                keys = shown["k"][:, :, : case.p]
                for t in range(case.p - 1, case.p + 3 * every):
                    if t >= case.p:
                        keys = torch.cat([keys, shown["k"][:, :, t : t + 1]], dim=2)
                    if (t - case.p + 1) % every:
                        continue
                    asked = shown["q"][:, :, t + 1 - window : t + 1]
                    keys, _ = cluster.update_kv(keys, asked, keys.clone())
                    left = kept_keys(shown["k"], keys)
                    # It leaves tokens in the order of their scores; they go back into the text's.
                    keys = torch.stack([shown["k"][0, g, one] for g, one in enumerate(left)])[None]
                    yield one_set(
                        case, "R1KV",
                        f"rkv:window={window},kernel={kernel},mix={mix:g},when=every:{every}", k,
                        left, after=t,
                    )  # fmt: skip


def others(root: Path) -> Sets:
    """Its StreamingLLM and SnapKV, for the prompt."""
    name = "compute_attention_scores"
    scores = {name: parts_of(root / "rkv/utils.py", [name])[name]}
    streaming = parts_of(root / "rkv/compression/streamingllm.py", ["StreamingLLM"])["StreamingLLM"]
    snap = parts_of(root / "rkv/compression/snapkv.py", ["SnapKV"], **scores)["SnapKV"]
    for name in ("vectors-mha", "vectors-gqa"):
        case = CASES[name]
        shown = vectors(case, case.p)
        for k in (15, 30, 45):
            for made, rule, differs in (
                (streaming(k, 4), "streaming:sinks=4,when=prompt", None),
                (snap(k, 8, 7), "snapkv:window=8,kernel=7,pool=max", ELSEWHERE),
            ):
                left, _ = made.update_kv(shown["k"], shown["q"], shown["v"])
                yield one_set(
                    case, type(made).__name__, rule, k, kept_keys(shown["k"], left), differs=differs
                )


def sets(root: Path | None) -> Sets:
    """All of them."""
    assert root is not None
    yield from redundant(root)
    yield from others(root)
