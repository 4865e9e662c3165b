"""Certificates: written, checked, and no number in them can be changed unnoticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from h2osim import Trace, UserError
from h2osim.optima.certificate import save_certificate
from h2osim.optima.certifying import certify, digest
from h2osim.optima.solving import optimum
from h2osim.traces.synthetic import synth

Content = tuple[dict[str, str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def trace() -> Trace:
    return synth("powerlaw", 48, seed=2)


@pytest.fixture(scope="module")
def content(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Content:
    path = tmp_path_factory.mktemp("certificate") / "whole.safetensors"
    found = optimum(trace, [4, 12], prompt_len=6, method="exact")
    return read(save_certificate(found, trace, path))


def read(path: Path) -> Content:
    with safe_open(path, framework="numpy") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def write(path: Path, metadata: dict[str, str], tensors: dict[str, Any]) -> Path:
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, metadata=metadata)
    return path


def test_a_result_is_certified(trace: Trace, tmp_path: Path) -> None:
    for method, gap in (("exact", 0.0), ("bracket", 1e-2)):
        found = optimum(trace, [3, 10, 48], method=method, gap=1e-2)
        checked = certify(save_certificate(found, trace, tmp_path / "c.safetensors"), trace)
        assert len(checked) == found["recall"].size
        for one in checked:
            at = found.sel(layer=one.layer, unit=one.index, budget=one.budget)
            assert (one.kept, one.bound) == (int(at["kept"]), int(at["bound"]))
            assert one.kept / one.mass == float(at["recall"]) and one.gap <= gap
    assert list(tmp_path.iterdir()) == [tmp_path / "c.safetensors"]


@pytest.mark.parametrize("share", ["head", "group", "layer"])
def test_units_are_those_of_the_certificates_share(share: str, tmp_path: Path) -> None:
    """Of four heads: four units, two or one, each with the mass of its own heads."""
    rows = np.tril(np.random.default_rng(0).gamma(0.3, size=(1, 4, 24, 24)) + 1e-3)
    four = Trace.from_scores(rows / rows.sum(-1, keepdims=True), group_size=2)
    found = optimum(four, [5], share=share, method="exact")
    checked = certify(save_certificate(found, four, tmp_path / "c.safetensors"), four)
    assert [one.mass for one in checked] == found.mass.values.ravel().tolist()
    assert len(checked) == {"head": 4, "group": 2, "layer": 1}[share]


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_any_number_changed_is_noticed(
    trace: Trace, content: Content, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    metadata, tensors = content
    name = data.draw(st.sampled_from(sorted(tensors)))
    changed = {key: tensor.copy() for key, tensor in tensors.items()}
    flat = changed[name].reshape(-1)
    at = data.draw(st.integers(0, len(flat) - 1))
    flat[at] += data.draw(st.integers(-3, 3).filter(bool))
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    with pytest.raises(UserError, match="sha256"):
        certify(write(path, metadata, changed), trace)


@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_a_claim_that_is_not_so_is_noticed_under_a_new_sum(
    trace: Trace, content: Content, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whoever changes a number can sum the file anew; the rows still tell what it is worth."""
    metadata, tensors = content
    name = data.draw(st.sampled_from(["kept", "bound", "mass", "budgets", "price", "evicted_at"]))
    changed = {key: tensor.copy() for key, tensor in tensors.items()}
    flat = changed[name].reshape(-1)
    at = data.draw(st.integers(0, len(flat) - 1))
    flat[at] += data.draw(st.sampled_from([-(10**6), -1, 1, 2, 10**6]))
    fresh = {**metadata, "sha256": digest(metadata["facts"], changed)}
    path = write(tmp_path_factory.getbasetemp() / "fresh.safetensors", fresh, changed)
    try:
        checked = certify(path, trace)
    except UserError:
        return
    # Another schedule or other prices of the same worth prove the same: nothing false is claimed.
    assert name in ("price", "evicted_at", "budgets")
    true = {(layer, k): v for layer, k, v in optima(trace)}
    for one in checked:
        assert one.kept <= true[one.layer, one.budget] <= one.bound


def optima(trace: Trace) -> list[tuple[int, int, int]]:
    every = optimum(trace, "all", prompt_len=6)
    return [
        (int(layer), int(k), int(every["kept"].sel(layer=layer, budget=k).values[0]))
        for layer in every["layer"].values
        for k in every["budget"].values
    ]


def test_wrong_files_and_traces(trace: Trace, content: Content, tmp_path: Path) -> None:
    metadata, tensors = content
    path = tmp_path / "c.safetensors"

    def refused(match: str, against: Trace = trace, **changes: Any) -> None:
        facts = json.dumps({**json.loads(metadata["facts"]), **changes.pop("facts", {})})
        new = {**tensors, **changes}
        new = {k: np.asarray(v) for k, v in new.items() if v is not None}
        summed = {**metadata, "facts": facts, "sha256": digest(facts, new)}
        with pytest.raises(UserError, match=match):
            certify(write(path, summed, new), against)

    refused("trace", against=synth("powerlaw", 49, seed=2))
    refused("its n is", facts={"n": 7})
    refused("prompt length", facts={"prompt_len": 0})
    refused('prompt_len: found "6", expected int', facts={"prompt_len": "6"})
    refused('share: found "row", expected', facts={"share": "row"})
    refused("tensor price", price=None)
    refused("tensor price", price=tensors["price"].astype(np.float64))
    refused("shape", kept=tensors["kept"][:, :, :1])
    refused("twice", budgets=np.array([4, 4]))
    refused("layer 99", layers=np.array([99]))
    refused("budget 0", budgets=np.array([0, 12]))
    refused("2\\^40", price=tensors["price"] + (1 << 41))
    refused("prompt has a price", price=tensors["price"] + 1)
    refused("below 0", price=tensors["price"] - 1)
    refused("leaves at", evicted_at=np.zeros_like(tensors["evicted_at"]))
    refused("tokens are left", evicted_at=np.full_like(tensors["evicted_at"], 48))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        certify(tmp_path / "none", trace)
    path.write_text("text")
    with pytest.raises(UserError, match="no safetensors file"):
        certify(path, trace)
    with pytest.raises(UserError, match="format"):
        certify(write(path, {"format": "other"}, tensors), trace)


def test_saving_mistakes(trace: Trace, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="schedules"):
        save_certificate(optimum(trace, "all"), trace, tmp_path / "c")
    found = optimum(trace, [4])
    with pytest.raises(UserError, match="of trace"):
        save_certificate(found, synth("powerlaw", 49, seed=2), tmp_path / "c")
    with pytest.raises(UserError, match="cannot be written"):
        save_certificate(found, trace, tmp_path / "missing" / "c")
    assert not list(tmp_path.iterdir())
