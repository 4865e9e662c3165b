"""The closed loop in batches and blocks, and models whose heads share a cache in unusual ways."""

from __future__ import annotations

import gc
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run

pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
pytest.importorskip("transformers", reason="a running model needs the extra `record`")

import torch
from honest_decoder import MODELS, Honest, Letters, N, P, left, make, refused, tokens
from odd_models import LATENT, odd
from test_closed_loop import ONLINE

import h2osim
from h2osim.closed_loop import attention
from h2osim.closed_loop.attention import EvictingSession, PromptSession
from h2osim.closed_loop.caches import Eviction
from h2osim.closed_loop.decoding import Choice, Decoder, OutOfMemory, Prompt
from h2osim.engines.stepper import Stepper
from h2osim.models import loading
from h2osim.models.loading import given
from h2osim.models.rows import Call, Layer
from h2osim.policies.roles import ask
from h2osim.policies.text import parse
from h2osim.support.errors import UserError

TEXTS = [*ONLINE, "vatp:sinks=2"]  # whose values decide; with more sinks than budget they do not
EVICTIONS = [Eviction(parse(text), budget) for text in TEXTS for budget in (6, 11)]


def same(one: Any, other: Any, kl: float) -> None:
    """Both decided the same, and lose as much to within so many nats in every step."""
    for layer, found in one.layers.items():
        assert (found.evicted_at == other.layers[layer].evicted_at).all()
        assert (found.kept == other.layers[layer].kept).all()
        assert (found.masses == other.layers[layer].masses).all()
    assert np.abs(one.kl - other.kl).max() <= kl
    assert (one.top1 == other.top1).all() and (one.hits == other.hits).all()


# --- batches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_passes_at_once_are_the_passes_one_by_one(name: str) -> None:
    # A matrix product of more rows may sum in another order, which in float64 moves a KL by less
    # than 1e-12 and no row across a rounding to float16.
    decoder = Decoder(given(make(name)), tokens(), P)
    together = decoder.evict_each(EVICTIONS)
    assert len({one.kl.sum() for one in together}) > len(ONLINE)  # they are not all alike
    for eviction, found in zip(EVICTIONS, together, strict=True):
        same(found, decoder.evict(eviction), 1e-12)


def test_in_float32_passes_at_once_differ_by_rounding() -> None:
    decoder = Decoder(given(make("gqa", double=False)), tokens(4), P)
    for eviction, found in zip(EVICTIONS, decoder.evict_each(EVICTIONS), strict=True):
        same(found, decoder.evict(eviction), 1e-4)  # of log-probabilities near 10


def test_threads_feed_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(given(make("gqa")), tokens(), P)
    expected = decoder.evict_each(EVICTIONS)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for one, other in zip(decoder.evict_each(EVICTIONS), expected, strict=True):
        same(one, other, 0)


def test_a_pass_leaves_no_keys_behind() -> None:
    """Policies that ask for values held those of the whole batch until garbage was collected."""
    decoder = Decoder(given(make("gqa")), tokens(), P)

    def alive() -> int:
        with warnings.catch_warnings():  # of objects that warn when they are looked at
            warnings.simplefilter("ignore")
            return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())

    decoder.evict_each(EVICTIONS)
    gc.collect()
    gc.disable()
    try:
        before = alive()
        decoder.evict_each(EVICTIONS)
        assert alive() == before
    finally:
        gc.enable()


