"""Models on disk: folders of transformers, GGUF, the texts of tokens, memory."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
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


from tiny_models import GROUPED, NOISE, family, half_ulp, make, reference, squares, tokens  # noqa: E402

from h2osim.models import loading as models  # noqa: E402
from h2osim.models.gguf import read_metadata  # noqa: E402
from h2osim.models.pieces import pieces  # noqa: E402
from h2osim.models.recording import record  # noqa: E402


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
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, store, str(tmp_path / "t")],
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    before, peak = json.loads(result.stdout)
    assert peak - before < limit * 2**10
    assert open_trace(tmp_path / "t").n == 4096
