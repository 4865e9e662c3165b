"""What is recorded is what the model did: models that a recorder easily gets wrong."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import sys
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
    N,
    family,
    half_ulp,
    make,
    reference,
    squares,
    tokens,
    torch,
    transformers,
)

from h2osim import cli, open_trace, replay
from h2osim.closed_loop.attention import Eviction
from h2osim.closed_loop.decoding import Decoder
from h2osim.models import loading
from h2osim.models.masks import WindowSeen, read_mask
from h2osim.models.recording import record
from h2osim.models.sink import TraceSink
from h2osim.policies.text import parse
from h2osim.support.errors import UserError
from h2osim.traces.checks import check_scores
from h2osim.traces.description import describe

MLA = {
    **SMALL, "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 4,
}  # fmt: skip
MOE = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
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
LATENT = [name for name in ODD if ODD[name][1].get("kv_lora_rank")]


def odd(name: str) -> Any:
    config_class, arguments = (ODD | SINKS)[name]
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
            rows = rows or [np.zeros((len(a), len(ids), len(ids))) for a in own]
            for square, a in zip(rows, own, strict=True):  # a cache may hold the window only
                square[:, fed:stop, stop - a.shape[2] : stop] = a
            fed = stop
    model.set_attn_implementation(before)
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


@pytest.mark.parametrize("generate", [0, 14])
@pytest.mark.parametrize("name", ODD)
def test_rows_are_the_models_own(name: str, generate: int, tmp_path: Path) -> None:
    """Chunked attention, layers that share keys, modules used in several layers, repeated keys and
    latent caches: recorded wrongly or not at all when the mask, the module or the keys alone say
    what a layer is.
    """
    model = odd(name)
    path = record(model, tokens=tokens(N - generate), out=tmp_path / "t", generate=generate)
    check_rows(model, path)


@pytest.mark.parametrize("generate", [0, 14])
@pytest.mark.parametrize("name", ["gemma4", "gemma3n", "jetmoe", "zamba", "zamba2"])
def test_rows_from_queries_and_keys_are_the_models_own(
    name: str, generate: int, tmp_path: Path
) -> None:
    """With one number for `logits_to_keep` Gemma 4 computes only the prompt's last row in its
    shared layers; the other queries stayed zero, and the trace was valid.
    """
    model = odd(name)
    path = record(
        model, tokens=tokens(N - generate), out=tmp_path / "t", generate=generate, store="qk"
    )
    trace = check_rows(model, path)
    assert all(np.abs(trace.tensor(layer, "q")).max(axis=2).min() > 0 for layer in trace.layers)


@pytest.mark.parametrize("generate", [0, 14])
def test_chunks_are_no_window(generate: int, tmp_path: Path) -> None:
    """The first row of a chunk sees itself alone and was taken for a window of one key."""
    model = odd("llama4")
    asked: dict[str, Any] = {"tokens": tokens(N - generate), "generate": generate}
    trace = open_trace(record(model, out=tmp_path / "t", **asked))
    assert [layer["window"] for layer in trace.manifest["layers"]] == [None, None, None]
    with pytest.raises(UserError, match=r"layer 0 of Llama4ForCausalLM.*chunks of 8 tokens"):
        record(model, out=tmp_path / "qk", store="qk", **asked)
    record(model, out=tmp_path / "qk", store="qk", layers=[2], **asked)
    # within the first chunk the rows are plainly causal
    short = open_trace(record(model, tokens=tokens(8), out=tmp_path / "short", store="qk"))
    assert short.manifest["layers"][0]["window"] is None


def test_a_window_of_one_and_a_prompt_of_one(tmp_path: Path) -> None:
    """A window of 1 is a window; so is one that shows only in decode steps of one row each."""
    # (With a window of 1 the cache of transformers keeps all keys, so it is no decoding run here.)
    for window, prompt in ((1, N), (2, 1), (3, 1), (8, 2)):
        model = make("MistralConfig", {**GROUPED, "sliding_window": window})
        for store in ("scores", "qk"):
            path = record(
                model, tokens=tokens(prompt), out=tmp_path / f"{window}-{prompt}-{store}",
                generate=N - prompt, store=store,
            )  # fmt: skip
            trace = check_rows(model, path)
            assert {layer["window"] for layer in trace.manifest["layers"]} == {window}


def test_layers_have_the_numbers_of_the_cache(tmp_path: Path) -> None:
    """Zamba uses one attention module in several layers, zamba2's modules are all numbered -1."""
    for name, layers in (("zamba", (2, 5)), ("zamba2", (1, 3, 5))):
        trace = open_trace(record(odd(name), tokens=tokens(), out=tmp_path / name))
        assert trace.layers == layers


