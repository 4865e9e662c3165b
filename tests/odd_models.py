"""Small models that a recorder easily gets wrong, and checks of what is recorded of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from tiny_models import (
    GEMMA,
    GROUPED,
    NOISE,
    SLIDING,
    SMALL,
    half_ulp,
    make,
    reference,
    squares,
    torch,
    transformers,
)

from h2osim import open_trace
from h2osim.models import loading

MLA = {
    **SMALL, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 4,
}  # fmt: skip
MOE = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SPARSE = {
    **MLA, **MOE, "n_group": 1, "topk_group": 1, "index_topk": 4, "index_n_heads": 2,
    "index_head_dim": 16, "num_hidden_layers": 2,
}  # fmt: skip
HYBRID_TYPES = ["linear_attention", "full_attention", "full_attention"]
MAMBA = {
    "vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4,
    "attention_head_dim": 16, "intermediate_size": 48, "n_mamba_heads": 2, "mamba_d_state": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
PER_LAYER = {
    **GEMMA, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 64,
}  # fmt: skip
# name -> (class of the configuration, arguments)
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "llama4": (
        "Llama4TextConfig",
        {**GEMMA, "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48,
         "no_rope_layers": [1, 1, 0]},
    ),
    "gemma4": ("Gemma4TextConfig", {**PER_LAYER, "global_head_dim": 8}),
    "gemma3n": (
        "Gemma3nTextConfig",
        {**PER_LAYER, "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 4},
    ),
    "jetmoe": (
        "JetMoeConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_key_value_heads": 2,
         "kv_channels": 8, "intermediate_size": 48, "num_local_experts": 4,
         "num_experts_per_tok": 3, "max_position_embeddings": 64},
    ),
    "zamba": (
        "ZambaConfig",
        {**MAMBA, "num_hidden_layers": 8, "attn_layer_period": 3, "attn_layer_offset": 2,
         "mamba_dt_rank": 4},
    ),
    "zamba2": (
        "Zamba2Config",
        {**MAMBA, "num_hidden_layers": 6, "mamba_ngroups": 1, "mamba_expand": 2,
         "mamba_headdim": 32, "layers_block_type": ["mamba", "hybrid"] * 3, "num_mem_blocks": 2,
         "chunk_size": 8},
    ),
    "deepseek_v2": ("DeepseekV2Config", {**MLA, **MOE, "q_lora_rank": None}),
    "deepseek_v3": ("DeepseekV3Config", {**MLA, **MOE, "n_group": 2, "topk_group": 1}),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", {**MLA, **MOE, "n_group": 1, "topk_group": 1}),
    "minicpm3": ("MiniCPM3Config", MLA),
    "axk1": ("AXK1Config", {**MLA, **MOE, "n_group": 1, "topk_group": 1}),
    "longcat_flash": (
        "LongcatFlashConfig",
        {**MLA, "num_layers": 2, "ffn_hidden_size": 32, "expert_ffn_hidden_size": 16,
         "moe_topk": 2, "n_routed_experts": 4, "zero_expert_num": 2, "head_dim": 8},
    ),
    "kimi_linear": ("KimiLinearConfig", {**MLA, "layer_types": HYBRID_TYPES}),
    "bailing_hybrid": ("BailingHybridConfig", {**MLA, "layer_types": HYBRID_TYPES}),
}  # fmt: skip
SINKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_oss": (
        "GptOssConfig",
        {**GEMMA, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8,
         "layer_types": SLIDING},
    ),
    "granite_swa": ("GraniteSWAConfig", {**GEMMA, "sliding_window": 8, "layer_types": SLIDING}),
    "granitemoe_swa": (
        "GraniteMoeSWAConfig",
        {**GEMMA, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8,
         "layer_types": SLIDING},
    ),
    "flint": ("FlintConfig", GEMMA),
    "deepseek_v4": ("DeepseekV4Config", GEMMA),
}  # fmt: skip
OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"vocab_size": 64, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "falcon-40b": (
        "FalconConfig", {**SMALL, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
         "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 64},
    ),
    "deepseek_v32": ("DeepseekV32Config", SPARSE),
    "doge": ("DogeConfig", {**GROUPED, "keep_window_size": 4}),
    "falcon-7b": ("FalconConfig", SMALL),
    "falcon-rw": ("FalconConfig", {**SMALL, "alibi": True, "multi_query": False}),
    "mpt": (
        "MptConfig",
        {"vocab_size": 64, "d_model": 32, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
    ),
    "gpt_neox_japanese": ("GPTNeoXJapaneseConfig", {**SMALL, "intermediate_multiple_size": 1}),
    "rembert": ("RemBertConfig", {**SMALL, "input_embedding_size": 32, "is_decoder": True}),
    "roformer": ("RoFormerConfig", {**SMALL, "is_decoder": True}),
    "xglm": (
        "XGLMConfig",
        {"vocab_size": 64, "d_model": 32, "num_layers": 3, "attention_heads": 4, "ffn_dim": 48,
         "max_position_embeddings": 64},
    ),
    "inkling": (
        "InklingTextConfig",
        {**GEMMA, **MOE, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2,
         "swa_head_dim": 8, "d_rel": 8, "rel_extent": 16, "sliding_window_size": 8,
         "layer_types": ["hybrid_sliding", "hybrid", "hybrid_sliding"], "n_shared_experts": 1},
    ),
    "diffllama": ("DiffLlamaConfig", GROUPED),
    "glm_moe_dsa": ("GlmMoeDsaConfig", SPARSE),
    "hy_v4": ("HYV4Config", SPARSE),
}  # fmt: skip
"""Models whose attention the hook does not know: what they return themselves is recorded."""
LATENT = [name for name in ODD if ODD[name][1].get("kv_lora_rank")]


def odd(name: str) -> Any:
    config_class, arguments = (ODD | SINKS | OWN)[name]
    if not hasattr(transformers, config_class):
        pytest.skip(f"transformers {transformers.__version__} has no {config_class}")
    model = make(config_class, arguments)
    with torch.no_grad():
        for word, parameter in model.named_parameters():
            if word.endswith("sinks"):  # zero, or very small, as they are made
                parameter.normal_(0, 3)
    return model


def decoded(model: Any, ids: list[int], prompt_len: int) -> list[Any]:
    """Eager probabilities of a prompt and then of one token a step, float64 [heads, n, n]."""
    argument = loading.given(model).cache_argument
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"
    rows: list[Any] = []
    cache, fed = None, 0
    with torch.no_grad():
        for stop in range(prompt_len, len(ids) + 1):
            result = model(
                torch.tensor([ids[fed:stop]]), attention_mask=torch.ones(1, stop).long(),
                use_cache=True, output_attentions=True, **{argument: cache},
            )  # fmt: skip
            cache = getattr(result, argument)
            own = [a[0].double().numpy() for a in result.attentions if a is not None]
            # Linear attention tells its states, of other shapes.
            own = [a for a in own if a.shape[1] == stop - fed]
            rows = rows or [np.zeros((len(a), len(ids), len(ids))) for a in own]
            for square, a in zip(rows, own, strict=True):  # a cache may hold the window only
                square[:, fed:stop, stop - a.shape[2] : stop] = a
            fed = stop
    model.set_attn_implementation(before)
    model.config._attn_implementation = before
    return rows


def check_rows(model: Any, path: Path, noise: float = NOISE) -> Any:
    """The trace, whose rows must be those of the model's own eager attention."""
    trace = open_trace(path)
    ids, prompt_len = trace.manifest["tokens"]["ids"], trace.prompt_len
    own = reference(model, ids) if prompt_len is None else decoded(model, ids, prompt_len)
    own = [a for a in own if a is not None]
    assert len(own) == len(trace.layers)
    for layer, wanted in zip(trace.layers, own, strict=True):
        wanted = wanted[list(trace.heads)]
        assert (np.abs(squares(trace, layer) - wanted) <= half_ulp(wanted) + noise).all()
    return trace
