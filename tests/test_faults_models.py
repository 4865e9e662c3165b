"""What is recorded is what the model did: models that a recorder easily gets wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import LATENT, ODD, check_rows, odd
from tiny_models import GROUPED, N, make, tokens, torch

from h2osim import open_trace
from h2osim.models.masks import WindowSeen, read_mask
from h2osim.models.recording import record
from h2osim.support.errors import UserError


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
    # norms of float32 keys, two orders of summation
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
