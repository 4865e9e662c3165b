"""Budgets as users say them: tokens, shares of the text, shares of its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails
from evaluation_cases import IDS, MODEL

from h2osim import UserError, optimum, replay, sweep, synth
from h2osim.closed_loop.evaluating import check_asked
from h2osim.guarantees.verify import verify
from h2osim.replays.budgets import budget_tokens
from h2osim.replays.results import check
from h2osim.report.comparison import headings
from h2osim.sweeps.evaluation import evaluate

TRACE = synth("powerlaw", 40, seed=1, heads=4, group_size=2, layers=1)


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [(7, 7), (0.1, 4), (1.0, 40), ("50%prompt", 10), ("29%prompt", 5), ("12.5%prompt", 2),
     ("1%prompt", 1), ("100%prompt", 20), ("70%prompt", 14), ("15%prompt", 3)],
)  # fmt: skip
def test_a_budget_in_tokens(budget: Any, tokens: int) -> None:
    # decimal shares are taken as written: 0.7 * 20 is 14, where floats would give 13.999…
    assert budget_tokens(budget, 40, 20) == tokens


@pytest.mark.parametrize(
    "budget", ["0%prompt", "101%prompt", "-5%prompt", "nan%prompt", "1/0%prompt", "50%", "x", ""]
)
def test_no_share_of_a_prompt(budget: str) -> None:
    with pytest.raises(UserError, match="a share of the prompt above 0 up to 100%"):
        budget_tokens(budget, 40, 20)


def test_a_share_of_the_prompt_is_its_tokens_everywhere() -> None:
    asked: list[float | str] = ["50%prompt", "25%prompt", 6]
    tokens = [10, 5, 6]
    options: dict[str, Any] = {"prompt_len": 20}
    for found, same in (
        (replay(TRACE, "h2o", asked, **options), replay(TRACE, "h2o", tokens, **options)),
        (optimum(TRACE, asked, **options), optimum(TRACE, tokens, **options)),
        (sweep(TRACE, ["h2o"], asked, **options), sweep(TRACE, ["h2o"], tokens, **options)),
    ):
        check(found)
        assert found.budget.values.tolist() == tokens
        assert (found.kept == same.kept).all()
        assert "budget_of" not in found.attrs
    lines = verify(TRACE, ["h2o"], ["50%prompt"], offline=False, **options)
    assert {line.budget for line in lines} - {None} == {10}


def test_traces_of_several_prompts_are_labelled_by_shares_of_them() -> None:
    traces = [synth("needle", n, seed=1, heads=2) for n in (40, 60)]
    assert [one.prompt_len for one in traces] == [20, 30]
    found = replay(traces, ["h2o"], ["50%prompt", "20%prompt"])
    check(found)
    assert found.tokens.values.tolist() == [[10, 4], [15, 6]]
    assert found.budget.values.tolist() == [0.5, 0.2]
    assert found.attrs["budget_of"] == "prompt"
    assert list(headings(found, None, True)) == ["50 % of the prompt", "20 % of the prompt"]
    swept = sweep(traces, ["h2o"], ["50%prompt"])
    assert swept.attrs["budget_of"] == "prompt"
    assert swept.tokens.values.tolist() == [[10], [10], [15], [15]]
    with pytest.raises(UserError, match="expected shares of the prompt alone, or none"):
        replay(traces, ["h2o"], ["50%prompt", 0.5])
    assert "budget_of" not in replay(traces, ["h2o"], [0.5]).attrs


def test_the_closed_loop_takes_shares_of_each_prompt() -> None:
    asked = evaluate(MODEL, IDS, "h2o", ["50%prompt"], prompt_len=11)
    check(asked)
    same = evaluate(MODEL, IDS, "h2o", [5], prompt_len=11)
    assert np.array_equal(asked.kl, same.kl)
    assert asked.attrs["budget_of"] == "prompt"
    assert asked.budget.values.tolist() == [0.5]
    assert (asked.slots == 5).all()
    with pytest.raises(UserError, match="expected shares of the prompt alone, or none"):
        check_asked(["50%prompt", 0.1], {"a": "x"}, "group")


@pytest.mark.parametrize("command", ["compare", "optimum", "sweep"])
def test_what_is_removed_is_said_in_place_of_budgets(
    run: Run, tmp_path: Path, command: str
) -> None:
    TRACE.save(tmp_path / "one")
    more = ["--policies", "h2o"] if command != "optimum" else []
    words = [command, str(tmp_path / "one"), *more, "--prompt-len", "20", "--format", "csv"]
    removed = run(*words, "--ratio", "0.5,0.7")
    assert removed.code == 0
    assert removed.out == run(*words, "--budgets", "10,6").out
    assert removed.out == run(*words, "--budgets", "50%prompt,30%prompt").out
    fails(run(*words, "--ratio", "0.5", "--budgets", "5"), "--ratio", "expected one of them")
    for wrong in ("1", "-0.1", "nan", "x", "0.5,"):
        fails(run(*words, "--ratio", wrong), "--ratio", "removed share of the prompt")
