"""Rules that see keys, values and queries, with a model that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
pytest.importorskip(
    "transformers", reason="a running model needs the extra `record` (transformers)"
)

from honest_decoder import Honest, N, P, left, make, tokens  # noqa: E402
from tiny_models import family  # noqa: E402
from vector_rules import ASKED, CAOTE, EXPECTED, KEYDIFF, RULES  # noqa: E402

import h2osim  # noqa: E402
from h2osim.closed_loop.caches import Eviction  # noqa: E402
from h2osim.closed_loop.decoding import Choice, Decoder, Prompt  # noqa: E402
from h2osim.models.loading import given  # noqa: E402
from h2osim.models.recording import record  # noqa: E402
from h2osim.policies.text import parse  # noqa: E402
from h2osim.support.errors import UserError  # noqa: E402


@pytest.mark.parametrize(
    "rule", [pytest.param(r, marks=() if r is ASKED else pytest.mark.nightly) for r in RULES],
    ids=lambda rule: rule.name,
)  # fmt: skip
def test_a_pass_evicts_what_token_by_token_decoding_evicts(rule: Any) -> None:
    model, ids, budget = make("gqa"), tokens(4), 7
    honest = Honest(model, rule, budget, P, N, "group")
    expected = honest.run(ids)
    logits, found = Decoder(given(model), ids, P).decode(Eviction(parse(rule), budget))
    assert honest.left == left(found)
    # float64; all rows at once and token by token sum in different orders
    assert (torch.log_softmax(logits, dim=1) - expected).abs().max() < 1e-9


def test_passes_side_by_side_see_their_own_queries() -> None:
    model, ids = make("gqa"), tokens(5)
    decoder = Decoder(given(model), ids, P)
    each = [Eviction(parse(rule), k) for rule, k in [(ASKED, 6), (EXPECTED, 8), (KEYDIFF, 6)]]
    for alone, beside in zip(each, decoder.evict_each(each), strict=True):
        again = Decoder(given(model), ids, P).evict(alone)
        for layer, found in again.layers.items():
            assert np.array_equal(found.evicted_at, beside.layers[layer].evicted_at)


def test_generating_feeds_queries_step_by_step() -> None:
    model, ids = make("gqa"), tokens(6)[:P]
    written = Prompt(given(model), ids).generate(Eviction(parse(ASKED), 6), 8, Choice())
    logits, _ = Decoder(given(model), ids + written, P).decode(Eviction(parse(ASKED), 6))
    assert written[1:] == logits.argmax(dim=1).tolist()[:7]


@pytest.mark.parametrize("name", ["llama", "gemma2-softcap-window", "gpt-neox"])
def test_queries_before_rope_become_queries_when_they_are_turned(name: str, tmp_path: Path) -> None:
    model, ids = family(name), tokens(7)
    trace = h2osim.open_trace(
        record(
            model, tokens=ids, out=tmp_path / "t", store="qk", values=True, pre_rope=True,
            output_norms=True, layers=[1],
        )
    )  # fmt: skip
    trace.verify()
    (unit, *_) = trace.units("layer")
    base: Any = getattr(model, "model", None) or model.gpt_neox
    plain, turned = torch.tensor(unit.plain_queries()), torch.tensor(unit.queries())
    places = torch.arange(len(ids))[None]
    cos, sin = base.rotary_emb(plain, places)
    if name == "gemma2-softcap-window":  # its queries are as they come from the projection
        assert cos.shape[-1] == plain.shape[-1]
    width = cos.shape[-1]
    part = plain[..., :width]
    half = torch.cat([-part[..., width // 2 :], part[..., : width // 2]], dim=-1)
    # float32: a product and a sum each
    assert torch.allclose(part * cos + half * sin, turned[..., :width], atol=1e-5)
    assert torch.equal(plain[..., width:], turned[..., width:])
    assert not torch.allclose(plain, turned, atol=1e-3)
    # norms behind W_o: those of the recorded values under the model's own matrix
    layer = base.layers[1]
    w = getattr(getattr(layer, "self_attn", None), "o_proj", None)
    w = (w or layer.attention.dense).weight.detach().double()
    values = torch.tensor(unit.values()).double()
    values = values.repeat_interleave(plain.shape[0] // values.shape[0], dim=0)
    moved = torch.einsum("hnd,hdo->hno", values, w.T.reshape(plain.shape[0], values.shape[2], -1))
    stored = torch.tensor(trace.tensor(1, "wv_norm1")).double()
    assert torch.allclose(stored, moved.abs().sum(dim=2), rtol=1e-5)  # stored in float32


def test_replays_of_a_recording_with_everything(tmp_path: Path) -> None:
    trace = h2osim.open_trace(
        record(
            family("llama"), tokens=tokens(8), out=tmp_path / "t", store="both", values=True,
            pre_rope=True, output_norms=True, generate=6,
        )
    )  # fmt: skip
    rules = [ASKED, EXPECTED, KEYDIFF, CAOTE]
    found = [
        h2osim.replay(trace, rules, [4, 9], engine=engine)["evicted_at"].values
        for engine in ("naive", "numba")
    ]
    assert np.array_equal(found[0], found[1])
    assert (found[0] < trace.n).any(axis=(1, 2, 3, 4)).all()


def test_what_cannot_be_recorded_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pre-rope: found store 'scores', expected qk or both"):
        record(family("llama"), tokens=tokens(), out=tmp_path / "t", pre_rope=True)
    with pytest.raises(UserError, match="queries before RoPE: layer 0 turned none, expected"):
        record(family("gpt2"), tokens=tokens(), out=tmp_path / "t", store="qk", pre_rope=True)
    assert list(tmp_path.iterdir()) == []
