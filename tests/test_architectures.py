"""Every causal language model that transformers knows: recorded rightly, or refused by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import ODD
from tiny_models import NOISE, N, half_ulp, reference, squares, tokens, torch, transformers

from h2osim import open_trace
from h2osim.models.recording import record
from h2osim.support.errors import UserError

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "d_model": 32, "n_embd": 32, "embed_dim": 32, "dim": 32,
    "word_embed_proj_dim": 32, "embedding_size": 32, "input_embedding_size": 32,
    "intermediate_size": 48, "ffn_dim": 48, "ffn_hidden_size": 48, "n_inner": 48, "d_ff": 48,
    "decoder_ffn_dim": 48, "encoder_ffn_dim": 48, "dim_ff": 48, "d_inner": 48,
    "moe_intermediate_size": 16, "expert_ffn_hidden_size": 16, "intermediate_size_mlp": 48,
    "shared_expert_intermediate_size": 16, "moe_shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "decoder_layers": 2,
    "encoder_layers": 1, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
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
MORE: dict[str, dict[str, Any]] = {
    **{kind: ODD[kind][1] for kind in ("zamba", "zamba2", "gemma3n")},
    "gemma4_text": ODD["gemma4"][1],
    **dict.fromkeys(
        ("kimi_linear", "bailing_hybrid", "granitemoehybrid", "qwen3_next", "qwen3_5_text",
         "qwen3_5_moe_text", "qwen4_exp_text", "qwen3_5", "qwen3_5_moe", "qwen4_exp", "lfm3"),
        HYBRID,
    ),
    "bamba": {"attn_layer_indices": [1]},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "nemotron_h": {"layers_block_type": ["linear_attention", "full_attention"], "n_groups": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "reformer": {"axial_pos_embds": False},
    "cohere_compass_text": {"layer_types": ["full_attention", "sliding_attention"]},
}  # fmt: skip
"""What single types need beside."""

LARGEST = 5_000_000
"""A model with more parameters has a size by another name and is not built."""


def small(kind: str) -> Any:
    """A tiny configuration of a model type; raises where it does not fit together."""
    config_class = transformers.AutoConfig.for_model(kind).__class__
    default = config_class()
    inner = default.get_text_config()
    known = set(vars(inner)) | set(getattr(inner, "attribute_map", {}))
    chosen = {name: value for name, value in SIZES.items() if name in known}
    renamed = {v for k, v in getattr(inner, "attribute_map", {}).items() if k in chosen}
    chosen = {
        name: value
        for name, value in chosen.items()
        if name in vars(inner) or inner.attribute_map[name] not in renamed & set(chosen)
    }
    if "kv_lora_rank" in chosen or kind.startswith("dots3"):
        chosen["num_key_value_heads"] = 4
    chosen |= MORE.get(kind, {})
    if inner is default:
        return config_class(**chosen)
    (text,) = (name for name in ("text_config", "decoder", "llm_config") if hasattr(default, name))
    return config_class(**{text: inner.__class__(**chosen).to_dict()})


def build(kind: str) -> Any:
    config = small(kind)
    with torch.device("meta"):
        count = sum(
            p.numel() for p in transformers.AutoModelForCausalLM.from_config(config).parameters()
        )
    if count > LARGEST:
        raise ValueError(f"{count} parameters")
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
    return model


def outcome(kind: str, folder: Path) -> tuple[str, str]:
    """What becomes of a model type: (one word, more of it)."""
    try:
        model = build(kind)
        ids = tokens()
        with torch.no_grad():
            model(torch.tensor([ids]), use_cache=False)
    except Exception as error:  # whatever a configuration that does not fit leads to
        return "not built", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    try:
        try:
            traces = [open_trace(record(model, tokens=ids, out=folder / kind))]
        except UserError as error:
            if "record them apart" not in str(error):
                return "refused", str(error)
            traces = [
                open_trace(record(model, tokens=ids, out=folder / f"{kind}-{i}", layers=[i]))
                for i in (0, 1)
            ]
    except Exception as error:  # a fault of the recorder
        return "crashed", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    try:
        own = [a for a in reference(model, ids) if a is not None]
        assert own and all(a.shape[1:] == (N, N) for a in own)
    except Exception as error:  # it does not tell its attention
        return "recorded, nothing to compare with", type(error).__name__
    layers = [(trace, entry) for trace in traces for entry in trace.manifest["layers"]]
    if len(own) != len(layers):
        return "recorded, nothing to compare with", f"{len(own)} and {len(layers)} layers"
    worst, apart = 0.0, 0.0
    for (trace, entry), wanted in zip(layers, own, strict=True):
        index = entry["index"]
        found, wanted = squares(trace, index), wanted[list(trace.heads)]
        total = np.asarray(trace.tensor(index, "row_sum"), np.float64)[:, :, None]
        # Some models give the weights before their learned sink takes its part.
        given = [wanted, wanted * total] if entry.get("sink") else [wanted]
        worst = max(worst, min(distance(found, w) for w in given))
        apart = max(apart, distance(found[::-1], wanted))
    # Rows that could be another's prove nothing: those of the heads in another order are far away.
    word = "recorded" if apart > 1e-3 else "recorded, all heads alike"
    word = word if worst < NOISE else "wrong"
    return word, f"off by {worst:.2g}, heads in another order by {apart:.2g}"


def distance(found: Any, wanted: Any) -> float:
    """By how much rows miss what was wanted, beyond their rounding to float16."""
    return float(np.maximum(abs(found - wanted) - half_ulp(wanted), 0).max())


@pytest.mark.nightly
def test_every_architecture_is_recorded_rightly_or_refused_by_name(tmp_path: Path) -> None:
    """Prints how many are recorded and equal their own eager attention, and names the others."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KINDS

    found = {kind: outcome(kind, tmp_path) for kind in KINDS}
    for kind, (word, more) in sorted(found.items(), key=lambda item: item[1]):
        print(f"{word:12} {kind:28} {more[:150]}")
    counts = Counter(word for word, _ in found.values())
    print(", ".join(f"{number} {word}" for word, number in counts.most_common()))
    assert counts["wrong"] == counts["crashed"] == 0
    assert counts["recorded"] >= 130  # 141 with transformers 5.24
    assert all("\n" not in more for word, more in found.values() if word == "refused")
