"""The recorder: every family against its own attention, what is chosen, and decoding runs."""

from __future__ import annotations

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
    NOISE,
    N,
    family,
    half_ulp,
    make,
    reference,
    squares,
    tokens,
)

from h2osim.models import hook as attention  # noqa: E402
from h2osim.models.recording import record  # noqa: E402
from h2osim.models.rows import Layer, RowBlock  # noqa: E402


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
        # half a step of a vector's scale, which is a float32 itself
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
        # norms of float32 vectors, two orders of summation
        np.testing.assert_allclose(
            scores.tensor(layer, "k_norm2"), remade.tensor(layer, "k_norm2"), rtol=1e-5
        )
        v = np.asarray(remade.tensor(layer, "v"), dtype=np.float64)
        # as above: PyTorch sums in float32, this in float64
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
        # float32 logits of size 1 to 10, kept as float32
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
    # a product of rounded square roots, 1e-16 each
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