def test_layers_that_share_a_cache_say_so(tmp_path: Path) -> None:
    """The last two layers of these models keep no keys of their own."""
    for name in ("gemma4", "gemma3n"):
        trace = open_trace(record(odd(name), tokens=tokens(), out=tmp_path / name))
        assert [e.get("cache_of") for e in trace.manifest["layers"]] == [None, None, 0, 1]


@pytest.mark.parametrize("store", ["scores", "qk"])
def test_repeated_keys_are_one_cache(store: str, tmp_path: Path) -> None:
    """JetMoe repeats its two KV heads before its attention sees them: k0 k1 k0 k1."""
    model = odd("jetmoe")
    trace = check_rows(model, record(model, tokens=tokens(), out=tmp_path / "t", store=store))
    m = trace.manifest
    assert (trace.kv_heads, trace.heads, trace.group_size) == ((0, 1), (0, 2, 4, 1, 3, 5), 3)
    assert (m["model_heads"], m["model_kv_heads"]) == (6, 2)
    with torch.no_grad():
        cache = model(torch.tensor([tokens()]), use_cache=True)
    keys = getattr(cache, "cache", None) or cache.past_key_values
    found = trace.tensor(1, "k_norm2")
    np.testing.assert_allclose(found, keys.layers[1].keys[0].norm(dim=2), rtol=1e-5)


@pytest.mark.parametrize("name", LATENT)
def test_a_latent_cache_is_one_unit_a_layer(name: str, tmp_path: Path) -> None:
    """One cached vector serves all heads, so a policy evicts for all of them at once; they were
    recorded as having a cache each.
    """
    model = odd(name)
    trace = open_trace(record(model, tokens=tokens(), out=tmp_path / "t"))
    assert (trace.kv_heads, trace.group_size, trace.manifest["model_kv_heads"]) == ((0,), 4, 1)
    assert len(trace.units()) == len(trace.layers)
    for asked in ({"store": "qk"}, {"store": "both"}, {"values": True}):
        with pytest.raises(UserError, match="from one cached vector a token"):
            record(model, tokens=tokens(), out=tmp_path / "no", **asked)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("generate", [0, 14])
@pytest.mark.parametrize("name", SINKS)
def test_learned_sinks_take_mass_from_the_rows(name: str, generate: int, tmp_path: Path) -> None:
    """A sink is one more logit of the softmax; such models were refused."""
    model = odd(name)
    path = record(model, tokens=tokens(N - generate), out=tmp_path / "t", generate=generate)
    trace = open_trace(path)
    trace.verify()
    ids = trace.manifest["tokens"]["ids"]
    own = decoded(model, ids, trace.prompt_len) if trace.prompt_len else reference(model, ids)
    for entry, wanted in zip(trace.manifest["layers"], own, strict=True):
        assert entry["sink"] is True
        total = np.asarray(trace.tensor(entry["index"], "row_sum"), np.float64)
        if name.startswith("granite"):  # its weights are without the sink, its outputs with it
            wanted = wanted * total[:, :, None]
        found = squares(trace, entry["index"])
        assert (np.abs(found - wanted) <= half_ulp(wanted) + NOISE).all()
        np.testing.assert_allclose(total, wanted.sum(axis=2), atol=1e-5)
        assert total.min() < 0.9 and total.max() <= 1 + 1e-6
    with pytest.raises(UserError, match=r"layer 0 of .* a learned sink takes part of each row"):
        record(model, tokens=ids, out=tmp_path / "qk", store="qk")


