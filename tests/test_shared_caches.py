"""Layers that attend to the keys of another one are one unit with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import PER_LAYER, odd
from tiny_models import make, squares, tokens

from h2osim import Trace, by_cache, open_trace, replay
from h2osim.models.recording import record
from h2osim.support.errors import UserError


@pytest.mark.parametrize("store", ["scores", "qk"])
def test_a_shared_cache_is_one_unit(store: str, tmp_path: Path) -> None:
    """Two caches of two layers each: their rows are those of both, head after head of a group."""
    trace = open_trace(record(odd("gemma4"), tokens=tokens(), out=tmp_path / "t", store=store))
    (merged,) = by_cache(trace)
    assert (merged.layers, merged.group_size, len(merged.kv_heads)) == ((0, 1), 4, 2)
    assert len(merged.units()) == 4
    for owner, other in ((0, 2), (1, 3)):
        a, b = squares(trace, owner), squares(trace, other)
        wanted = np.stack([a[0], a[1], b[0], b[1], a[2], a[3], b[2], b[3]])
        assert (squares(merged, owner) == wanted).all()
        assert np.array_equal(merged.tensor(owner, "v_norm1"), trace.tensor(owner, "v_norm1"))
    merged.verify()
    again = open_trace(merged.save(tmp_path / "merged"))
    again.verify()
    assert again.manifest["tokens"] == trace.manifest["tokens"]

    # One eviction for both layers is the replay of all their heads together.
    heads = np.concatenate([squares(trace, 0)[:2], squares(trace, 2)[:2]])
    single = Trace.from_scores(heads.astype(np.float16), group_size=4)
    found = replay(merged, ["h2o", "tova"], [4, 9])
    for policy in ("h2o", "tova"):
        a = found.sel(policy=policy, layer=0, unit=0)
        b = replay(single, policy, [4, 9]).sel(layer=0, unit=0).squeeze()
        assert np.array_equal(a["kept"], b["kept"]) and np.array_equal(a["mass"], b["mass"])
        assert np.array_equal(a["evicted_at"], b["evicted_at"])


def test_caches_of_one_and_of_several_layers_are_traces_of_their_own(tmp_path: Path) -> None:
    types = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = make(
        "Gemma4TextConfig",
        {**PER_LAYER, "num_hidden_layers": 4, "num_kv_shared_layers": 1, "layer_types": types},
    )
    trace = open_trace(record(model, tokens=tokens(), out=tmp_path / "t"))
    plain, shared = by_cache(trace)
    assert (plain.layers, plain.group_size) == ((0, 2), 2)
    assert (shared.layers, shared.group_size) == ((1,), 4)
    assert "2 layers a cache" in shared.name and plain.name == trace.name
    assert np.array_equal(plain.tensor(2, "scores"), trace.tensor(2, "scores"))
    part = open_trace(record(model, tokens=tokens(), out=tmp_path / "part", layers=[0, 3]))
    with pytest.raises(UserError, match="layer 3 attends to the keys of layer 1, which is not in"):
        by_cache(part)


def test_without_shared_caches_nothing_changes() -> None:
    scores = np.tril(np.ones((3, 4, 8, 8))) / np.arange(1, 9)[:, None]
    trace = Trace.from_scores(scores, group_size=2, prompt_len=3)
    (same,) = by_cache(trace)
    assert (same.layers, same.heads) == ((0, 1, 2), (0, 1, 2, 3))
    assert (same.group_size, same.prompt_len) == (2, 3)
    for layer in trace.layers:
        assert np.array_equal(same.tensor(layer, "scores"), trace.tensor(layer, "scores"))
