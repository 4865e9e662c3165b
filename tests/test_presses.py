"""Names of presses lead to what they are here, and docs/coming-from-kvpress.md has them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import Run, fails

from h2osim.policies.presses import PRESSES, known_as
from h2osim.policies.text import parse

PAGE = Path(__file__).parents[1] / "docs" / "coming-from-kvpress.md"

#: What ``kvpress`` 0.5.5 exports, without ``Press``.
OF_KVPRESS = re.findall(
    r"\w+",
    "AdaKV Base Block CAM CUR Cap Chunk ChunkKV Compactor Composed CompressionRatioDecoding "
    "CriticalAdaKV CriticalKV DMS Decoding DuoAttention EntropyGatedChunkKV ExpectedAttention "
    "ExpectedAttentionStats FastKVzip Finch KVCompose KVgrad KVzap KVzip KeyDiff KeyRerotation "
    "Knorm LUKV LagKV LeverageScore Merging NonCausalAttn ObservedAttention PerLayerCompression "
    "PrefillDecoding PyramidKV QFilter Random RestoreKV Scorer SimLayerKV SnapKV StreamingLLM TOVA "
    "ThinK",
)


def rows() -> dict[str, str]:
    """By press the cell that says what it is here."""
    found = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `") and line.count("|") == 4:
            _, presses, here, _, _ = line.split("|")
            for name in re.findall(r"`(\w+)Press\b", presses):
                found[name] = here.strip()
    return found


def test_the_page_has_every_press_and_no_other() -> None:
    assert len(OF_KVPRESS) == 46
    assert sorted(rows()) == sorted(OF_KVPRESS)


@pytest.mark.parametrize("name", OF_KVPRESS)
def test_a_press_answers_by_name_as_the_page_does(name: str) -> None:
    answer, row = known_as(f"{name}Press"), rows()[name]
    assert answer
    assert ("no policy" in answer) == (row == "none")
    said, shown = re.search(r"--policies ([a-z0-9-]+)", answer), re.match(r"`([a-z0-9-]+)", row)
    if shown:
        assert said and said[1] == shown[1]
        assert parse(row.split("`")[1]).policy.name == said[1]


def test_every_command_names_a_policy_that_is_there() -> None:
    for command, _ in PRESSES.values():
        for text in re.findall(r"--policies (\S+)", command):
            parse(text.replace("every:m", "every:7").replace("QUESTION", "9"))


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("SnapKVPress", "--policies snapkv"),
        ("observed-attention", "h2o-mean:recent=0,when=prompt"),
        ("pyramidkv", "--policies snapkv with --budgets @FILE.json"),
        ("TOVAPress", "tova-kvpress --share layer"),
        ("ObservedAttentionPress", "h2o-mean:recent=0,when=prompt"),
        ("kvzap", "h2osim has no policy for this press: it has trained weights"),
    ],
)
def test_a_press_leads_to_its_policy(run: Run, name: str, there: str) -> None:
    fails(run("policies", name), f"unknown policy '{name}'", there)


def test_names_of_policies_are_not_taken_for_presses() -> None:
    assert not known_as("h2o")
    assert not known_as("press")
