"""``h2osim bench record``: what it prints, and that it looks at what it times."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from commands import Run, fails
from tiny_models import family, tokens

from h2osim.bench import recording
from h2osim.models import loading


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> loading.Model:
    model = loading.Model(family("llama"), None, "tiny", None, None)
    monkeypatch.setattr(loading, "load", lambda name: model)
    return model


def test_ratios_of_each_length(tiny: loading.Model, run: Run) -> None:
    ended = run("bench", "record", "--model", "tiny", "--n", "24,40", "--repeats", 1, "--json")
    assert ended.code in (0, 1)  # a tiny model's plain pass takes next to no time
    lines = json.loads(ended.out)
    for n, some in ((24, lines[:7]), (40, lines[7:])):
        timed = [line for line in some if f"{n} tokens, cpu" in line["what"]]
        assert [(line["unit"], line["goal"]) for line in timed] == [
            ("s", None), ("times", 3.0), ("times", 1.5),
        ]  # fmt: skip
        assert [line["unit"] for line in some if line not in timed] == 2 * ["times", "MB/s"]
        assert all(line["value"] > 0 for line in some)
        assert timed[1]["value"] > 1  # of the plain pass


def test_mistakes_are_one_line(tiny: loading.Model, run: Run) -> None:
    for n, said in (("1", "found 1, expected 2"), ("24,65", "found 65"), ("x", "'x' is no index")):
        fails(run("bench", "record", "--model", "tiny", "--n", n), said)
    fails(run("bench", "record", "--device", "cuda:99"), "device cuda:99: ")


def test_rows_that_differ_are_not_timed(
    tiny: loading.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = recording._rows

    def other(trace: Any, layer: int) -> Any:
        return rows(trace, layer) + (trace.stores == ("qk",)) * 1e-3

    monkeypatch.setattr(recording, "_rows", other)
    with pytest.raises(AssertionError, match=r"layer 0: rows differ by 0\.001"):
        recording.measure(tiny, tokens(), 1)
