"""Models whose softmax the hook does not know are recorded by the weights that they return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import OWN, check_rows, odd
from tiny_models import N, half_ulp, reference, squares, tokens, torch, transformers

from h2osim import open_trace, replay
from h2osim.models import own
from h2osim.models.recording import record
from h2osim.support.errors import UserError
from h2osim.traces.description import describe

QUICK = ("bloom", "falcon-40b", "gpt_neo", "deepseek_v32", "doge")
UNITS = {"falcon-40b": 2, "falcon-7b": 1, "deepseek_v32": 1, "glm_moe_dsa": 1, "hy_v4": 1,
         "doge": 2, "inkling": 2, "diffllama": 2}  # fmt: skip
"""How many caches a layer has where it is not one a head."""


@pytest.mark.parametrize("generate", [0, 14])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.nightly)
        for name in OWN
        if name != "falcon-rw"  # see below
    ],
)
def test_rows_are_the_weights_that_the_model_returns(
    name: str, generate: int, tmp_path: Path
) -> None:
    model = odd(name)
    before = model.config._attn_implementation
    path = record(model, tokens=tokens(N - generate), out=tmp_path / "t", generate=generate)
    trace = check_rows(model, path)
    trace.verify()
    assert trace.manifest["model_kv_heads"] == len(trace.kv_heads) == UNITS.get(name, 4)
    for entry in trace.manifest["layers"]:
        assert entry["tensors"] == ["row_sum", "scores"] and entry["scale"] is None
        assert entry.get("sink", False) is (name == "hy_v4")
    assert model.config._attn_implementation == before
    assert (replay(trace, ["full", "h2o"], 6)["recall"].sel(policy="full") == 1).all()
    assert describe(trace).layers


@pytest.mark.parametrize("asked", [{"store": "qk"}, {"store": "both"}, {"values": True}])
def test_only_the_rows_are_known(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only its own code attends, which tells its rows and no"):
        record(odd("bloom"), tokens=tokens(), out=tmp_path / "t", **asked)
    assert not list(tmp_path.iterdir())


def test_some_heads_and_layers_in_blocks_of_few_rows(tmp_path: Path) -> None:
    """A KV head brings its query heads; how many rows are taken at a time changes nothing."""
    model = odd("falcon-40b")
    whole = open_trace(record(model, tokens=tokens(), out=tmp_path / "whole"))
    part = open_trace(
        record(
            model, tokens=tokens(), out=tmp_path / "part", layers=[1], kv_heads=[1],
            block_bytes=1000,
        )
    )  # fmt: skip
    assert (part.layers, part.kv_heads, part.heads) == ((1,), (1,), (2, 3))
    assert np.array_equal(part.tensor(1, "scores"), whole.tensor(1, "scores")[2:])
    # float32 sums in another order
    np.testing.assert_allclose(part.tensor(1, "row_sum"), whole.tensor(1, "row_sum")[2:], rtol=1e-6)


def test_a_model_without_a_cache_has_a_unit_a_head_and_cannot_decode(tmp_path: Path) -> None:
    config = transformers.OpenAIGPTConfig(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert model.training
    trace = check_rows(model.eval(), record(model, tokens=tokens(), out=tmp_path / "t"))
    assert trace.manifest["head_dim"] is None and trace.group_size == 1
    with pytest.raises(UserError, match="keeps no cache of keys and values, so it cannot decode"):
        record(model, tokens=tokens(), out=tmp_path / "no", generate=2)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_rows_in_half_precision_say_so(kind: str, tmp_path: Path) -> None:
    """The model rounds its rows before they are seen, so that they miss 1 by more."""
    model = odd("gpt_neo").to(getattr(torch, kind))
    trace = open_trace(record(model, tokens=tokens(), out=tmp_path / "t"))
    trace.verify()
    assert [entry["computed_in"] for entry in trace.manifest["layers"]] == [kind] * 2
    wanted = reference(model.eval(), tokens())
    for layer in trace.layers:
        # numbers of either type, rounded to float16
        assert (np.abs(squares(trace, layer) - wanted[layer]) <= half_ulp(wanted[layer])).all()


def test_one_layers_weights_are_in_memory_at_a_time(tmp_path: Path) -> None:
    """What the model would collect of all its layers is an empty tensor each."""
    model, kept = odd("bloom"), []
    see = model.transformer.h[0].register_forward_hook(lambda m, x, output: kept.append(output[1]))
    record(model, tokens=tokens(), out=tmp_path / "t")
    see.remove()
    assert kept[-1].numel() == 0  # the last run's; the ones before were the probe's few tokens
    assert max(weights.numel() for weights in kept) == 4 * 4 * 4


@pytest.mark.parametrize(
    ("weights", "sink", "message"),
    [
        (torch.ones(1, 2, 2) / 2, False, "not causal"),
        (torch.tensor([[[1.0, 0.0], [0.5, 0.4]]]), False, "sum to 0.9 in row 3, not to 1"),
        (torch.tensor([[[1.0, 0.0], [0.7, 0.4]]]), True, "sum to 1.1 in row 3, not to 1"),
        (torch.tensor([[[1.0, 0.0], [1.5, -0.5]]]), False, "negative"),
        (torch.tensor([[[1.0, 0.0], [torch.nan, 0.0]]]), True, "sum to nan in row 3"),
    ],
)
def test_weights_that_are_no_rows_are_refused(
    weights: torch.Tensor, sink: bool, message: str
) -> None:
    with pytest.raises(own.NotGiven, match=message):
        own.check_rows(weights, 2, sink)
    own.check_rows(torch.tensor([[[1.0, 0.0], [0.5, 0.4]]]), 0, True)


def test_other_logits_with_the_weights_are_no_record(tmp_path: Path) -> None:
    """Falcon's eager code adds its ALiBi biases twice, which the code it runs by does not."""
    model = odd("falcon-rw")
    with pytest.raises(UserError, match=r"other logits when it is asked for them \(off by 0.01"):
        record(model, tokens=tokens(), out=tmp_path / "t")
    model.config._attn_implementation = "eager"  # now it does, and this is what is recorded
    check_rows(model, record(model, tokens=tokens(), out=tmp_path / "t"))


def test_without_a_cache_the_module_says_how_many_heads_share_one() -> None:
    module = torch.nn.Linear(2, 2)
    weights = torch.eye(3).expand(4, 3, 3)
    layer = own._layer(0, own.Source(module, 1), weights, None)
    assert (layer.heads, layer.kv_heads, layer.head_dim, layer.sink) == (4, 4, 0, False)
    module.num_key_value_groups = 2
    assert own._layer(0, own.Source(module, 1), weights, None).kv_heads == 2
    keys = torch.zeros(3, 3, 2)
    with pytest.raises(own.NotGiven, match="has 4 heads for 3 cached keys"):
        own._layer(0, own.Source(module, 1), weights, (keys + torch.arange(3)[:, None, None], keys))