def test_what_is_said_of_a_learned_sink(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recall is of the mass on tokens; info says how much is on none; errors are refused."""
    trace = open_trace(record(odd("gpt_oss"), tokens=tokens(), out=tmp_path / "t", values=True))
    facts = describe(trace).layers
    for layer in facts:
        assert layer.no_token is not None
        rows = squares(trace, layer.layer).sum(axis=2)
        assert layer.no_token == pytest.approx(1 - rows.mean(), abs=1e-3)
        assert 0.01 < layer.no_token < 0.99
        assert layer.sinks + layer.recent + layer.heavy + layer.rest == pytest.approx(1)
    assert cli.run(["info", str(tmp_path / "t")]) == 0
    assert "no token" in capsys.readouterr().out
    result = replay(trace, ["full", "recency", "h2o"], 6)
    assert (result["recall"].sel(policy="full") == 1).all()
    exact = squares(trace, 1)[:, 1:]
    t, j = np.arange(1, N)[:, None], np.arange(N)
    seen = (j <= t) & (j > t - 7)  # 6 cached keys and the row's own
    at = result.sel(policy="recency", layer=1)
    assert int(at["kept"].sum()) == round((exact * seen).sum() * 2**24)
    assert int(at["mass"].sum()) == round(exact.sum() * 2**24)
    again = open_trace(trace.save(tmp_path / "copy"))
    again.verify()
    assert again.manifest["layers"][0]["sink"] is True
    for measure in ("error", "attention-error"):
        with pytest.raises(UserError, match=r"layer \d has a learned sink"):
            replay(trace, "h2o", 6, measure=measure)


def test_a_row_with_a_sink_sums_to_no_more_than_one() -> None:
    """The reader allows a sum below 1 where the manifest speaks of a sink, and nowhere else."""
    bits = np.array([[0x3C00, 0x3400, 0x3400]], np.uint16)  # 1; 1/4 and 1/4
    sums = np.array([[1, 0.5]], np.float32)
    assert check_scores("t", (0,), bits, sums, 2, None, sink=True).tolist() == [[1 << 24, 1 << 23]]
    check_scores("t", (0,), bits, None, 2, None, sink=True)
    for given, sink, message in (
        (sums, False, "row 1: found stored sum before rounding 0.5, expected 1"),
        (None, False, "row 1: found sum 0.5, expected 1"),
        (sums * 1.1, True, "row 0: found stored sum before rounding 1.1"),
        (sums * 0.75, True, "row 0: found sum 1, expected 0.75 within"),
    ):
        with pytest.raises(UserError, match=message):
            check_scores("t", (0,), bits, given, 2, None, sink=sink)


def test_a_running_model_keeps_its_sink_when_tokens_are_evicted() -> None:
    """After eviction the softmax is over what is left and the sink, as in the model's own code."""
    config_class, arguments = SINKS["gpt_oss"]
    model = make(
        config_class,
        {**arguments, "num_hidden_layers": 1, "layer_types": ["full_attention"]},
    )
    with torch.no_grad():
        model.model.layers[0].self_attn.sinks.normal_(0, 3)
    ids, p = tokens(), 8
    decoder = Decoder(loading.given(model), ids, p)
    policy = Eviction(parse("h2o:recent=2"), 6)
    left = decoder.evict(policy).layers[0].evicted_at.repeat(2, axis=0)  # a KV head's heads
    found = decoder.log_probabilities(policy)
    t, j = torch.arange(N)[:, None], torch.arange(N)
    allowed = (j <= t) & ((torch.from_numpy(left)[:, None].long() >= t) | (t < p))
    mask = torch.zeros(1, 4, N, N).masked_fill(~allowed, torch.finfo(torch.float32).min)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), attention_mask={"full_attention": mask}).logits[0, p:]
    assert (left < N).any()
    np.testing.assert_allclose(found, torch.log_softmax(wanted, dim=1), atol=2e-4)


