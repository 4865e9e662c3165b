"""Names of presses lead to what they are here."""

from __future__ import annotations

import re

import pytest
from commands import Run, fails

from h2osim.policies.presses import PRESSES
from h2osim.policies.text import parse


def test_every_command_names_a_policy_that_is_there() -> None:
    for command, _ in PRESSES.values():
        for text in re.findall(r"--policies (\S+)", command):
            parse(text)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("SnapKVPress", "--policies snapkv"),
        ("observed-attention", "h2o-mean:recent=0,when=prompt"),
        ("pyramidkv", "--policies snapkv with --budgets @FILE.json"),
        ("TOVAPress", "tova-kvpress --share layer"),
        ("ObservedAttentionPress", "h2o-mean:recent=0,when=prompt"),
    ],
)
def test_a_press_leads_to_its_policy(run: Run, name: str, there: str) -> None:
    fails(run("policies", name), f"unknown policy '{name}'", there)
