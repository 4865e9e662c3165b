"""An honest decoder that goes token by token and drops keys and values, and models for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import h2osim
from h2osim.attention.triangle import tri
from h2osim.engines import naive
from h2osim.engines.request import Job
from h2osim.policies.roles import arguments
from h2osim.policies.text import parse
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

torch = pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
transformers = pytest.importorskip(
    "transformers", reason="a running model needs the extra `record` (transformers)"
)

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from h2osim.models.rotary import PlainQueries  # noqa: E402

torch.set_num_threads(1)


N, P = 34, 9
SIZES: dict[str, Any] = dict(
    vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, head_dim=12,
    max_position_embeddings=128, initializer_range=0.7,
)  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mha": ("Llama", "Llama", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "gqa": ("Llama", "Llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mqa": ("Llama", "Llama", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "window": (
        "Mistral",
        "Mistral",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 13},
    ),
    "softcap": (
        "Gemma2",
        "Gemma2",
        {
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 11,
            "attn_logit_softcapping": 4.0, "query_pre_attn_scalar": 12,
        },
    ),
    "sinks": (
        "GptOss",
        "GptOss",
        {
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 11,
            "num_local_experts": 2, "num_experts_per_tok": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}  # fmt: skip


def make(name: str, double: bool = True) -> Any:
    """A small randomly initialised model with peaked attention."""
    config_name, model_name, more = MODELS[name]
    config = getattr(transformers, f"{config_name}Config")(**{**SIZES, **more})
    torch.manual_seed(3)
    model = getattr(transformers, f"{model_name}ForCausalLM")(config).eval()
    if name == "sinks":
        model.set_experts_implementation("eager")  # the other has no float64
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks, 0, 2)
    return model.double() if double else model.float()


def tokens(seed: int = 1, n: int = N) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 61, n)]


class Honest:
    """Decodes token by token; the model keeps no cache, each layer's own does, and it really drops.

    observed: every row over all tokens, from keys set aside for the policy to look at and never
    attended; the policy is the naive engine, run anew over the rows so far.
    """

    def __init__(self, model: Any, text: str, budget: int, prompt_len: int, n: int, share: str):
        self.model, self.configured, self.share = model, parse(text), share
        self.budget, self.prompt_len, self.n = budget, prompt_len, n
        self.caches: dict[int, list[list[int]]] = {}
        self.store: dict[int, dict[int, tuple[Any, Any]]] = {}
        self.queries: dict[int, list[tuple[Any, Any]]] = {}  # after RoPE and before
        self.plain = PlainQueries()
        self.rows: dict[int, list[Any]] = {}
        self.left: dict[tuple[int, int, int], int] = {}
        self.t = 0

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any
    ) -> tuple[Any, None]:
        layer, t = module.layer_idx, self.t
        q, k, v = query[0, :, -1], key[0, :, -1], value[0, :, -1]
        heads, kv_heads = q.shape[0], k.shape[0]
        units = {"group": kv_heads, "head": heads, "layer": 1}[self.share]
        caches = self.caches.setdefault(layer, [[] for _ in range(units)])
        store = self.store.setdefault(layer, {})
        store[t] = (k, v)
        before = self.plain._last  # None in models that turn theirs in a way of their own
        plain = q if before is None else before[0, :, -1]
        self.queries.setdefault(layer, []).append((q, plain))
        scale = more.get("scaling") or q.shape[1] ** -0.5
        window = more.get("sliding_window") or self.n
        everything = range(max(0, t - window + 1), t + 1)
        full = np.zeros((heads, t + 1))
        output = q.new_zeros(heads, v.shape[1])
        for cache in caches:
            cache.append(t)
        for h in range(heads):
            g = h * kv_heads // heads

            def softmax(tokens: list[int], h: int = h, g: int = g) -> Any:
                x = torch.stack([store[j][0][g] for j in tokens]) @ q[h] * scale
                cap, sinks = more.get("softcap"), more.get("s_aux")
                x = torch.tanh(x / cap) * cap if cap else x
                if sinks is None:
                    return torch.softmax(x, dim=0)
                return torch.softmax(torch.cat([x, sinks[h : h + 1].to(x.dtype)]), dim=0)[:-1]

            full[h, list(everything)] = softmax(list(everything)).numpy()
            attended = [j for j in self.attended(layer, h * units // heads, t) if j in everything]
            values = torch.stack([store[j][1][g] for j in attended])
            output[h] = softmax(attended) @ values
        self.rows.setdefault(layer, []).append(full)
        if t >= self.prompt_len - 1:
            self.evict(layer, t, heads, heads // kv_heads)
        return output[None, None], None

    def attended(self, layer: int, unit: int, t: int) -> list[int]:
        rule, found = self.configured.policy.visible, self.caches[layer][unit]
        if rule is None or t < self.prompt_len:
            return found
        values = {**self.configured.numbers(self.budget), "k": self.budget, "p": self.prompt_len}
        names = arguments(rule)
        known = [{**values, "t": t, "pos": j, "age": t - j} for j in found]
        return [j for j, one in zip(found, known, strict=True) if rule(*[one[n] for n in names])]

    def evict(self, layer: int, t: int, heads: int, group: int) -> None:
        bits = np.zeros((1, heads, tri(t + 2)), np.uint16)
        for row, full in enumerate(self.rows[layer]):
            bits[0, :, tri(row) : tri(row + 1)] = full.astype(np.float16).view(np.uint16)
        bits[0, :, tri(t + 1)] = 0x3C00  # a row more, so that the engine decodes one; never read
        sizes = [v.abs().sum(1).numpy() for _, v in self.store[layer].values()]
        norms = np.stack([*sizes, np.ones(heads // group)], axis=1)
        trace = Trace.from_packed(bits, group_size=group, v_norm1=norms)
        projection = self.model.model.layers[layer].self_attn.o_proj.weight
        trace._arrays[0] |= {
            "k": beside([k for k, _ in self.store[layer].values()]),
            "v": beside([v for _, v in self.store[layer].values()]),
            "q": beside([q for q, _ in self.queries[layer]]),
            "q_plain": beside([q for _, q in self.queries[layer]]),
            "w_o": projection.T.reshape(heads, -1, projection.shape[0]).float().numpy(),
        }
        for u, unit in enumerate(trace.units(self.share)):
            job = Job(unit, self.configured, self.budget, min(self.prompt_len, t + 1))
            gone, cache = naive.run(job).evicted_at, self.caches[layer][u]
            self.left |= {(layer, u, j): t for j in cache if gone[j] <= t}
            cache[:] = [j for j in cache if gone[j] > t]

    def run(self, ids: list[int]) -> Any:
        """Log-probabilities after each decode step."""
        AttentionInterface.register("honest", self.attend)
        AttentionMaskInterface.register("honest", sdpa_mask)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("honest")
        found = []
        with torch.no_grad(), self.plain.watching(self.model):
            for self.t, token in enumerate(ids):
                result = self.model(
                    input_ids=torch.tensor([[token]]),
                    position_ids=torch.tensor([[self.t]]),
                    use_cache=False,
                )
                found.append(torch.log_softmax(result.logits[0, -1], dim=0))
        self.model.set_attn_implementation(before)
        return torch.stack(found[self.prompt_len :])


def beside(rows: list[Any]) -> Any:
    """Vectors [heads, d] of tokens as float32 [heads, tokens + 1, d], the last one never read."""
    return torch.stack([*rows, torch.zeros_like(rows[0])], dim=1).float().numpy()


def left(found: dict[int, Any]) -> dict[tuple[int, int, int], int]:
    """The step after which each evicted token is gone: by layer, unit and token."""
    return {
        (layer, u, j): int(t)
        for layer, here in found.items()
        for u, gone in enumerate(here.evicted_at)
        for j, t in enumerate(gone)
        if t < N
    }


def refused(*arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        h2osim.evaluate(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


class Letters:
    """A tokenizer that needs no vocabulary file."""

    def __call__(self, text: str, **more: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 61 for c in text]}
