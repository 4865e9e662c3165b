"""What is measured on the uncompressed run: against replays, and against the model itself."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from h2osim.closed_loop import uncompressed  # noqa: E402
from h2osim.closed_loop.caches import Eviction  # noqa: E402
from h2osim.closed_loop.decoding import Decoder  # noqa: E402
from h2osim.models.loading import given  # noqa: E402
from h2osim.replays.replaying import replay  # noqa: E402

POLICIES, N, P = ["h2o", "streaming", "tova"], 40, 12


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
        initializer_range=0.2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    return Decoder(given(model), np.random.default_rng(0).integers(0, 50, N).tolist(), P)


@pytest.fixture(scope="module")
def run(decoder: Decoder) -> uncompressed.Uncompressed:
    return uncompressed.run(decoder.prompt, decoder._rest[0].tolist(), 200)


def test_the_errors_are_those_of_a_replay(run: uncompressed.Uncompressed) -> None:
    assert run.trace is not None
    replays = {m: replay(run.trace, POLICIES, 8, measure=m) for m in ("error", "attention-error")}
    lasts = [one.values[:, :, 0] for one in replays["error"]["evicted_at"]]
    found = uncompressed.measure(run, lasts)
    for measure, names in {
        "error": ("output_error", "output_error_abs"), "attention-error": ("attention_error",)
    }.items():  # fmt: skip
        for name in names:
            wanted = replays[measure][name].mean(["layer", "unit"]).values[:, 0]
            # The trace's rows are rounded to float16.
            assert np.allclose(found[name], wanted, rtol=5e-3), name


def test_nothing_evicted_is_no_error(run: uncompressed.Uncompressed) -> None:
    found = uncompressed.measure(run, [np.full((4, 2, N), N, np.int32)])
    for name, values in found.items():
        # float32 norms inside the model: 6e-8 an operation
        assert np.allclose(values, name == "value_recall", atol=1e-6), name


def test_first_order_kl_is_the_kl_of_a_small_error(
    decoder: Decoder, run: uncompressed.Uncompressed
) -> None:
    """Each token alone is lost for one step, that with the least effect: then KL is quadratic."""
    masks = np.full((4, 2, N), N, np.int32)
    masks[2, 1, 5] = N - 2  # one unit loses one token, seen by the last row only
    found = uncompressed.measure(run, [masks])
    seen = decoder.evict(Eviction(None, 1, dict(enumerate(masks))))
    # as above; the gradient is a first-order estimate of a KL that is not small
    assert seen.kl[:-1] == pytest.approx(0, abs=1e-6)
    assert found["gradient_joint"][0] == pytest.approx(seen.kl.mean(), rel=0.35)
    assert found["gradient_token"][0] == pytest.approx(found["gradient_joint"][0], rel=1e-5)


def test_a_model_without_an_output_projection_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from h2osim.support.errors import UserError

    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    )
    other = Decoder(given(model.eval()), list(range(20)), 5)
    with pytest.raises(UserError, match=r"self_attn\.o_proj"):
        uncompressed.run(other.prompt, list(range(15)), 1)
