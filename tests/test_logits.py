"""What moves the logits of a running model, on small random models."""

from __future__ import annotations

import numpy as np
import pytest

from h2osim.policies.text import parse
from h2osim.support.errors import UserError

torch = pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
transformers = pytest.importorskip(
    "transformers", reason="a running model needs the extra `record` (transformers)"
)

import measure_logits as logits  # noqa: E402
from statements.lipschitz import log10_product  # noqa: E402

from h2osim.closed_loop.caches import Eviction  # noqa: E402
from h2osim.closed_loop.decoding import Decoder  # noqa: E402
from h2osim.models.loading import given  # noqa: E402

torch.set_num_threads(1)
N, P = 30, 10
IDS = [int(t) for t in np.random.default_rng(1).integers(0, 61, N)]


@pytest.fixture(scope="module")
def loaded() -> object:
    config = transformers.LlamaConfig(
        vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=3, head_dim=12,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.LlamaForCausalLM(config).eval().double()
    for name, gain in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(gain, 0.5, 1.5)
    return given(model)


@pytest.fixture(scope="module")
def perturbed(loaded: object) -> logits.Perturbed:
    return logits.Perturbed(loaded, IDS, P)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["h2o", "streaming:sinks=1"])
def test_the_full_cache_with_the_errors_added_is_the_evicted_run(
    loaded: object, perturbed: logits.Perturbed, policy: str
) -> None:
    how = parse(policy)
    errors, evicted = perturbed.evict(how, 8)
    decoder = Decoder(loaded, IDS, P)  # type: ignore[arg-type]
    honest = decoder.log_probabilities(Eviction(how, 8))
    # float64, another order of sums
    assert torch.allclose(evicted.log_softmax(1), honest, atol=1e-12)
    # transformers' norms compute in float32 whatever the model's precision
    assert torch.allclose(perturbed.logits(errors), evicted, atol=2e-5)
    assert float((perturbed.logits({}) - evicted).abs().max()) > 1e-2
    # at the uncompressed run's inputs the errors are others
    inside, full = perturbed.evict(how, 8, closed=False)
    assert torch.allclose(full, perturbed.logits({}), atol=2e-5)
    assert torch.allclose(inside[0], errors[0], atol=1e-12)
    assert not torch.allclose(inside[2], errors[2], atol=1e-4)


def test_the_bound_holds_and_the_derivative_is_one(perturbed: logits.Perturbed) -> None:
    errors, evicted = perturbed.evict(parse("h2o"), 8)
    full = perturbed.logits({})
    bound = log10_product(*perturbed.factors(errors))
    assert 10**bound >= float((evicted - full).abs().max())
    whole = perturbed.derivative(errors)
    parts = sum(perturbed.derivative({i: error}) for i, error in errors.items())
    # linear but for norms that compute in float32
    assert torch.allclose(whole, parts, atol=1e-6)
    # the remainder shrinks with the square of the error; float32 norms leave 1e-6 of noise
    small = [1 / 4, 1 / 8]
    rest = [
        float((perturbed.logits({i: s * e for i, e in errors.items()}) - full - s * whole).norm())
        for s in small
    ]
    assert 3 < rest[0] / rest[1] < 5.5


def test_what_is_printed(
    perturbed: logits.Perturbed, capsys: pytest.CaptureFixture[str], tmp_path: object
) -> None:
    found = logits.measure(perturbed, parse("h2o"), 8)
    # 2e-5: norms compute in float32; the inequalities are of float64 sums
    assert found.identity < 2e-5 and found.log10_bound > np.log10(found.largest)
    assert (found.apart >= found.estimate - 1e-9).all()
    assert (found.kl <= np.minimum(found.width, found.width**2 / 8) + 1e-12).all()
    assert (found.distance >= abs(found.length - found.estimate) - 1e-9).all()
    assert len(logits.lines(found)) == 15
    quick = logits.measure(perturbed, parse("h2o"), 8, quick=True)
    # float32 norms, another order
    assert np.allclose(quick.estimate, found.estimate, atol=1e-6)
    assert len(logits.lines(quick)) == 14
    for words in (["--prompt-len", "256"], ["--policy", "future"], ["--text", f"{tmp_path}/none"]):
        with pytest.raises(SystemExit) as ended:
            logits.main(words)
        assert ended.value.code == 2 and capsys.readouterr().err.startswith("error: ")


def test_another_architecture_is_refused() -> None:
    config = transformers.GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)
    with pytest.raises(UserError, match="expected a Llama model"):
        logits.Perturbed(given(transformers.GPT2LMHeadModel(config)), [1, 2, 3], 1)
