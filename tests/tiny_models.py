"""Tiny models of transformers with random weights, and what their own attention is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from h2osim.attention.triangle import unpack
from h2osim.traces.trace import Trace

torch = pytest.importorskip("torch", reason="recording needs the extra `record` (torch)")
transformers = pytest.importorskip(
    "transformers", reason="recording needs the extra `record` (transformers)"
)

# Small models gain nothing from more, and lose much where other processes want the cores.
torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 8}
SCALED = {**GEMMA, "query_pre_attn_scalar": 8}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

# family -> (class of its configuration, arguments)
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "llama-mha": ("LlamaConfig", SMALL),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 16}),
    "mistral-window": ("MistralConfig", {**GROUPED, "sliding_window": 8}),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 2}),
    "gemma": ("GemmaConfig", GEMMA),
    "gemma2-softcap-window": (
        "Gemma2Config",
        {**SCALED, "sliding_window": 8, "attn_logit_softcapping": 2.0, "layer_types": SLIDING},
    ),
    "gemma3-window": ("Gemma3TextConfig", {**SCALED, "sliding_window": 8, "layer_types": SLIDING}),
    "gpt-neox": ("GPTNeoXConfig", SMALL),
    "opt": (
        "OPTConfig",
        {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    ),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
         "bos_token_id": 0, "eos_token_id": 1, "scale_attn_by_inverse_layer_idx": True},
    ),
    "phi3": ("Phi3Config", GROUPED),
    "stablelm": ("StableLmConfig", GROUPED),
    "olmo2": ("Olmo2Config", GROUPED),
    "cohere": ("CohereConfig", GROUPED),
}  # fmt: skip

N = 24
NOISE = 5e-6
"""Float32 noise allowed between two ways to compute the same softmax, beside the rounding."""


def make(config_class: str, arguments: dict[str, Any]) -> Any:
    """A tiny model with random weights, large enough for attention that is not uniform."""
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)
    return model


def family(name: str) -> Any:
    return make(*FAMILIES[name])


def tokens(n: int = N, seed: int = 0) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(3, 64, n)]


def squares(trace: Trace, layer: int) -> Any:
    """Rows of all recorded heads of a layer, float64 [heads, n, n]."""
    (unit,) = (u for u in trace.units("layer") if u.layer == layer)
    return np.stack([unpack(row).view(np.float16) for row in unit.all_bits()]).astype(np.float64)


def reference(model: Any, ids: list[int]) -> list[Any]:
    """The model's own probabilities of each layer, float64 [heads, n, n]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # falcon's code is not asked by the line above
    with torch.no_grad():
        result = model(torch.tensor([ids]), output_attentions=True, use_cache=False)
    model.set_attn_implementation(before)
    model.config._attn_implementation = before
    return [layer[0].double().numpy() for layer in result.attentions]


def half_ulp(p: Any) -> Any:
    """The most that rounding p in [0, 1] to float16 changes it."""
    return np.maximum(p * 2.0**-11, 2.0**-25)
