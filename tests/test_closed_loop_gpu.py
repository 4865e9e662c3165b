"""The closed loop on a real GPU. Skipped without one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
pytest.importorskip("transformers", reason="a running model needs the extra `record`")

import torch
from honest_decoder import MODELS, N, P, make, tokens
from test_closed_loop import ONLINE

import h2osim
from h2osim import cuda
from h2osim.bench import closed_loop
from h2osim.closed_loop import caches
from h2osim.closed_loop.caches import Eviction
from h2osim.closed_loop.decoding import Decoder
from h2osim.models.loading import given
from h2osim.models.placing import placed
from h2osim.policies.text import parse
from h2osim.traces.trace import Trace

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU for PyTorch")

EVICTIONS = [Eviction(parse(text), budget) for text in ONLINE for budget in (6, 11)]


@pytest.mark.parametrize("name", MODELS)
def test_a_gpu_decides_as_the_cpu_does(name: str) -> None:
    """Alone and in a batch. Angles of positions and norms are float32 in a float64 model too, so
    rows of the GPU and of the CPU differ by some 1e-7, and a few fall on the other side of a
    rounding to float16: by 2**-12 of a row at most, and 2**13 of its units of 2**-24. Where that
    changes an eviction, what follows differs as well: in few passes.
    """
    model, ids = make(name), tokens()
    expected = Decoder(given(model), ids, P).evict_each(EVICTIONS)
    decoder = Decoder(placed(given(model), "cuda"), ids, P)
    together = decoder.evict_each(EVICTIONS)
    others = 0
    for eviction, found, known in zip(EVICTIONS, together, expected, strict=True):
        for one in (found, decoder.evict(eviction)):
            pairs = [(one.layers[layer], here) for layer, here in known.layers.items()]
            if any((ours.evicted_at != here.evicted_at).any() for ours, here in pairs):
                others += 1
                continue
            heads = 4 // len(pairs[0][0].kept)
            for ours, here in pairs:
                assert np.abs(ours.kept - here.kept).max() <= heads * 2 * 2**13
            # some 10 nats a token here; 4e-5 of them was seen on an H200
            np.testing.assert_allclose(one.kl, known.kl, rtol=1e-4, atol=1e-5)
    print(f"{name}: of {2 * len(EVICTIONS)} passes {others} evict another token")
    assert others <= len(EVICTIONS) // 5


def test_decisions_are_those_of_the_engines_on_the_same_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows that a pass in float32 makes on the GPU, replayed by every engine there is."""
    rows: dict[int, list[Any]] = {}
    plain = caches.PolicyLayer.feed_packed

    def seen(self: Any, bits: Any, start: int, stop: int) -> None:
        rows.setdefault(id(self), []).append(bits.copy())
        plain(self, bits, start, stop)

    monkeypatch.setattr(caches.PolicyLayer, "feed_packed", seen)
    for text in ("h2o", "tova", "decay:gamma=.95", "roco"):
        rows.clear()
        decoder = Decoder(placed(given(make("gqa", double=False)), "cuda"), tokens(), P)
        found = decoder.evict(Eviction(parse(text), 7)).layers
        bits = np.stack([np.concatenate(some, axis=1) for some in rows.values()])
        trace = Trace.from_packed(bits, group_size=2)
        for engine in ("numba", "cuda") if cuda.available() else ("numba",):
            replayed = h2osim.replay(trace, text, 7, prompt_len=P, engine=engine)
            for layer, here in found.items():
                expected = replayed["evicted_at"].sel(layer=layer)[0, :, 0].values
                assert (here.evicted_at == expected).all(), (text, engine)


def test_memory_that_ends_makes_batches_smaller() -> None:
    """A GPU with room for the model and little more: fewer passes at a time, the same numbers."""
    model, ids = make("gqa", double=False), {"a": tokens(3, 120)}
    whole = h2osim.evaluate(model, ids, ONLINE, [9, 20], device="cuda")
    some = h2osim.evaluate(model, ids, ONLINE, [9, 20], device="cuda", batch=5)
    assert np.allclose(whole["kl"], some["kl"], rtol=1e-3)
    assert N < 120


def test_one_pass_has_no_goal_of_its_own_on_a_gpu() -> None:
    """Its goal is that of whole studies; one pass alone is measured all the same."""
    loaded = placed(given(make("gqa", double=False)), "cuda")
    lines = closed_loop.measure(loaded, tokens(), P, [parse("h2o")], 0.5, repeats=1)
    assert [line.goal for line in lines] == [None] * 3 and all(line.value > 0 for line in lines)
