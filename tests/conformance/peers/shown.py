"""What peers are shown of a case, as torch tensors, and what their answers mean."""

from __future__ import annotations

import ast
import math
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import Case

BUDGETS = (15, 30, 45)


def attention(case: Case, n: int) -> torch.Tensor:
    """The first n rows, float64 [1, heads, n, n]."""
    return torch.tensor(case.rows[None, :, :n, :n].astype(np.float64))


def identity_keys(case: Case, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Float32 queries [1, heads, n, n] and keys [1, groups, n, n] that attend as the rows say.

    Keys are the unit vectors, so that a query is its row's logarithms.
    """
    rows = attention(case, n)
    logits = torch.where(rows > 0, rows.clamp_min(1e-12).log(), -1e4)
    keys = torch.eye(n, dtype=torch.float64).expand(1, case.groups, n, n)
    return (logits * math.sqrt(n)).float(), keys.contiguous().float()


def projections(case: Case) -> dict[str, Any]:
    """The projections of an attention layer that attends as a case says, keys for each head.

    Its hidden states are the tokens' positions, [1, tokens, 1]. A head of a case of rows is n wide.
    """
    if case.kind == "rows":
        queries, keys = identity_keys(case, case.n)
        values = keys
    else:
        queries, keys, values = (vectors(case, case.n)[name].float() for name in "qkv")
    keys, values = (x.repeat_interleave(case.heads // case.groups, dim=1) for x in (keys, values))

    def project(x: torch.Tensor) -> Any:
        return lambda hidden: x[:, :, hidden[0, :, 0].long()].transpose(1, 2).flatten(2)

    return {
        "q_proj": project(queries), "k_proj": project(keys), "v_proj": project(values),
        "o_proj": lambda output: output,
    }  # fmt: skip


def attention_layer(made: Any, case: Case, **attributes: Any) -> Any:
    """A peer's attention module of a case's heads, made without its own constructor."""
    module = made.__new__(made)
    torch.nn.Module.__init__(module)
    width = case.n if case.kind == "rows" else case.d
    sizes = {"num_heads": case.heads, "head_dim": width, "hidden_size": case.heads * width}
    unrotated = {"rotary_emb": lambda *_, **__: (None, None)}
    for name, value in (sizes | projections(case) | unrotated | attributes).items():
        setattr(module, name, value)
    return module


def masked_layer(file: Path, **namespace: Any) -> Any:
    """The class of H2O's masked attention in a file, without a rotation of queries and keys."""
    name = "LlamaAttention_heavy_hitter"
    unrotated = {"apply_rotary_pos_emb": lambda q, k, *_: (q, k)}
    outside = dict.fromkeys(("LlamaConfig", "LlamaRotaryEmbedding"), object)
    return parts_of(file, [name], **unrotated, **outside, **namespace)[name]


def masked_steps(module: Any, p: int, stop: int) -> Iterator[tuple[int, list[list[int]]]]:
    """What each head of H2O's masked attention holds after each step: what still has a score."""
    module._reset_masks()
    pair = None
    for t in range(p - 1, stop):
        start = t if t >= p else 0
        hidden, mask = positions(start, t + 1), causal(start, t + 1)
        _, _, pair = module(hidden, mask, None, pair, use_cache=True)
        yield t, [one.nonzero()[:, 0].tolist() for one in module.previous_scores]


def positions(start: int, stop: int) -> torch.Tensor:
    """Hidden states of the tokens from start to before stop: [1, tokens, 1]."""
    return torch.arange(start, stop, dtype=torch.float32)[None, :, None]


def causal(start: int, stop: int) -> torch.Tensor:
    """What is added to logits of rows start to before stop: 0, or the least float32 ahead."""
    ahead = torch.arange(stop)[None] > torch.arange(start, stop)[:, None]
    return torch.zeros(ahead.shape).masked_fill(ahead, torch.finfo(torch.float32).min)[None, None]


def vectors(case: Case, n: int) -> dict[str, torch.Tensor]:
    """q, k and v of the first n tokens, float64 [1, heads or groups, n, d], and w_o."""
    found = {name: torch.tensor(x.astype(np.float64)) for name, x in case.vectors.items()}
    return {name: x if name == "w_o" else x[None, :, :n] for name, x in found.items()}


def softmax(case: Case, n: int | None = None) -> torch.Tensor:
    """The attention of a case's vectors, float64 [1, heads, n, n]; n: the prompt's, else."""
    shown = vectors(case, n or case.p)
    keys = shown["k"].repeat_interleave(case.heads // case.groups, dim=1)
    logits = shown["q"] @ keys.transpose(2, 3) / math.sqrt(case.d)
    ahead = torch.ones(logits.shape[-2:], dtype=torch.bool).triu(1)
    return logits.masked_fill(ahead, -torch.inf).softmax(dim=-1)


def evenly_read(read: Sequence[Sequence[int]], t: int) -> tuple[int, list[list[int]]]:
    """Of what each head reads in step t the earlier tokens, and their number; 0: not one number.

    Pages count the newest token too, where h2osim's budget is of the earlier ones.
    """
    earlier = [[j for j in one if j < t] for one in read]
    sizes = {len(one) for one in earlier}
    return (sizes.pop() if len(sizes) == 1 else 0), earlier


def kept_keys(before: torch.Tensor, after: torch.Tensor) -> list[list[int]]:
    """Which tokens' keys are left in each head of [1, heads, tokens, d]."""
    found = []
    for old, new in zip(before[0], after[0], strict=True):
        same = (old[None] == new[:, None]).all(dim=-1)
        assert (same.sum(dim=1) == 1).all(), "a key is not of one token"
        found.append(sorted(same.int().argmax(dim=1).tolist()))
    return found


def one_set(
    case: Case,
    calls: str,
    policy: str,
    budget: int,
    kept: Sequence[Sequence[int]],
    *,
    after: int | None = None,
    p: int | None = None,
    n: int | None = None,
    share: str = "group",
    differs: str | None = None,
) -> dict[str, Any]:
    """A line of the data: what each unit holds after step ``after`` (the prompt's last, else).

    n: the tokens of the text, for rules that look ahead; differs: why h2osim does not keep these.
    """
    start = case.p if p is None else p
    found = {
        "case": case.name, "calls": calls, "policy": policy, "share": share, "budget": budget,
        "p": start, "after": start - 1 if after is None else after,
        "kept": [sorted(map(int, one)) for one in kept],
    }  # fmt: skip
    more = {"n": n, "differs": differs}
    return found | {name: value for name, value in more.items() if value is not None}


Sets = Iterator[dict[str, Any]]


def newest_of_equals() -> None:
    """Let torch's top-k and sort take the newest of equal scores, which it leaves open.

    Pooling by maximum gives neighbours the same score; without this two runs may differ.
    """

    def topk(x: torch.Tensor, k: int, dim: int = -1, largest: bool = True, **_: Any) -> Any:
        order = torch.sort(x.flip(dim), dim=dim, descending=largest, stable=True)
        places = x.shape[dim] - 1 - order.indices.narrow(dim, 0, k)
        return torch.return_types.topk((order.values.narrow(dim, 0, k), places))

    torch.topk = topk
    torch.Tensor.topk = topk


def parts_of(file: Path, names: Sequence[str], **namespace: Any) -> dict[str, Any]:
    """Some classes and functions of a peer's file, without what the file imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if getattr(node, "name", None) in names]
    space = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional, "math": math} | vars(typing)
    space |= namespace
    exec(compile(tree, str(file), "exec", dont_inherit=True), space)
    return space


def cached(case: Case, t: int, held: Sequence[Sequence[int]]) -> torch.Tensor:
    """Row t over what each group holds and t itself, renormalised: float64 [1, heads, 1, held]."""
    row = attention(case, case.n)[0, :, t]
    group = case.heads // case.groups
    parts = [row[h, held[h // group]] for h in range(case.heads)]
    return torch.stack([part / part.sum() for part in parts])[None, :, None]
