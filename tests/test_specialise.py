"""What the engines refuse in a policy's rules, in one line, before anything runs wrongly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from h2osim.policies.declaration import Policy
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.traces.synthetic import synth

UNIT = 1.0
TRACE = synth("powerlaw", 24)


def rank(pos: int) -> float:
    return pos


def policy(**given: Any) -> Policy:
    return Policy(**{"name": "mine", "summary": "", "source": "", "rank": rank, **given})


def refused(one: Policy, budgets: Any = 4) -> str:
    with pytest.raises(UserError) as caught:
        replay(TRACE, one, budgets, engine="numba")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fixed(x: float) -> float:
    return 2.0 * x


def test_names_of_the_engines_are_refused_not_shadowed() -> None:
    def doubled(pos: int) -> float:
        return fixed(pos)

    def threshold(pos: int) -> float:
        return pos * UNIT

    doubled.__globals__["fixed"] = fixed
    assert "use the name fixed" in refused(policy(rank=doubled))
    assert "use the name UNIT" in refused(policy(rank=threshold))


def test_rules_are_plain_functions_without_closures() -> None:
    def make(step: int) -> Callable[[int], float]:
        def rank(pos: int) -> float:
            return pos % step

        return rank

    assert "closes over step" in refused(policy(rank=make(3)))
    assert "plain function" in refused(policy(rank=lambda pos: pos))


def half(k: int) -> int:
    return max(1, k // 2)


def test_an_inclusive_rule_that_is_not_is_refused() -> None:
    assert "in step" in refused(policy(keep=half, inclusive=True), "all")
    with pytest.raises(TypeError, match="budget k"):
        policy(rank=half, inclusive=True)
    with pytest.raises(TypeError, match="expires"):
        policy(expires=True, inclusive=True)


def test_any_name_will_do_for_a_file_of_compiled_code() -> None:
    assert replay(TRACE, policy(name="a/b c"), 4).recall.size == 1


def test_an_edited_policy_file_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    text = (
        "from h2osim.policies.declaration import Policy\n\n\n"
        "def rank(pos: int) -> float:\n    return {}pos\n\n\n"
        "POLICY = Policy(name='mine', summary='', source='', rank=rank)\n"
    )
    found = []
    for sign in ("", "-"):
        file.write_text(text.format(sign), encoding="utf-8")
        found.append({e: replay(TRACE, str(file), 4, engine=e).recall.item() for e in ENGINES})
    assert found[0] != found[1]
    assert all(len(set(recalls.values())) == 1 for recalls in found)


ENGINES = ("naive", "numba")