# --- what goes wrong while a model runs -----------------------------------------------------------


@pytest.mark.parametrize("store", ["scores", "qk"])
@pytest.mark.parametrize("generate", [0, 4])
def test_attention_that_is_not_finite(store: str, generate: int, tmp_path: Path) -> None:
    """A NaN in the weights gave a trace that h2osim itself refused, or one of NaN norms."""
    model = family("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[3, 5] = torch.nan
    with pytest.raises(UserError, match=r"layer 1, row 0: found NaN or infinity"):
        record(
            model, tokens=tokens(10), out=tmp_path / "deep" / "t", store=store, generate=generate
        )
    assert not list(tmp_path.iterdir())


def test_a_text_whose_later_row_is_not_finite(tmp_path: Path) -> None:
    """The probe of the first tokens sees nothing; the row is named, and nothing is left behind."""
    model, ids = family("llama"), [5] * 9 + [7] + [5] * 6
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.inf
    with pytest.raises(UserError, match=r"layer 0, row 9: found NaN or infinity"):
        record(model, tokens=ids, out=tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_rows_that_a_model_leaves_out(tmp_path: Path) -> None:
    """A layer that computes only some rows of a call is refused, not padded with zeros."""
    model = family("llama")
    attention = model.model.layers[2].self_attn
    whole = attention.forward

    def last_row(
        hidden_states: Any, position_embeddings: Any, attention_mask: Any, **rest: Any
    ) -> Any:
        cos, sin = position_embeddings
        return whole(hidden_states[:, -1:], (cos[:, -1:], sin[:, -1:]), attention_mask, **rest)

    attention.forward = last_row
    with pytest.raises(UserError, match=r"layer 2 attends .*1 .* 4"):
        record(model, tokens=tokens(), out=tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_facts_of_a_layer_may_not_change(tmp_path: Path) -> None:
    """A scale that depends on the length would make the manifest false for most rows."""
    model = family("llama")
    attention = model.model.layers[1].self_attn
    whole = attention.forward

    def scaled(hidden_states: Any, *others: Any, **rest: Any) -> Any:
        attention.scaling = 1 / (1 + hidden_states.shape[1])
        return whole(hidden_states, *others, **rest)

    attention.forward = scaled
    with pytest.raises(UserError, match=r"layer 1 changes while it runs: scale 0\.2, then 0\.04"):
        record(model, tokens=tokens(), out=tmp_path / "t")
    assert not list(tmp_path.iterdir())


def test_an_exception_in_a_forward_pass_is_one_line(tmp_path: Path) -> None:
    """Errors of a model's own code ended in its traceback."""
    model = family("llama")

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nand more")

    model.model.layers[1].mlp.forward = broken
    with pytest.raises(UserError) as caught:
        record(model, tokens=tokens(), out=tmp_path / "t")
    assert str(caught.value) == (
        "LlamaForCausalLM: cannot be recorded: its forward pass failed: RuntimeError: mat1 and "
        "mat2 shapes cannot be multiplied"
    )
    assert not list(tmp_path.iterdir())


def test_what_is_written_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that reached the file damaged made a trace that only its reader refused."""
    write = TraceSink.block

    def damaged(self: TraceSink, layer: Any, block: Any) -> None:
        block.p[1, 5:6] *= 0.5
        write(self, layer, block)

    monkeypatch.setattr(TraceSink, "block", damaged)
    with pytest.raises(
        UserError, match=r"t/layer-000.safetensors, layer 0, head 1, row 5: found sum 0\.49"
    ):
        record(family("llama"), tokens=tokens(), out=tmp_path / "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": float("inf"), "sample": True},
        {"temperature": float("nan"), "sample": True},
        {"seed": 2**64, "sample": True},
        {"seed": -1},
        {"generate": 2.5},
        {"layers": [0.5]},
        {"n_tokens": True},
    ],
)
def test_numbers_out_of_range_are_one_line(asked: dict[str, Any], tmp_path: Path) -> None:
    """A temperature of infinity sampled nonsense, a large seed ended in torch's own error."""
    (what,) = set(asked) - {"sample"}
    with pytest.raises(UserError, match=f"{what.removeprefix('n_')}: found"):
        record(family("llama"), tokens=tokens(), out=tmp_path / "t", **{"generate": 2, **asked})
    assert not list(tmp_path.iterdir())


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """NumPy's integers and floats wherever Python's go, also into the manifest."""
    path = record(
        family("llama"), tokens=np.array(tokens()), out=tmp_path / "t", n_tokens=np.int32(8),
        layers=np.array([0, 2]), kv_heads=np.array([1], np.uint8), generate=np.int64(3),
        sample=True, seed=np.uint64(2**64 - 1), temperature=np.float32(0.5),
    )  # fmt: skip
    trace = open_trace(path)
    assert (trace.n, trace.layers, trace.kv_heads) == (11, (0, 2), (1,))
    assert trace.manifest["generation"]["seed"] == 2**64 - 1


# --- models and their names -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_a_model_object_keeps_its_type_and_the_manifest_says_it(dtype: str, tmp_path: Path) -> None:
    """The manifest said float32 whatever the weights were."""
    model = make("LlamaConfig", {**GROUPED, "hidden_act": "relu"}).to(getattr(torch, dtype))
    trace = open_trace(record(model, tokens=tokens(), out=tmp_path / "t", store="both"))
    assert trace.manifest["provenance"]["weights"] == dtype
    assert model.dtype == getattr(torch, dtype)


def test_a_model_object_is_not_named_by_its_path(tmp_path: Path) -> None:
    """`name_or_path` of a model from a folder is a path of the machine it was loaded on."""
    model = family("llama")
    for told, name in (
        (str(tmp_path / "secret" / "tiny"), "tiny"),
        ("./models/tiny", "tiny"),
        ("org/tiny", "org/tiny"),
        ("", "LlamaForCausalLM"),
    ):
        model.config.name_or_path = told
        assert loading.given(model).name == name


CODE = """
from pathlib import Path
Path({mark!r}).write_text("run")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OddConfig(LlamaConfig):
    model_type = {kind!r}
class OddModel(LlamaForCausalLM):
    config_class = OddConfig
class OddTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("kind", ["odd", "llama"])
def test_code_in_a_models_folder_never_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The library asks on standard input whether to run a folder's code, and `y` was an answer."""
    folder, mark = tmp_path / "model", tmp_path / "ran"
    make("LlamaConfig", GROUPED).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": kind,
        "auto_map": {"AutoConfig": "odd.OddConfig", "AutoModelForCausalLM": "odd.OddModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "odd.py").write_text(CODE.format(mark=str(mark), kind=kind))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "OddTokenizer", "auto_map": {"AutoTokenizer": ["odd.OddTokenizer"]}}
        )
    )
    (tmp_path / "text").write_text("words " * 20)
    words = ["record", str(folder), "--text", str(tmp_path / "text"), "-o", str(tmp_path / "t")]
    capsys.readouterr()  # transformers' bar of writing the model
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    assert cli.run(words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert ("code from its own folder, which h2osim never runs" in error) == (kind == "odd")
    assert not mark.exists() and not (tmp_path / "t").exists()
    if kind == "llama":  # known without the folder's code, which is left alone
        record(str(folder), tokens=tokens(), out=tmp_path / "t")
        assert not mark.exists()


def test_pickled_weights_run_nothing(tmp_path: Path) -> None:
    """A .bin file of weights is a pickle, and a pickle can name any function."""
    mark = tmp_path / "ran"
    folder = tmp_path / "model"
    make("LlamaConfig", GROUPED).save_pretrained(folder)
    (folder / "model.safetensors").unlink()

    class Bad:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    torch.save({"model.norm.weight": Bad()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        record(str(folder), tokens=tokens(), out=tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert not mark.exists() and not (tmp_path / "t").exists()


def test_damaged_folders_are_one_line(tmp_path: Path) -> None:
    """Truncated weights and a configuration of another size ended in tracebacks."""
    make("LlamaConfig", GROUPED).save_pretrained(tmp_path / "whole")

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "whole", tmp_path / name))

    weights = damaged("short") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    config = damaged("wide") / "config.json"
    config.write_text(
        config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 64')
    )
    config = damaged("heads") / "config.json"
    config.write_text(
        config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 3')
    )
    (damaged("junk") / "config.json").write_text("{")
    (damaged("list") / "config.json").write_text("[1]")
    (damaged("header") / "model.safetensors").write_bytes(b"\xff" * 64)
    for name in ("short", "wide", "heads", "junk", "list", "header"):
        with pytest.raises(UserError, match=rf"model {name}: ") as caught:
            record(str(tmp_path / name), tokens=tokens(), out=tmp_path / "t")
        assert "\n" not in str(caught.value), name
    assert not (tmp_path / "t").exists()


# --- texts ----------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of one token a byte of ASCII text; keeps what it was given."""

    eos_token_id = None

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, text: str) -> dict[str, list[int]]:
        self.given.append(text)
        return {"input_ids": [3 + ord(letter) % 60 for letter in text]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(60 + i) for i in ids)


@pytest.mark.parametrize("data", [b"a\r\nb\rc\nd", b"\xef\xbb\xbfa\r\nbc"])
@pytest.mark.parametrize("from_stdin", [False, True])
def test_the_text_is_what_the_files_bytes_are(
    data: bytes, from_stdin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """CRLF became LF, a byte-order mark became the first token, and sha256 was of neither file."""
    tokenizer = Letters()
    tiny = loading.Model(family("llama"), tokenizer, "tiny", None, None)
    monkeypatch.setattr(loading, "load", lambda name: tiny)
    file = tmp_path / "text"
    file.write_bytes(data)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    where = "-" if from_stdin else str(file)
    assert cli.run(["record", "tiny", "--text", where, "-o", str(tmp_path / "t")]) == 0
    marked = data.startswith(b"\xef")
    said = f"--text {where}: a byte-order mark at its start is left out\n" if marked else ""
    assert capsys.readouterr().err == f"{said}wrote {tmp_path / 't'}\n"
    assert tokenizer.given == [data.removeprefix(b"\xef\xbb\xbf").decode()]
    told = open_trace(tmp_path / "t").manifest["text"]
    assert told["sha256"] == hashlib.sha256(data).hexdigest()
    assert told["name"] == ("standard input" if from_stdin else "text")


def test_a_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("text x: not UTF-8 text (byte 1)")):
        record("smollm2", text=b"a\xff", text_name="x", out=tmp_path / "t")


# --- masks, alone ---------------------------------------------------------------------------------


def test_rows_that_no_window_explains() -> None:
    """Windows are told from all rows of all calls: not from the last row, nor from one row."""

    def mask(lengths: list[int], start: int = 0) -> Any:
        rows, keys = len(lengths), start + len(lengths)
        t, j = torch.arange(start, keys)[:, None], torch.arange(keys)
        allowed = (j <= t) & (j > t - torch.tensor(lengths)[:, None])
        return read_mask(allowed[None, None].expand(1, 3, rows, keys), start, 0, UserError)

    seen = WindowSeen()
    assert seen.window(mask([1, 2, 2, 2]), None, 4) == 2 and seen.regular
    assert seen.window(mask([2], 4), None, 5) == 2 and seen.regular
    assert seen.window(mask([1], 5), None, 6) is None
    growing = WindowSeen()
    assert growing.window(mask([1, 1, 2, 3]), None, 4) is None and not growing.regular
    chunk = WindowSeen()
    assert chunk.window(mask([1, 2, 3, 4]), 8, 4) == 8  # too short to show: the configuration's
    assert chunk.window(mask([1], 4), None, 5) is None
    allowed = torch.ones(1, 1, 3, 3).tril().bool()
    allowed[0, 0, 2, 1] = False
    assert WindowSeen().window(read_mask(allowed, 0, 0, UserError), None, 3) is None