def test_a_study_in_batches_finds_the_same(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    texts = {"a": tokens(5), "b": tokens(6, N - 4)}
    sizes: list[int] = []
    plain = Decoder.evict_each

    def counted(self: Decoder, evictions: Any, *more: Any) -> Any:
        sizes.append(len(evictions))
        return plain(self, evictions, *more)

    monkeypatch.setattr(Decoder, "evict_each", counted)

    def study(**more: Any) -> Any:
        sizes.clear()
        return h2osim.evaluate(make("gqa"), texts, ["h2o", "tova"], [6, 9, 1.0],
                               prompt_len=P, **more)  # fmt: skip

    alone, four = study(), study(batch=4)
    assert sizes == [3, 3, 3, 3]  # six passes a text, as evenly as it goes
    for name in alone.data_vars:
        assert np.allclose(alone[name], four[name], rtol=1e-9), name
    assert (four["kl"].sel(budget=1.0) == 0).all()  # nothing was evicted
    split = np.array([[4, 9], [7, 12]])
    one = h2osim.evaluate(make("gqa"), texts, "tova", [split], prompt_len=P)
    two = h2osim.evaluate(make("gqa"), texts, ["h2o", "tova"], [6, split], prompt_len=P, batch=4)
    assert np.allclose(one["kl"][:, 0, 0], two["kl"][:, 1, 1], rtol=1e-9)
    assert "batch: found 0" in refused(make("gqa"), texts, "tova", 5, batch=0)
    monkeypatch.setattr(
        loading, "load", lambda name: replace(given(make("gqa")), tokenizer=Letters())
    )
    (tmp_path / "t.txt").write_text("abcabdabeabfabgabhab" * 2)
    command = ["evaluate", "any", "--text", tmp_path / "t.txt", "-f", "json", "--batch"]
    assert run(*command, "9").code == 0 and sizes[-1] == 9
    ended = run(*command, "none")
    assert ended.code == 2 and "--batch: found 'none', expected auto or a number" in ended.err


def test_passes_write_side_by_side_what_each_writes_alone() -> None:
    """Greedy and sampled, in the session that each step of decoding goes on with; float64."""
    prompt = Prompt(given(make("window")), tokens()[:P])
    for choice in (Choice(), Choice(sample=True, seed=4)):
        alone = [prompt.generate(one, 25, choice) for one in EVICTIONS[:6]]
        assert prompt.generate_each(EVICTIONS[:6], 25, choice) == alone
        assert len(set(map(tuple, alone))) > 1
    plan, ids = ["h2o", "tova", "recency"], {"a": tokens(5)}
    calls: list[int] = []
    plain = Prompt.generate_each

    def counted(self: Prompt, evictions: Any, *rest: Any) -> Any:
        calls.append(len(evictions))
        return plain(self, evictions, *rest)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Prompt, "generate_each", counted)
        options: dict[str, Any] = {"generate": 9, "prompt_len": P}
        many = h2osim.evaluate(make("gqa"), ids, plan, [6, 9], **options)
        one = h2osim.evaluate(make("gqa"), ids, plan, [6, 9], batch=1, **options)
    assert calls == [0, 6, 0, *[1] * 6]
    assert (many["generated"] == one["generated"]).all()
    assert np.allclose(many["kl"], one["kl"], rtol=1e-9)


