"""Tiny configurations of every type of causal language model that transformers knows."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import ODD
from tiny_models import transformers

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "dim": 32,
    "word_embed_proj_dim": 32, "embedding_size": 32, "input_embedding_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "ffn_hidden_size": 48, "n_inner": 48, "d_ff": 48,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "dim_ff": 48, "d_inner": 48,
    "moe_intermediate_size": 16, "expert_ffn_hidden_size": 16, "intermediate_size_mlp": 48,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "decoder_attention_heads": 4, "encoder_attention_heads": 4, "attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "d_kv": 8, "kv_channels": 8, "dim_head": 8,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "kv_lora_rank": 16,
    "q_lora_rank": 16, "rotary_dim": 8, "num_experts": 4, "num_local_experts": 4,
    "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "moe_k": 2, "top_k_experts": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_target_positions": 64,
    "mamba_n_heads": 4, "mamba_num_heads": 4, "mamba_d_state": 8, "mamba_d_head": 16,
    "mamba_head_dim": 16, "mamba_expand": 2, "state_size": 8, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "is_decoder": True,
    "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
    "expert_layer_offset": 1, "sliding_window": 8, "attention_chunk_size": 8,
    "query_pre_attn_scalar": 8, "global_head_dim": 8, "laurel_rank": 4, "lru_width": 32,
}  # fmt: skip
"""Sizes under all the names that configurations give them."""

HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
QWEN4 = {
    "layer_types": ["linear_attention", "indexed_attention"], "indexer_n_heads": 2,
    "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8,
    "indexer_compress_ratio": 2, "hc_lowrank": 8, "ngram_vocab_size_base": 64,
    "ple_embed_dim": 32, "split_ngram_parts": 1,
}  # fmt: skip
INKLING = {
    "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8, "d_rel": 8,
    "rel_extent": 16, "sliding_window_size": 8, "unpadded_vocab_size": 64,
    "layer_types": ["hybrid_sliding", "hybrid"],
}  # fmt: skip
COMPASS = {
    "layer_types": ["full_attention", "sliding_attention"],
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 1e4}
        for kind in ("full_attention", "sliding_attention")
    },
}
NO_LAYER_INPUTS = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
DECODERS = {
    "musicgen": "MusicgenDecoderConfig", "musicgen_melody": "MusicgenMelodyDecoderConfig",
}  # fmt: skip
"""Types registered with the configuration of a larger model, of which they are a part."""
MORE: dict[str, dict[str, Any]] = {
    **{kind: ODD[kind][1] for kind in ("zamba", "zamba2", "gemma3n")},
    "gemma4_text": ODD["gemma4"][1],
    **dict.fromkeys(
        ("kimi_linear", "bailing_hybrid", "granitemoehybrid", "qwen3_next", "qwen3_5_text",
         "qwen3_5_moe_text", "qwen3_5", "qwen3_5_moe", "minicpm_ocr", "minicpmv4_6",
         "minicpmv4_7"),
        HYBRID,
    ),
    "bamba": {"attn_layer_indices": [1]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention"], "n_groups": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), QWEN4),
    **dict.fromkeys(("inkling_text", "inkling2_text", "inkling2_loop_text"), INKLING),
    "dory": {"num_hidden_layers": 4, "n_input_layers": 1, "n_recurrent_layers": 2,
             "n_output_layers": 1, "layer_types": ["sliding_attention", "full_attention"] * 2},
    **dict.fromkeys(("lfm3", "lfm3_vl"), CONVOLUTION),
    "minimax": {"layer_types": ["linear_attention", "full_attention"]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0}},
    "dots3_note": {
        "vision_config": {"num_hidden_layers": 42, "adapter_in_dim": 32, "adapter_out_dim": 32},
        "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 32},
    },
    "blt": {"encoder_hash_byte_group_vocab": 64, "vocab_size": 260},
    "roc_bert": {"pronunciation_embed_dim": 8, "shape_embed_dim": 8, "shape_vocab_size": 64},
    "unlimited_ocr": {"num_key_value_heads": 4},
    "xlm": {"causal": True},
    "gemma4_assistant": NO_LAYER_INPUTS,
    "musicgen": {"num_codebooks": 1},
    "musicgen_melody": {"num_codebooks": 1},
    "reformer": {"axial_pos_embds": False},
    **dict.fromkeys(("cohere_compass", "cohere_compass_text"), COMPASS),
    "inkling2": INKLING | {"vision_config": {"text_hidden_size": 32}},
    "inkling2_loop": INKLING | {"vision_config": {"text_hidden_size": 32}},
    "granite_docling": {"vision_config": {"out_hidden_size": 32}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "glm5_next": {"qk_rope_head_dim": 0, "layer_types": ["linear_attention", "indexed_attention"]},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": 8}},
}  # fmt: skip
"""What single types need beside."""

MROPE = {
    "cosmos3_edge_text": [2, 1, 1], "hy_v4_vl_text": [2, 1, 1],
    "qwen2_vl_text": [2, 1, 1], "qwen2_5_vl_text": [2, 1, 1], "paddleocr_vl_text": [2, 1, 1],
    "glm4v_text": [2, 1, 1], "glm_ocr_text": [2, 1, 1], "glm4v_moe_text": [1, 1, 0],
}  # fmt: skip
"""How the rotary dimensions of a head of size 8 are shared out between time, height and width."""


def small(kind: str) -> Any:
    """A tiny configuration of a model type; raises where it does not fit together."""
    more = MORE.get(kind, {})
    if kind in DECODERS:
        return _small(getattr(transformers, DECODERS[kind])(), more)
    # Some defaults break their own rules.
    broken = {"gemma4_assistant": {"text_config": NO_LAYER_INPUTS}}.get(kind, {})
    return _small(transformers.AutoConfig.for_model(kind, **broken), more)


def _small(default: Any, more: dict[str, Any]) -> Any:
    """The same kind of configuration with small sizes, and those of its parts."""
    parts = {
        name: part
        for name, part in vars(default).items()
        if isinstance(part, transformers.PretrainedConfig)
    }
    text = default.get_text_config() if parts else default
    aliases = getattr(default, "attribute_map", {})
    known = set(vars(default)) | set(aliases)
    chosen = {name: value for name, value in SIZES.items() if name in known}
    renamed = {value for name, value in aliases.items() if name in chosen}
    chosen = {
        name: value
        for name, value in chosen.items()
        if name in vars(default) or aliases[name] not in renamed & set(chosen)
    }
    if "kv_lora_rank" in chosen or default.model_type.startswith("dots3"):
        chosen["num_key_value_heads"] = 4
    plain = {name: value for name, value in more.items() if name not in parts}
    rope = getattr(default, "rope_parameters", None)
    if isinstance(rope, dict) and default.model_type in MROPE:
        chosen["rope_parameters"] = {**rope, "mrope_section": MROPE[default.model_type]}
    for name, part in parts.items():
        given = more.get(name, {}) | (plain if part is text else {})
        chosen[name] = _small(part, given).to_dict()
    return type(default)(**(chosen | (plain if text is default else {})))
