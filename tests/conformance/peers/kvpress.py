"""kvpress: every press is called as its hook calls it, on one layer's tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvpress
import torch
from cases import BASE, CASES, Case
from peers.shown import BUDGETS, Sets, attention, kept_keys, one_set, softmax, vectors

SOURCE = "kvpress, https://pypi.org/project/kvpress"


IN_ORDER = "it stores tokens in the order of their scores, and takes the first of those for sinks"


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
    hidden = torch.zeros(1, case.p, case.heads)
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


def wrapped(case: Case) -> Sets:
    """Presses around another one: which tokens stay is the inner press's choice, or block by block.

    BlockPress starts from the first k tokens, as a prompt of k tokens does here.
    """
    inner = ((kvpress.KnormPress, "knorm"), (kvpress.KeyDiffPress, "keydiff"))
    for k in BUDGETS:
        ratio = removed(k, case)
        for made, rule in inner:
            for block in (1, 5):
                press = kvpress.BlockPress(made(ratio), block)
                yield one_set(
                    case, f"BlockPress({made.__name__})", f"{rule}:when=every:{block}", k,
                    compressed(press, case, None), p=k, after=case.p - 1,
                )  # fmt: skip
            yield one_set(
                case, f"MergingPress({made.__name__})", f"{rule}:when=prompt", k,
                compressed(kvpress.MergingPress(made(ratio)), case, None),
            )  # fmt: skip


def decoding(case: Case) -> Sets:
    """Presses that act every few steps of decoding, after one that compresses the prompt."""
    shown = vectors(case, case.n)
    rules = (
        (kvpress.KnormPress(), "knorm:when=every:{every}", None),
        (kvpress.KeyDiffPress(), "keydiff:when=every:{every}", None),
        (kvpress.StreamingLLMPress(n_sink=4), "streaming:sinks=4,when=every:{every}", IN_ORDER),
    )
    for base, rule, differs in rules:
        for every, k in ((1, 15), (4, 30), (5, 45)):
            press = kvpress.DecodingPress(base, every, k)
            keys = shown["k"][:, :, : case.p]
            for t in range(case.p - 1, case.n - 2):
                if t >= case.p:
                    keys = torch.cat([keys, shown["k"][:, :, t : t + 1]], dim=2)
                if (t - case.p + 1) % every:
                    continue
                hidden = torch.zeros(1, keys.shape[2], 1)
                keys, _ = press.compress(layer(case, case.d), hidden, keys, keys, None, {})
                if t - case.p + 1 in (0, every, 3 * every):
                    yield one_set(
                        case, f"DecodingPress({type(base).__name__})", rule.format(every=every), k,
                        kept_keys(shown["k"], keys), after=t,
                        differs=differs if t >= case.p else None,
                    )  # fmt: skip


def expecting(case: Case) -> Sets:
    """ExpectedAttention, whose queries before RoPE are looked up by the tokens' positions."""
    plain = vectors(case, case.n)["q_plain"]
    angles = BASE ** (-torch.arange(case.d // 2, dtype=torch.float64) / (case.d // 2))

    def rotary(_: Any, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        turned = (places[..., None] * angles).repeat(1, 1, 2)
        return turned.cos(), turned.sin()

    module = layer(case, case.d)
    module.rotary_emb = rotary
    module.q_proj = lambda hidden: plain[:, :, hidden[0, :, 0].long()].transpose(1, 2).flatten(2)
    shown = vectors(case, case.p)
    for ahead, sinks, covariance, norms, epsilon in (
        (512, 4, True, True, 0.0), (16, 0, True, False, 0.0), (64, 2, False, True, 0.02),
    ):  # fmt: skip
        rule = f"expected-attention:n_future_positions={ahead},sinks={sinks}"
        rule += f",use_covariance={int(covariance)},use_vnorm={int(norms)},epsilon={epsilon}"
        for k in BUDGETS:
            press = kvpress.ExpectedAttentionPress(
                removed(k, case), ahead, sinks, covariance, norms, epsilon
            )
            left, _ = press.compress(
                module, torch.arange(case.p)[None, :, None], shown["k"], shown["v"], None, {}
            )
            yield one_set(case, "ExpectedAttentionPress", rule, k, kept_keys(shown["k"], left))


def asking(case: Case) -> Sets:
    """Finch without its weights of rows, chunks and rotation; the question is the window."""
    for window, k in ((4, 15), (8, 30), (20, 45)):
        press = kvpress.FinchPress(removed(k, case), None, False, False)
        press.window_size = window
        found = compressed(press, case, attention(case, case.p))
        yield one_set(case, "FinchPress", f"snapkv:window={window},kernel=1", k, found)


def sets(root: Path | None) -> Sets:
    """All sets."""
    for name in ("vectors-mha", "vectors-gqa"):
        yield from looking(CASES[name])
        yield from wrapped(CASES[name])
        yield from decoding(CASES[name])
    for name in ("rows-mha", "rows-gqa", "rows-mqa"):
        yield from attending(CASES[name])
        yield from chunks(CASES[name])
    for name in ("rows-mha", "rows-gqa"):
        yield from asking(CASES[name])
    for name in ("turned-mha", "turned-gqa"):
        yield from expecting(CASES[name])
