"""transformers renames keywords: ours are those of the release, and of the one before."""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra record")
transformers = pytest.importorskip("transformers", reason="needs the extra record")

from tiny_models import FAMILIES, family, tokens  # noqa: E402

import h2osim  # noqa: E402
from h2osim.closed_loop.caches import Eviction  # noqa: E402
from h2osim.closed_loop.decoding import Decoder  # noqa: E402
from h2osim.models.loading import given  # noqa: E402
from h2osim.policies.text import parse  # noqa: E402


def use(model: Any, out: Path) -> dict[str, Any]:
    """All that h2osim does with a model: recording a text, decoding, and the closed loop."""
    h2osim.record(model, tokens=tokens(10), out=out / "text")
    h2osim.record(model, tokens=tokens(6), generate=4, out=out / "written", store="both")
    seen = Decoder(given(model), tokens(12), 6).evict(Eviction(parse("tova"), 5))
    traces = [h2osim.open_trace(out / name) for name in ("text", "written")]
    found = {f"{t.name} {layer}": t.tensor(layer, "scores") for t in traces for layer in t.layers}
    return found | {"kl": seen.kl}


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_that_is_called_is_deprecated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A deprecated keyword warns for a year and then ends every recording."""
    monkeypatch.setattr(transformers.utils.logging, "set_verbosity_error", lambda: None)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    model = family(name)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        warnings.simplefilter("error", DeprecationWarning)
        use(model, tmp_path)
    assert not [one.message for one in caplog.records if "deprecat" in one.message.lower()]


def test_the_test_above_would_notice() -> None:
    model = family("llama")
    if given(model).cache_argument == "past_key_values":
        pytest.skip("this release of transformers has not renamed it yet")
    with pytest.warns(FutureWarning, match="`past_key_values` is deprecated"):
        model(torch.tensor([[3, 4]]), past_key_values=None)


@pytest.mark.parametrize("spelling", ["cache", "past_key_values"])
def test_either_name_of_the_cache_does(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose forward knows only this name, and gives its cache back under it."""
    model = family("llama")
    expected = use(model, tmp_path / "expected")
    forward, own = model.forward, given(model).cache_argument

    @functools.wraps(forward)
    def instead(*positional: Any, **named: Any) -> Any:
        assert named.keys() <= known.keys(), "an unknown keyword"
        if spelling in named:
            named[own] = named.pop(spelling)
        result = forward(*positional, **named)
        return SimpleNamespace(logits=result.logits, **{spelling: getattr(result, own)})

    signature = inspect.signature(forward)
    renamed = [
        p.replace(name=spelling) if p.name == own else p for p in signature.parameters.values()
    ]
    monkeypatch.setattr(instead, "__signature__", signature.replace(parameters=renamed), False)
    known = inspect.signature(instead).parameters
    monkeypatch.setattr(model, "forward", instead)
    assert given(model).cache_argument == spelling
    found = use(model, tmp_path / "found")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.array_equal(found[name], values), name
