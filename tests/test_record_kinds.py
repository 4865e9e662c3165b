"""Kinds of models beside plain decoders: image-text models, layers that differ, codebooks."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import PER_LAYER, check_rows
from small_configs import small
from tiny_models import GEMMA, SLIDING, make, tokens, torch, transformers

from h2osim import open_trace
from h2osim.models import loading
from h2osim.models.recording import record
from h2osim.support.errors import UserError


def test_a_folder_of_a_model_that_sees_is_recorded_over_a_text(tmp_path: Path) -> None:
    """There is no causal model for llava's configuration, only an image-text one."""
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(small("llava")).eval()
    model.save_pretrained(tmp_path / "llava")
    trace = open_trace(record(str(tmp_path / "llava"), tokens=tokens(), out=tmp_path / "t"))
    assert trace.manifest["model"]["architecture"] == "LlavaForConditionalGeneration"
    check_rows(model, tmp_path / "t")
    run = record(str(tmp_path / "llava"), tokens=tokens(10), generate=6, out=tmp_path / "run")
    check_rows(model, run)


def test_heads_of_two_sizes_go_into_one_trace_of_scores(tmp_path: Path) -> None:
    """Gemma 4's layers that see everything have larger heads than its sliding ones."""
    model = make("Gemma4TextConfig", {**PER_LAYER, "global_head_dim": 16})
    trace = check_rows(model, record(model, tokens=tokens(), out=tmp_path / "t", values=True))
    assert trace.manifest["head_dim"] is None
    assert [trace.tensor(layer, "v").shape[2] for layer in trace.layers] == [8, 16, 8, 16]
    with pytest.raises(UserError, match=r"layer 1 of .* has heads of size 16, layer 0 of size 8"):
        record(model, tokens=tokens(), out=tmp_path / "qk", store="qk")
    path = record(model, tokens=tokens(), out=tmp_path / "qk", store="qk", layers=[1, 3])
    assert open_trace(path).manifest["head_dim"] == 16


def test_layers_with_other_kv_heads_are_recorded_apart(tmp_path: Path) -> None:
    """The message says which layers fit into one trace."""
    model = make(
        "MiMoV2FlashConfig",
        {**GEMMA, "layer_types": SLIDING, "swa_num_key_value_heads": 4,
         "swa_num_attention_heads": 4, "swa_head_dim": 8, "swa_v_head_dim": 8,
         "v_head_dim": 8, "sliding_window": 8,
         "n_routed_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"record them apart: --layers 0,2 and --layers 1$"):
        record(model, tokens=tokens(), out=tmp_path / "t")
    for layers in ([0, 2], [1]):
        record(model, tokens=tokens(), out=tmp_path / f"{layers}", layers=layers)


def test_embeddings_of_several_codebooks(tmp_path: Path) -> None:
    """Musicgen's decoder has a list of embeddings where others have one."""
    torch.manual_seed(0)
    model = transformers.MusicgenForCausalLM(small("musicgen")).eval()
    assert loading.given(model).vocabulary == 64
    check_rows(model, record(model, tokens=tokens(), out=tmp_path / "t"))


def test_several_models_in_one_have_no_embeddings(tmp_path: Path) -> None:
    """Qwen2.5-Omni puts a thinker and a talker together, and reads no token itself."""
    model = make("LlamaConfig", GEMMA)

    def nothing() -> None:
        raise NotImplementedError

    model.get_input_embeddings = nothing
    with pytest.raises(UserError, match="cannot be recorded: LlamaForCausalLM has no embeddings"):
        record(model, tokens=tokens(), out=tmp_path / "t")
