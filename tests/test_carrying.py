"""Errors carried to the prediction: against difference quotients of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from h2osim.closed_loop import carrying, uncompressed  # noqa: E402
from h2osim.closed_loop.attention import NoRows  # noqa: E402
from h2osim.closed_loop.caches import Eviction  # noqa: E402
from h2osim.closed_loop.decoding import Decoder  # noqa: E402
from h2osim.models.hook import Session, hooked  # noqa: E402
from h2osim.models.loading import given  # noqa: E402
from h2osim.models.rows import Call  # noqa: E402
from h2osim.support.errors import UserError  # noqa: E402

LAYERS, N, P = 3, 30, 10


def llama(**more: object) -> Decoder:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.2, **more,
    )  # fmt: skip
    return Decoder(given(LlamaForCausalLM(config).double().eval()), IDS, P)


IDS = np.random.default_rng(0).integers(0, 50, N).tolist()


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return llama()


@pytest.fixture(scope="module")
def evicted_at() -> dict[int, np.ndarray]:
    """A third of the tokens leave at random steps."""
    draw = np.random.default_rng(1)
    found = np.full((LAYERS, 2, N), N, np.int32)
    gone = draw.random(found.shape) < 0.3
    steps = np.maximum(np.arange(N) + draw.integers(0, 6, found.shape), P)
    found[gone] = np.minimum(steps, N)[gone]
    return dict(enumerate(found))


def attend(call: Call, evicted_at: np.ndarray | None) -> Any:
    """Softmax attention over what is cached, row by row, [rows, heads, d]."""
    found = torch.zeros(call.q.shape[1], call.layer.heads, call.v.shape[2]).double()
    for row in range(call.q.shape[1]):
        t = call.start + row
        for head in range(call.layer.heads):
            unit = head // call.layer.group_size
            keys = torch.arange(t + 1)
            if evicted_at is not None:
                keys = keys[evicted_at[unit, : t + 1] >= t]
            x = call.k[unit, keys] @ call.q[head, row] * call.layer.scale
            found[row, head] = x.softmax(0) @ call.v[unit, keys]
    return found


def logits(decoder: Decoder, output: Callable[[Call], Any]) -> Any:
    """Of the decode rows, the attention of every layer as given."""

    class Given(Session):
        def output(self, call: Call) -> Any:
            return output(call)

    session = Given("model", NoRows())
    session.seen = P
    with torch.no_grad(), hooked(decoder.prompt.loaded.model, session):
        session.begin(N - P)
        ids = torch.tensor([IDS[P:]])
        return decoder.prompt.forward(ids, N, decoder.prompt.cache()).logits[0]


def test_the_tangent_is_a_difference_quotient(
    decoder: Decoder, evicted_at: dict[int, np.ndarray]
) -> None:
    calls = uncompressed.run(decoder.prompt, IDS[P:], 0).calls
    errors = [attend(c, evicted_at[i]) - attend(c, None) for i, c in enumerate(calls)]

    def moved(step: float) -> Any:
        def output(call: Call) -> Any:
            return attend(call, None) + step * errors[call.layer.index]

        return logits(decoder, output)

    still = moved(0)
    wanted = (moved(1e-3) - moved(-1e-3)) / 2e-3
    p = still.softmax(1)
    variance = (p * wanted.square()).sum(1) - (p * wanted).sum(1).square()
    shifted = (p * (p.log() - (still + wanted).log_softmax(1))).sum(1)
    found = carrying.measure(decoder, IDS, [evicted_at])
    # The model's norms work in float32, 6e-8 over the step; the quotient leaves out step ** 2.
    assert np.allclose(found["carried_variance"][0], variance / 2, rtol=2e-3, atol=1e-6)
    assert np.allclose(found["carried_kl"][0], shifted, rtol=2e-3, atol=1e-6)
    assert variance.mean() > 1e-3


def test_masked_is_the_running_model(decoder: Decoder, evicted_at: dict[int, np.ndarray]) -> None:
    seen = decoder.evict(Eviction(None, 1, evicted_at))
    found = carrying.measure(decoder, IDS, [evicted_at])["masked_kl"][0]
    # two orders of summation in a model whose norms work in float32
    assert np.allclose(found, seen.kl, rtol=1e-5, atol=1e-9)


def test_small_errors_arrive_as_the_running_model_says(decoder: Decoder) -> None:
    """One unit of the top layer loses one token in the last row: all measures are its KL."""
    one = np.full((LAYERS, 2, N), N, np.int32)
    one[-1, 1, 5] = N - 2
    found = carrying.measure(decoder, IDS, [dict(enumerate(one))])
    for name, values in found.items():
        # float64: nothing has changed but for the order of sums
        assert values[0, :-1] == pytest.approx(0, abs=1e-9), name
        # a linearisation: the curvature is left out
        assert values[0, -1] == pytest.approx(found["masked_kl"][0, -1], rel=0.2), name


def test_nothing_evicted_is_no_error(decoder: Decoder) -> None:
    none = dict(enumerate(np.full((LAYERS, 2, N), N, np.int32)))
    for name, values in carrying.measure(decoder, IDS, [none]).items():
        # as above
        assert values == pytest.approx(0, abs=1e-9), name


def test_soft_capping_is_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, attn_logit_softcapping=5.0,
    )  # fmt: skip
    other = Decoder(given(Gemma2ForCausalLM(config).eval()), IDS, P)
    with pytest.raises(UserError, match="soft-capped"):
        uncompressed.run(other.prompt, IDS[P:], 1)
    with pytest.raises(UserError, match="soft-capped"):
        carrying.measure(other, IDS, [dict(enumerate(np.full((2, 2, N), N, np.int32)))])


def test_few_processes_are_on_a_gpu_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one waits until a place is free, and places of two GPUs are different ones."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(carrying, "PROCESSES", 2)
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        first.close()

    monkeypatch.setattr("time.sleep", wait)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(carrying._place("cuda:0"))
        second.enter_context(carrying._place("cuda:0"))
        with carrying._place("cuda:1"), carrying._place("cpu"):
            assert not waited
        with carrying._place("cuda:0"):
            assert waited == [carrying.WAIT]
