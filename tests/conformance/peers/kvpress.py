"""kvpress: every press is called as its hook calls it, on one layer's tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvpress
import torch
from cases import CASES, Case
from peers.shown import BUDGETS, Sets, attention, kept_keys, one_set, softmax, vectors

SOURCE = "kvpress, https://pypi.org/project/kvpress"


def removed(k: int, case: Case) -> float:
    """The ratio at which k tokens stay, whatever floats make of it."""
    return 1 - (k + 1e-6) / case.p


def layer(case: Case, width: int) -> Any:
    """What a press reads of an attention layer."""
    config = SimpleNamespace(
        num_attention_heads=case.heads, num_key_value_heads=case.groups, head_dim=width,
        num_hidden_layers=1, hidden_size=case.heads * width, _attn_implementation="eager",
    )  # fmt: skip
    weight = vectors(case, 1)["w_o"].reshape(-1, config.hidden_size).T
    return SimpleNamespace(
        config=config, head_dim=width, layer_idx=0, o_proj=SimpleNamespace(weight=weight),
        num_key_value_groups=case.heads // case.groups,
    )  # fmt: skip


def compressed(press: Any, case: Case, rows: torch.Tensor | None) -> list[list[int]]:
    """The tokens that a press keeps of the prompt."""
    shown = vectors(case, case.p)
    keys, values = shown["k"], shown["v"]
    hidden = torch.zeros(1, case.p, 1)
    left, _ = press.compress(layer(case, case.d), hidden, keys, values, rows, {})
    return kept_keys(keys, left)


def attending(case: Case) -> Sets:
    """Presses that look at attention."""
    rows = attention(case, case.p)
    for k in BUDGETS:
        if k >= case.p:
            continue
        ratio = removed(k, case)
        for window, kernel in ((8, 5), (8, 7), (12, 1)):
            press = kvpress.SnapKVPress(ratio, window, kernel)
            yield one_set(
                case, "SnapKVPress", f"snapkv:window={window},kernel={kernel}", k,
                compressed(press, case, rows),
            )  # fmt: skip
        press = kvpress.ObservedAttentionPress(ratio)
        yield one_set(
            case, "ObservedAttentionPress", "h2o-mean:recent=0,when=prompt", k,
            compressed(press, case, rows),
        )  # fmt: skip
        for press in (kvpress.StreamingLLMPress(ratio, 4), kvpress.StreamingLLMPress(ratio, 1)):
            yield one_set(
                case, "StreamingLLMPress", f"streaming:sinks={press.n_sink},when=prompt", k,
                compressed(press, case, rows),
            )  # fmt: skip
        press = kvpress.TOVAPress(ratio)
        yield one_set(
            case, "TOVAPress", "tova-kvpress", k, compressed(press, case, rows)[:1], share="layer"
        )  # fmt: skip
    for k in (20, 35):
        press = kvpress.PyramidKVPress(removed(k, case), 8, 5, 20)
        press.get_layer_budget = lambda module, q_len, k=k: k  # the split itself is not a policy's
        yield one_set(case, "PyramidKVPress", "snapkv:window=8", k, compressed(press, case, rows))


def chunks(case: Case) -> Sets:
    """ChunkKV scores by SnapKV; it refuses attention, so the inner press is given it here."""
    rows = attention(case, case.p)

    class Snap(kvpress.SnapKVPress):
        def score(self, module: Any, hidden: Any, keys: Any, values: Any, _: Any, more: Any) -> Any:
            return super().score(module, hidden, keys, values, rows, more)

    for length in (4, 7):
        for k in BUDGETS:
            if k >= case.p:
                continue
            press = kvpress.ChunkKVPress(Snap(removed(k, case), 8, 5), length)
            yield one_set(
                case, "ChunkKVPress(SnapKVPress)", f"chunkkv:chunk={length},window=8", k,
                compressed(press, case, None)[:1], share="layer",
            )  # fmt: skip


def looking(case: Case) -> Sets:
    """Presses that look at keys, values and the output projection."""
    for k in BUDGETS:
        ratio = removed(k, case)
        for calls, press, policy in (
            ("KnormPress", kvpress.KnormPress(ratio), "knorm:when=prompt"),
            ("KeyDiffPress", kvpress.KeyDiffPress(ratio), "keydiff:when=prompt"),
            ("LagKVPress", kvpress.LagKVPress(ratio, 4, 7), "lagkv:lag=7,sinks=4"),
            ("LagKVPress", kvpress.LagKVPress(ratio, 2, 16), "lagkv:lag=16,sinks=2"),
            ("LagKVPress", kvpress.LagKVPress(ratio, 4, 40), "lagkv:lag=40,sinks=4"),
        ):
            yield one_set(case, calls, policy, k, compressed(press, case, None))
        rows = softmax(case)
        for first in (0.5, 0.0, 1.0):
            press = kvpress.CriticalKVPress(kvpress.SnapKVPress(ratio, 8, 5), 1e-4, first)
            yield one_set(
                case, "CriticalKVPress(SnapKVPress)", f"criticalkv:window=8,first={first:g}", k,
                compressed(press, case, rows),
            )  # fmt: skip


def sets(root: Path | None) -> Sets:
    """All sets."""
    for name in ("vectors-mha", "vectors-gqa"):
        yield from looking(CASES[name])
    for name in ("rows-mha", "rows-gqa", "rows-mqa"):
        yield from attending(CASES[name])
        yield from chunks(CASES[name])