def test_where_memory_does_not_suffice_batches_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, sizes, room = Decoder.evict_each, [], 2

    def scarce(self: Decoder, evictions: Any, *more: Any) -> Any:
        sizes.append(len(evictions))
        if len(evictions) > room:
            raise OutOfMemory("no room")
        return plain(self, evictions, *more)

    monkeypatch.setattr(Decoder, "evict_each", scarce)
    ids, model = {"a": tokens(5), "b": tokens(6)}, make("gqa")
    few = h2osim.evaluate(model, ids, ["h2o", "tova"], [6, 9, 14], prompt_len=P, batch=6)
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1] and few["kl"].notnull().all()
    room = 0
    assert "no room" in refused(model, ids, "h2o", 6, prompt_len=P, batch=6)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
              RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"),
              RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")]
)  # fmt: skip
def test_memory_that_ends_anywhere_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(given(make("gqa")), tokens(), P)
    for place, name in ((EvictingSession, "_feed"), (Decoder, "_compared")):
        with monkeypatch.context() as patched:

            def fail(*rest: Any) -> None:
                raise error

            patched.setattr(place, name, fail)
            with pytest.raises(OutOfMemory, match="out of memory with 34 tokens in 2 passes") as e:
                decoder.evict_each(EVICTIONS[:2])
            assert "\n" not in str(e.value)
    with monkeypatch.context() as patched:
        patched.setattr(Decoder, "_compared", lambda *rest: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.evict_each(EVICTIONS[:2])


@pytest.mark.parametrize("name", ["kimi_linear", "zamba2"])
def test_a_model_that_keeps_more_than_keys_runs_its_passes_one_by_one(name: str) -> None:
    ids = {"a": tokens(8, 30)}
    alone, asked = (
        h2osim.evaluate(odd(name), ids, ["h2o", "tova"], [6], prompt_len=P, batch=b) for b in (1, 2)
    )
    assert (alone["kl"] == asked["kl"]).all() and (alone["kl"] > 0).all()


# --- blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gqa", "window", "sinks"])
@pytest.mark.parametrize("rows", [1, 5])
def test_blocks_of_rows_are_the_whole(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Decoder(given(make(name)), tokens(), P).evict_each(EVICTIONS[::3])
    monkeypatch.setattr(attention, "BLOCK_BYTES", rows * 4 * 4 * N)
    monkeypatch.setattr(attention, "PROMPT_BYTES", 0)  # the prompt's rows are made again, too
    decoder = Decoder(given(make(name)), tokens(), P)
    assert len(list(decoder.prompt.read.rows(0))) == -(-P // (rows * N // P))
    for eviction, found in zip(EVICTIONS[::3], whole, strict=True):
        same(decoder.evict(eviction), found, 1e-12)


def test_rows_of_a_prompt_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * P * (P + 1)  # four heads, float16, packed
    kept = Decoder(given(make("gqa")), tokens(), P).prompt.read
    for room, layers in ((size - 1, 0), (size, 1), (2 * size - 1, 1), (2 * size, 2)):
        monkeypatch.setattr(attention, "PROMPT_BYTES", room)
        some = Decoder(given(make("gqa")), tokens(), P).prompt.read
        assert (len(some._kept), len(some._calls)) == (layers, 2 - layers)
        for layer in range(2):
            ((_, p, bits),) = some.rows(layer)
            ((_, _, expected),) = kept.rows(layer)
            assert p == P and (bits == expected).all()


def test_a_row_that_loses_all_but_its_smallest_weights() -> None:
    """exp(-200) is 0 in float32, but what is cached still has a softmax."""
    q, v = torch.ones(1, 4, 1), torch.arange(4.0).view(1, 4, 1)
    k = torch.tensor([200.0, 1.0, 0.5, 2.0]).view(1, 4, 1)
    layer = Layer(0, 1, 1, 1, 1, 1.0, None, None)
    prompt = PromptSession("m")
    prompt.seen = 1
    gone = Eviction(None, 1, {0: np.array([[0, 4, 4, 4]], np.int32)})
    session = EvictingSession("m", prompt, [gone], 4, "group")
    found = session.output(Call(layer, q[:, 1:], k, v, 1, 0, None, None))[:, 0, 0]
    for t, o in enumerate(found, 1):
        expected = torch.softmax(k[0, 1 : t + 1, 0].double(), 0) @ v[0, 1 : t + 1, 0].double()
        assert float(o) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.nightly
def test_a_long_text_needs_memory_for_blocks_only(tmp_path: Path) -> None:
    """At 12288 tokens the rows of a layer of four heads would take 2.4 GB in float32."""
    script = tmp_path / "long.py"
    script.write_text(
        "import resource, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from honest_decoder import SIZES, make, tokens\n"
        "from h2osim.closed_loop.caches import Eviction\n"
        "from h2osim.closed_loop.decoding import Decoder\n"
        "from h2osim.models.loading import given\n"
        "from h2osim.policies.text import parse\n"
        "SIZES['max_position_embeddings'] = 16384\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "loaded = given(make('gqa', double=False))\n"
        "Decoder(loaded, tokens(1, 99), 9).evict(Eviction(parse('h2o'), 20))\n"
        "before, n = peak(), 12288\n"
        "found = Decoder(loaded, tokens(1, n), n // 3).evict(Eviction(parse('h2o'), n // 10))\n"
        "assert found.kl.mean() > 0\n"
        "print(peak() - before)\n"
    )
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    print(f"12288 tokens, 4 heads: {float(ended.stdout):.0f} MB")
    assert float(ended.stdout) < 700  # a mask of bool [rows, keys], made by transformers, is 100 MB


# --- which heads share a cache ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["jetmoe", *LATENT])
def test_units_are_those_of_a_recording(name: str, tmp_path: Path) -> None:
    """Below the first layer nothing is evicted, so its rows and decisions are a replay's."""
    ids, model = tokens(8, 30), odd(name)
    found = Decoder(given(model), ids, P)
    trace = h2osim.open_trace(h2osim.record(model, tokens=ids, out=tmp_path / "t"))
    first = found.prompt.layers[0]
    for share in ("group", "head", "layer"):
        found.prompt.share = share
        replayed = h2osim.replay(trace, "tova", 7, prompt_len=P, share=share)
        here = found.evict(Eviction(parse("tova"), 7))
        expected = replayed["evicted_at"].sel(layer=first)[0, :, 0]
        assert (here.layers[first].evicted_at == expected.values).all()
        assert found.prompt.units(first) == replayed.sizes["unit"]
    found.prompt.share = "group"
    vatp = found.evict(Eviction(parse("vatp:sinks=2"), 7)).layers[first]  # asks for values
    assert vatp.evicted_at.shape == here.layers[first].evicted_at.shape or name == "jetmoe"


@pytest.mark.parametrize("text", ["tova", "vatp:sinks=2"])
def test_a_latent_cache_loses_the_token_for_all_heads(text: str) -> None:
    """DeepSeek's heads make their keys from one cached vector; each was evicted for itself."""
    model, ids = odd("deepseek_v3").double(), tokens(8, 30)
    honest = Honest(model, text, 7, P, 30, "layer")
    expected = honest.run(ids)
    decoder = Decoder(given(model), ids, P)
    logits, found = decoder.decode(Eviction(parse(text), 7))
    assert honest.left == {key: t for key, t in left(found).items() if t < 30}
    assert (torch.log_softmax(logits, dim=1) - expected).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["jetmoe", *LATENT])
def test_bytes_are_those_of_the_models_own_cache(name: str) -> None:
    ids, model = tokens(8, 30), odd(name)
    full = h2osim.evaluate(model, {"a": ids}, ["full", "tova"], [7], prompt_len=P)
    prompt = Decoder(given(model), ids, P).prompt
    whole = 0
    for layer in prompt.layers:
        kept = prompt.cache().layers[layer]
        whole += sum(x.numel() for x in (kept.keys, kept.values)) // P * 2  # float16, a token
    held = np.arange(P, 30).mean()  # keys before each step
    units = sum(map(prompt.units, prompt.layers))
    assert full["cached"].values.ravel() == pytest.approx([units * held, units * 7])
    assert full["cache_bytes"].values.ravel() == pytest.approx([whole * held, whole * 7])


def test_a_rule_says_what_rows_may_attend() -> None:
    for text in ("h2o-mask", "h2o-lmeval", "h2o"):
        stepper = Stepper(text, [3, 5], prompt_len=4, heads=2)
        found, rule = stepper.visible(6, 11), parse(text).policy.rules()
        for unit, k in enumerate((3, 5)):
            for t in range(6, 11):
                for j in range(t + 1):
                    known = {**parse(text).numbers(k), "k": k, "p": 4, "n": 0, "heads": 2}
                    known |= {"t": t, "pos": j, "age": t - j}
                    expected = "visible" not in rule or ask(rule, "visible", known)
                    assert found[unit, t - 6, j] == expected, (text, unit, t, j)


def test_a_model_that_cannot_be_batched_says_what_its_attention_saw() -> None:
    decoder = Decoder(given(make("gqa")), tokens(), P)
    session = decoder.prompt.session(EVICTIONS[:2], N, None)
    with pytest.raises(UserError, match="layer 0 sees a batch of 1 sequences, expected 2"):
        decoder.prompt.run(session, torch.tensor([tokens()[P:]]), decoder.prompt.cache())
