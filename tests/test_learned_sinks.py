"""Learned attention sinks take mass from every row: recorded, described, evicted around."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import SINKS, decoded, odd
from tiny_models import NOISE, N, half_ulp, make, reference, squares, tokens, torch

from h2osim import cli, open_trace, replay
from h2osim.closed_loop.caches import Eviction
from h2osim.closed_loop.decoding import Decoder
from h2osim.models import loading
from h2osim.models.recording import record
from h2osim.policies.text import parse
from h2osim.support.errors import UserError
from h2osim.traces.checks import check_scores
from h2osim.traces.description import describe


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
        # float32 softmax of the model and of the recorder
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
        # rows were rounded to float16, 2**-11 of their sum
        assert layer.no_token == pytest.approx(1 - rows.mean(), abs=1e-3)
        assert 0.01 < layer.no_token < 0.99
        # four quotients, each rounded
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
    # float32, eager attention against masked rows
    np.testing.assert_allclose(found, torch.log_softmax(wanted, dim=1), atol=2e-4)
