"""What goes wrong while a model runs, in its folder, or in its text is one clear line."""

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
from tiny_models import GROUPED, family, make, tokens, torch

from h2osim import cli, evaluate, open_trace
from h2osim.models import loading
from h2osim.models.recording import record
from h2osim.models.sink import TraceSink
from h2osim.support.errors import UserError


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


def test_a_query_that_is_not_finite_in_a_layer_that_is_not_recorded(tmp_path: Path) -> None:
    """PyTorch's attention made zeros of such rows, so the tokens after them were of another run."""
    model = family("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[1, 2] = torch.nan
    hidden: list[dict[str, Any]] = [
        {"layers": [0], "generate": 4},
        {"store": "qk", "pre_rope": True},
    ]
    for asked in hidden:
        with pytest.raises(UserError, match=r"recorded: layer 1, row 0: found NaN or infinity"):
            record(model, tokens=tokens(10), out=tmp_path / "t", **asked)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_after_the_last_attention(value: float, tmp_path: Path) -> None:
    """Greedy decoding chose token 0 then, sampling ended in a traceback, and losses were NaN.

    The hook spoils the rows 12 and later: the third decode step here, the third row there.
    """
    seen = 0

    def spoil(_: Any, given: Any, out: Any) -> Any:
        nonlocal seen
        rows = out.shape[1]
        seen = seen + rows if rows == 1 or rows > 10 else rows  # a probe and a prompt begin anew
        out = out.clone()
        out[:, max(0, 12 - (seen - rows)) :] = value
        return out

    for module in ("layers.2.self_attn.o_proj", "layers.2.mlp.down_proj", "norm"):
        model = family("llama")
        model.model.get_submodule(module).register_forward_hook(spoil)
        with pytest.raises(UserError, match=r"after its last attention layer, row 12: found NaN"):
            evaluate(model, {"a": tokens(24)}, "tova", [6], prompt_len=10)
        for sample in (False, True):
            with pytest.raises(UserError, match=r"last attention layer, row 12: found NaN"):
                record(model, tokens=tokens(10), out=tmp_path / "t", generate=6, sample=sample)
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


def test_the_manifest_names_all_types_of_weights(tmp_path: Path) -> None:
    """Some may be kept in another type than most; the manifest named that of the first alone."""
    model = family("llama")
    model.model.layers[1].mlp.down_proj.to(torch.bfloat16).register_forward_pre_hook(
        lambda _, given: given[0].bfloat16()
    )
    trace = open_trace(record(model, tokens=tokens(), out=tmp_path / "t"))
    assert trace.manifest["provenance"]["weights"] == "bfloat16, float32"


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
    monkeypatch.setattr(loading, "load", lambda name, say: tiny)
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
