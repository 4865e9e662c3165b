"""What the engines refuse in a policy's rules, in one line, before anything runs wrongly."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from h2osim.engines.stepper import Stepper
from h2osim.policies.declaration import Policy
from h2osim.policies.to_cuda import rules_text
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

CELL = """
from h2osim import Policy

WEIGHT = 0.5


def weighed(score, a):
    return WEIGHT * score + a


def rank(score, age):
    return 1e9 if age < 2 else {sign}score


mine = Policy("mine", "", "", rank, state=("score",), update=weighed, inclusive=True)
"""


def run_cell(text: str, name: str) -> Policy:
    """What IPython does with a cell: its text is known to linecache and to nothing else."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), scope)
    policy = scope["mine"]
    assert isinstance(policy, Policy)
    return policy


def test_a_policy_from_a_notebook_runs_everywhere() -> None:
    """And the same cell, edited and run again, is another policy."""
    found = []
    cells = {"": "/tmp/ipykernel_7/1234.py", "-": "<ipython-input-2-0123456789ab>"}
    for sign, cell in cells.items():
        policy = run_cell(CELL.format(sign=sign), cell)
        naive = replay(TRACE, policy, "all", engine="naive", evictions=True)
        stack = replay(TRACE, policy, "all", evictions=True)
        direct = replay(TRACE, policy, "all", step_recall=True, evictions=True)
        assert stack.one_pass.all() and not direct.one_pass.any()
        for other in (stack, direct):
            for data in ("evicted_at", "held", "recall"):
                np.testing.assert_array_equal(other[data], naive[data])
        assert "rule_update" in rules_text(policy) and "weighed" in rules_text(policy)
        unit = TRACE.units()[0]
        stepper = Stepper(policy, 5, heads=len(unit.heads))
        for t in range(unit.n):
            stepper.step((unit.head_rows(t) * 2.0**-24).astype(np.float16))
        expected = naive.evicted_at.sel(layer=unit.layer, unit=unit.index, budget=5)
        np.testing.assert_array_equal(stepper.evicted_at, expected.values.ravel())
        found.append(naive.recall.values)
    assert (found[0] != found[1]).any()


def all_but_two(k: int) -> int:
    return 1 if k == 2 else k


def twice(k: int) -> int:
    return 2 * k


def at_most_five(k: int) -> int:
    return min(k, 5)


def now_and_then(k: int, size: int, t: int) -> int:
    return k if t % 3 == 0 else size


def test_a_keep_that_is_not_k_for_every_budget_is_refused() -> None:
    for keep in (half, all_but_two, twice, at_most_five):
        assert "keep gives" in refused(policy(keep=keep, inclusive=True), "all")
    assert replay(TRACE, policy(keep=now_and_then, inclusive=True), "all").one_pass.all()
