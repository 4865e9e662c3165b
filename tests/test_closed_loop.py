"""The closed loop against an honest decoder that goes token by token and drops keys and values."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run

import h2osim
from h2osim.attention.triangle import tri
from h2osim.closed_loop.statistics import (
    can_tell,
    holm,
    mean_interval,
    paired_p,
    ties_with_best,
)
from h2osim.engines import naive
from h2osim.engines.request import Job
from h2osim.policies.registry import all_policies
from h2osim.policies.roles import arguments
from h2osim.policies.text import parse
from h2osim.replays.results import check
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

torch = pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
transformers = pytest.importorskip(
    "transformers", reason="a running model needs the extra `record` (transformers)"
)

from transformers import AttentionInterface, AttentionMaskInterface  # noqa: E402
from transformers.masking_utils import sdpa_mask  # noqa: E402

from h2osim.closed_loop.attention import Eviction  # noqa: E402
from h2osim.closed_loop.decoding import Decoder  # noqa: E402
from h2osim.models import layers, loading  # noqa: E402
from h2osim.models.loading import given  # noqa: E402

torch.set_num_threads(1)
N, P = 34, 9
ONLINE = [
    name
    for name, policy in all_policies().items()
    if not policy.oracle and not policy.readmits
]
SIZES: dict[str, Any] = dict(
    vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, head_dim=12,
    max_position_embeddings=128, initializer_range=0.7,
)  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mha": ("Llama", "Llama", {"num_attention_heads": 4, "num_key_value_heads": 4}),
    "gqa": ("Llama", "Llama", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mqa": ("Llama", "Llama", {"num_attention_heads": 4, "num_key_value_heads": 1}),
    "window": (
        "Mistral",
        "Mistral",
        {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 13},
    ),
    "softcap": (
        "Gemma2",
        "Gemma2",
        {
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 11,
            "attn_logit_softcapping": 4.0, "query_pre_attn_scalar": 12,
        },
    ),
    "sinks": (
        "GptOss",
        "GptOss",
        {
            "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 11,
            "num_local_experts": 2, "num_experts_per_tok": 1,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
}  # fmt: skip


def make(name: str, double: bool = True) -> Any:
    """A small randomly initialised model with peaked attention."""
    config_name, model_name, more = MODELS[name]
    config = getattr(transformers, f"{config_name}Config")(**{**SIZES, **more})
    torch.manual_seed(3)
    model = getattr(transformers, f"{model_name}ForCausalLM")(config).eval()
    if name == "sinks":
        model.set_experts_implementation("eager")  # the other has no float64
        for layer in model.model.layers:
            torch.nn.init.normal_(layer.self_attn.sinks, 0, 2)
    return model.double() if double else model.float()


def tokens(seed: int = 1, n: int = N) -> list[int]:
    return [int(t) for t in np.random.default_rng(seed).integers(0, 61, n)]


class Honest:
    """Decodes token by token; the model keeps no cache, each layer's own does, and it really drops.

    observed: every row over all tokens, from keys set aside for the policy to look at and never
    attended; the policy is the naive engine, run anew over the rows so far.
    """

    def __init__(self, model: Any, text: str, budget: int, prompt_len: int, n: int, share: str):
        self.model, self.configured, self.share = model, parse(text), share
        self.budget, self.prompt_len, self.n = budget, prompt_len, n
        self.caches: dict[int, list[list[int]]] = {}
        self.store: dict[int, dict[int, tuple[Any, Any]]] = {}
        self.rows: dict[int, list[Any]] = {}
        self.left: dict[tuple[int, int, int], int] = {}
        self.t = 0

    def attend(
        self, module: Any, query: Any, key: Any, value: Any, mask: Any, **more: Any
    ) -> tuple[Any, None]:
        layer, t = module.layer_idx, self.t
        q, k, v = query[0, :, -1], key[0, :, -1], value[0, :, -1]
        heads, kv_heads = q.shape[0], k.shape[0]
        units = {"group": kv_heads, "head": heads, "layer": 1}[self.share]
        caches = self.caches.setdefault(layer, [[] for _ in range(units)])
        store = self.store.setdefault(layer, {})
        store[t] = (k, v)
        scale = more.get("scaling") or q.shape[1] ** -0.5
        window = more.get("sliding_window") or self.n
        everything = range(max(0, t - window + 1), t + 1)
        full = np.zeros((heads, t + 1))
        output = q.new_zeros(heads, v.shape[1])
        for cache in caches:
            cache.append(t)
        for h in range(heads):
            g = h * kv_heads // heads

            def softmax(tokens: list[int], h: int = h, g: int = g) -> Any:
                x = torch.stack([store[j][0][g] for j in tokens]) @ q[h] * scale
                cap, sinks = more.get("softcap"), more.get("s_aux")
                x = torch.tanh(x / cap) * cap if cap else x
                if sinks is None:
                    return torch.softmax(x, dim=0)
                return torch.softmax(torch.cat([x, sinks[h : h + 1].to(x.dtype)]), dim=0)[:-1]

            full[h, list(everything)] = softmax(list(everything)).numpy()
            attended = [j for j in self.attended(layer, h * units // heads, t) if j in everything]
            values = torch.stack([store[j][1][g] for j in attended])
            output[h] = softmax(attended) @ values
        self.rows.setdefault(layer, []).append(full)
        if t >= self.prompt_len - 1:
            self.evict(layer, t, heads, heads // kv_heads)
        return output[None, None], None

    def attended(self, layer: int, unit: int, t: int) -> list[int]:
        rule, found = self.configured.policy.visible, self.caches[layer][unit]
        if rule is None or t < self.prompt_len:
            return found
        values = {**self.configured.numbers(self.budget), "k": self.budget, "p": self.prompt_len}
        names = arguments(rule)
        known = [{**values, "t": t, "pos": j, "age": t - j} for j in found]
        return [j for j, one in zip(found, known, strict=True) if rule(*[one[n] for n in names])]

    def evict(self, layer: int, t: int, heads: int, group: int) -> None:
        bits = np.zeros((1, heads, tri(t + 2)), np.uint16)
        for row, full in enumerate(self.rows[layer]):
            bits[0, :, tri(row) : tri(row + 1)] = full.astype(np.float16).view(np.uint16)
        bits[0, :, tri(t + 1)] = 0x3C00  # a row more, so that the engine decodes one; never read
        sizes = [v.abs().sum(1).numpy() for _, v in self.store[layer].values()]
        norms = np.stack([*sizes, np.ones(heads // group)], axis=1)
        trace = Trace.from_packed(bits, group_size=group, v_norm1=norms)
        for u, unit in enumerate(trace.units(self.share)):
            job = Job(unit, self.configured, self.budget, min(self.prompt_len, t + 1))
            gone, cache = naive.run(job).evicted_at, self.caches[layer][u]
            self.left |= {(layer, u, j): t for j in cache if gone[j] <= t}
            cache[:] = [j for j in cache if gone[j] > t]

    def run(self, ids: list[int]) -> Any:
        """Log-probabilities after each decode step."""
        AttentionInterface.register("honest", self.attend)
        AttentionMaskInterface.register("honest", sdpa_mask)
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("honest")
        found = []
        with torch.no_grad():
            for self.t, token in enumerate(ids):
                result = self.model(
                    input_ids=torch.tensor([[token]]),
                    position_ids=torch.tensor([[self.t]]),
                    use_cache=False,
                )
                found.append(torch.log_softmax(result.logits[0, -1], dim=0))
        self.model.set_attn_implementation(before)
        return torch.stack(found[self.prompt_len :])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text", ["h2o", "tova", "streaming:sinks=2", "vatp"])
def test_a_pass_is_decoding_with_a_cache_that_drops(name: str, text: str) -> None:
    model, ids, budget = make(name), tokens(), 8
    honest = Honest(model, text, budget, P, N, "group")
    expected = honest.run(ids)
    decoder = Decoder(given(model), ids, P)
    logits, found = decoder.decode(Eviction(parse(text), budget))
    assert (torch.log_softmax(logits, dim=1) - expected).abs().max() < 1e-9
    assert honest.left == left(found)
    # The pass does lose something, or the test could not tell.
    assert decoder.evict(Eviction(parse(text), budget)).kl.max() > 1e-4


def left(found: dict[int, Any]) -> dict[tuple[int, int, int], int]:
    """The step after which each evicted token is gone: by layer, unit and token."""
    return {
        (layer, u, j): int(t)
        for layer, here in found.items()
        for u, gone in enumerate(here.evicted_at)
        for j, t in enumerate(gone)
        if t < N
    }


@pytest.mark.parametrize("text", ONLINE)
def test_every_online_policy_runs_as_it_is(text: str) -> None:
    model, ids = make("gqa"), tokens(2)
    honest = Honest(model, text, 7, P, N, "group")
    expected = honest.run(ids)
    logits, found = Decoder(given(model), ids, P).decode(Eviction(parse(text), 7))
    assert honest.left == left(found)
    assert (torch.log_softmax(logits, dim=1) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("share", ["head", "layer"])
def test_heads_that_share_a_cache_lose_the_same_keys(share: str) -> None:
    model, ids = make("gqa"), tokens(3)
    honest = Honest(model, "tova", 8, P, N, share)
    expected = honest.run(ids)
    logits, found = Decoder(given(model), ids, P, share).decode(Eviction(parse("tova"), 8))
    assert honest.left == left(found)
    assert (torch.log_softmax(logits, dim=1) - expected).abs().max() < 1e-9


def test_in_float32_the_decoder_is_close() -> None:
    # Two orders of summation differ by some float32 rounding of logits near 10; a row that rounds
    # to another float16 could also change a decision, which did not happen here.
    model, ids = make("gqa", double=False), tokens(4)
    honest = Honest(model, "h2o", 8, P, N, "group")
    expected = honest.run(ids)
    logits, found = Decoder(given(model), ids, P).decode(Eviction(parse("h2o"), 8))
    assert honest.left == left(found)
    assert (torch.log_softmax(logits, dim=1) - expected).abs().max() < 1e-3


@pytest.mark.parametrize("name", MODELS)
def test_a_budget_of_all_tokens_loses_nothing(name: str) -> None:
    model, ids = make(name, double=False), tokens(5)
    found = h2osim.evaluate(model, {"a": ids}, ["h2o", "tova"], [1.0, 6], prompt_len=P)
    assert (found["kl"].sel(budget=1.0) == 0).all()
    assert (found["top1"].sel(budget=1.0) == 1).all()
    assert (found["nll"].sel(budget=1.0) == found["full_nll"]).all()
    assert (found["kl"].sel(budget=6.0) > 0).all()
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor([ids])).logits[0], dim=1)
    plain = -log_p[torch.arange(P, N - 1), torch.tensor(ids[P + 1 :])].mean()
    assert abs(float(found["full_nll"][0]) - float(plain)) < 1e-4  # another order of summation


def test_recall_and_cached_keys_are_what_the_evictions_say() -> None:
    ids = {"a": tokens(6), "b": tokens(7, N - 5)}
    found = h2osim.evaluate(make("gqa"), ids, ["tova", "full"], [5, 0.5], prompt_len=P, steps=True)
    assert dict(found.sizes) == {
        "text": 2, "policy": 2, "budget": 2, "layer": 2, "unit": 2, "decode_step": N - P
    }  # fmt: skip
    check(found)
    kept, mass = (found[name].sum(["layer", "unit"]) for name in ("kept", "mass"))
    assert (found["recall"] == kept / mass).all()
    assert (found["recall"].sel(policy="full") == 1).all()
    # tova holds 5 keys before each step; full holds t
    assert (found["cached"].sel(policy="tova", budget=5.0) == 4 * 5).all()
    assert float(found["cached"].sel(policy="full", text="a")[0]) == 4 * np.arange(P, N).mean()
    steps = found["kl_step"].mean("decode_step")
    assert np.allclose(steps, found["kl"])  # the mean of another shape
    assert found["tokens"].sel(budget=0.5).values.tolist() == [17, 14]


def test_only_some_layers_evict() -> None:
    model, ids = make("gqa"), {"a": tokens(8)}
    both = h2osim.evaluate(model, ids, "tova", 5, prompt_len=P)
    one = h2osim.evaluate(model, ids, "tova", 5, prompt_len=P, layers=[1])
    assert one["layer"].values.tolist() == [1]
    assert 0 < float(one["kl"].item()) != float(both["kl"].item())


def refused(*arguments: Any, **more: Any) -> str:
    with pytest.raises(UserError) as error:
        h2osim.evaluate(*arguments, **more)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_run_is_refused_in_a_line() -> None:
    model, ids = make("gqa"), {"a": tokens(9)}
    assert "knows the future" in refused(model, ids, "future", 5)
    assert "knows the future" in refused(model, ids, "topk", 5)
    assert "expected 1 to 34 tokens" in refused(model, ids, "tova", 35)
    assert "expected 1 to 32 for text a of 34 tokens" in refused(
        model, ids, "tova", 5, prompt_len=33
    )
    assert "found 34 tokens, expected at least 40" in refused(model, ids, "tova", 5, n_tokens=40)
    assert "expected attention layers" in refused(model, ids, "tova", 5, layers=[7])
    assert "found token id 61" in refused(model, {"a": [61] * 9}, "tova", 5)
    assert "no text given" in refused(model, {}, "tova", 5)
    assert "each may be given once" in refused(model, ids, ["tova", "tova"], 5)
    assert "share: found 'all'" in refused(model, ids, "tova", 5, share="all")
    assert "context" in refused(model, {"a": [1] * 129}, "tova", 5)


def test_a_layer_on_another_layers_keys_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = layers.probe
    monkeypatch.setattr(
        "h2osim.closed_loop.decoding.probe",
        lambda *x: (plain(*x)[0], replace(plain(*x)[1], cache_of=0)),
    )
    assert "layer 1 attends to the keys of layer 0" in refused(
        make("gqa"), {"a": tokens(9)}, "tova", 5
    )


def test_memory_that_does_not_suffice_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("gqa")
    before = model.forward

    def forward(input_ids: Any, *rest: Any, **more: Any) -> Any:
        if input_ids.shape[1] > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return before(input_ids, *rest, **more)

    monkeypatch.setattr(model, "forward", forward)
    model.forward.__signature__ = inspect.signature(before)
    assert "out of memory with 34 tokens" in refused(model, {"a": tokens(9)}, "tova", 5)


# --- the command line ------------------------------------------------------------------------


class Letters:
    """A tokenizer that needs no vocabulary file."""

    def __call__(self, text: str, **more: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) % 61 for c in text]}


def test_the_command_prints_a_table_with_intervals_and_draws(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = replace(given(make("gqa")), tokenizer=Letters())
    monkeypatch.setattr(loading, "load", lambda name: loaded)
    texts = []
    for i in range(3):
        texts.append(tmp_path / f"text{i}.txt")
        texts[-1].write_text("".join(chr(97 + t % 26) for t in tokens(20 + i, 40)))
    command = ["evaluate", "any", "--text", *texts, "--policies", "h2o,tova"]
    ended = run(*command, "--budgets", "10%,20%", "--plot", tmp_path / "kl.png")
    assert ended.code == 0, ended.err
    assert "KL from the full cache, nats a token, 3 texts" in ended.out
    assert "10 %" in ended.out and "20 %" in ended.out and "[" in ended.out
    assert (tmp_path / "kl.png").stat().st_size > 5000
    one = run("evaluate", "any", "--text", texts[0], "-p", "tova", "-b", "0.2", "-f", "json")
    (record,) = json.loads(one.out)
    assert record["low"] is None and record["kl"] > 0 and record["best"] is None
    assert "no test, texts or policies are too few" in run(*command).out.replace("\n", " ")
    assert "one text, so no interval" in run("evaluate", "any", "--text", texts[0]).out
    for more in (["-b", "all"], ["--prompt-len", "x"], ["--text", tmp_path / "none"], ["-p", "?"]):
        ended = run(*command, *more)
        assert ended.code == 2 and ended.err.count("\n") == 1, ended.err


def test_a_pass_is_timed_against_the_plain_one(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = replace(given(make("gqa", double=False)), tokenizer=Letters())
    monkeypatch.setattr(loading, "load", lambda name: loaded)
    text = tmp_path / "text.txt"
    text.write_text("".join(chr(97 + t % 26) for t in tokens(20, 40)))
    command = ["bench", "closed-loop", "--model", "any", "--text", text, "--n", "40"]
    command += ["--prompt-len", "9", "--repeats", "1", "-p", "h2o"]
    lines = json.loads(run(*command, "--json").out)
    plain, evicted, ratio = (line["value"] for line in lines)
    assert ratio == pytest.approx(evicted / plain) and lines[2]["goal"] == 2
    for more, said in (
        (["--device", "tpu"], "device 'tpu': expected cpu, cuda or cuda:1"),
        (["-b", "1,2"], "--budget: found '1,2', expected one"),
        (["-p", "future"], "knows the future"),
        (["--prompt-len", "39"], "prompt length 39: expected 1 to 38"),
    ):
        ended = run(*command, *more)
        assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1, ended.err


# --- statistics ------------------------------------------------------------------------------


def test_one_text_has_no_interval() -> None:
    found = mean_interval(np.array([0.3]), geometric=True)
    assert found.mean == pytest.approx(0.3)  # exp(log x)
    assert np.isnan(found.low) and np.isnan(found.high)


def test_an_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for i in range(60):
        found = mean_interval(rng.lognormal(0, 0.5, 30), geometric=True, seed=i)
        hits += found.low <= 1.0 <= found.high
    assert 51 <= hits <= 60


def test_paired_p_counts_sign_flips() -> None:
    a, b = np.exp([1.0, 2, 3, 4, 5]), np.exp([0.0, 1, 2, 3, 4])
    assert paired_p(a, b) == 2 / 2**5
    assert paired_p(a, a) == 1.0


def test_holm_steps_down() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": 0.03, "c": 0.06, "b": 0.06}


def test_few_texts_tell_nothing() -> None:
    a = np.exp(np.arange(6.0))
    assert not can_tell(5, 2) and can_tell(6, 2)  # 2 / 2**5 is above .05, 2 / 2**6 below
    assert not can_tell(6, 3) and not can_tell(9, 1)
    assert ties_with_best({"a": a[:5], "b": 9 * a[:5]}) == {"a", "b"}
    assert ties_with_best({"a": a, "b": 9 * a}) == {"a"}


def test_ties_are_ties() -> None:
    rng = np.random.default_rng(1)
    base = rng.lognormal(0, 1, 12)
    losses = {"best": base, "same": base * rng.lognormal(0.001, 0.2, 12), "worse": base * 3}
    assert ties_with_best(losses) == {"best", "same"}
