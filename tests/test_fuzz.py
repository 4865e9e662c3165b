"""A short run of every fuzzer; docs/testing.md has the command for long ones."""

from __future__ import annotations

from collections import Counter

import fuzz
import pytest
from fuzz import FUZZERS
from fuzz_bench import Bench, Fuzzer


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("fuzzer", FUZZERS, ids=lambda fuzzer: fuzzer.__name__)
def test_a_short_run(bench: Bench, fuzzer: Fuzzer) -> None:
    tally: Counter[str] = Counter()
    fuzz.cases(fuzzer, bench, max(1, FUZZERS[fuzzer] // 10), 1, tally)
    assert tally["tried"] > 0
    assert not {name: tally[name] for name in fuzz.COUNTS[2:] if tally[name]}


def test_the_fuzzers_would_notice(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a check is missing, what gets in is called invalid."""
    monkeypatch.setattr("h2osim.traces.trace.Trace.check_layer", lambda *_: None)
    tally: Counter[str] = Counter()
    fuzz.cases(fuzz.fuzz_layer, bench, 80, 1, tally)
    assert tally["accepted invalid"] > 0
