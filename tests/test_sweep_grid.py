"""Grids: texts that stand for many settings of a policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_cases import GRID

from h2osim.policies.text import parse
from h2osim.report.figures.sweep import varied
from h2osim.support.errors import UserError
from h2osim.sweeps.grid import expand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tova", ["tova"]),
        ("h2o:recent=0..48:16", [f"h2o:recent={i}" for i in (0, 16, 32, 48)]),
        ("h2o:recent=2..4", [f"h2o:recent={i}" for i in (2, 3, 4)]),
        ("h2o:recent=7..7", ["h2o:recent=7"]),
        ("decay:gamma=0.9..1.0:0.05", [f"decay:gamma={x}" for x in ("0.9", "0.95", "1")]),
        ("decay:gamma=0..3e-1:1e-1", [f"decay:gamma={x}" for x in ("0", "0.1", "0.2", "0.3")]),
        ("decay:gamma=0...5:.25", [f"decay:gamma={x}" for x in ("0", "0.25", "0.5")]),
        ("h2o:recent=0|8..16:8|0.5", [f"h2o:recent={x}" for x in ("0", "8", "16", "0.5")]),
        (
            "h2o:recent=1|2,scores=full|cached,tova",
            [
                "h2o:recent=1,scores=full",
                "h2o:recent=1,scores=cached",
                "h2o:recent=2,scores=full",
                "h2o:recent=2,scores=cached",
                "tova",
            ],
        ),
        # each configuration once, however it is written
        ("h2o,h2o:recent=0.5,h2o:recent=4|4.0", ["h2o", "h2o:recent=4"]),
    ],
)
def test_a_grid_is_the_product_of_its_values(text: str, expected: list[str]) -> None:
    found = expand(text)
    assert [one.text for one in found] == expected
    # what a configuration is called is what `replay` takes
    assert all(parse(one.text).values == one.values for one in found)


def test_steps_are_decimal() -> None:
    (values,) = [[one.values["gamma"] for one in expand("decay:gamma=0..1:0.1")]]
    assert values == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 9), st.sampled_from([1, 10, 1000]))
def test_a_range_has_both_ends(first: int, count: int, step: int, scale: int) -> None:
    last = first + count * step
    first, step, last = first, step, last
    if last > scale:
        scale = 10 ** len(str(last))
    digits = len(str(scale)) - 1
    a, b, c = (f"{x / scale:.{digits}f}" for x in (first, last, step))
    found = [one.values["gamma"] for one in expand(f"decay:gamma={a}..{b}:{c}")]
    assert found == [(first + i * step) / scale for i in range(count + 1)]


def test_a_policy_with_a_value_sets_its_first_parameter() -> None:
    found = expand("h2o:recent=0..128:16,decay=0.9..1.0:0.01,streaming=2|4")
    assert [one.text for one in found] == [
        *(f"h2o:recent={recent}" for recent in range(0, 129, 16)),
        *(f"decay:gamma={(90 + i) / 100:g}" for i in range(11)),
        "streaming:sinks=2",
        "streaming:sinks=4",
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no policy given"]),
        ("h20:recent=1", ["did you mean h2o"]),
        ("h2o:recnt=1..2", ["unknown parameter 'recnt'", "did you mean recent"]),
        ("h2o:recent=8,decay=2", ["policy decay: gamma=2", "found '2', expected"]),
        ("h2o:zz=1", ["unknown parameter 'zz'", "it takes recent"]),
        ("h2o:recent=4,8", ["'8' stands alone", "|"]),
        ("h2o:recent=4||8", ["recent=4||8", "empty alternative"]),
        ("h2o:recent=0..100:16", ["reach 96 and not 100", "0..96:16"]),
        ("h2o:recent=4..2", ["falls", "2..4"]),
        ("h2o:recent=1..4:0", ["step '0'"]),
        ("h2o:recent=1..4:-1", ["step '-1'"]),
        ("h2o:recent=1..4:", ["step ''"]),
        ("h2o:recent=1..4:x", ["step 'x'"]),
        ("h2o:recent=1..x", ["no range of numbers"]),
        ("h2o:recent=1..", ["no range"]),
        ("h2o:recent=..4", ["no range"]),
        ("h2o:recent=0..nan", ["no range of numbers"]),
        ("decay:gamma=0.1..0.5", ["needs a step"]),
        ("decay:gamma=0.5..1.5:0.5", ["'1.5'", "0 to 1"]),
        ("h2o:recent=0.5..2:0.5", ["shares of the budget"]),
        ("h2o:recent=0.5..0.9:0.1|2.5", ["'2.5'"]),
        ("h2o:scores=full|half", ["'half'", "full | cached"]),
        ("h2o:recent", ["parameter=value"]),
        ("h2o:recent=1,recent=2", ["given twice"]),
        ("decay:gamma=0..1:1e-9", ["more than 1,000,000"]),
        ("decay:gamma=0..1:1e-4,recent=0..1000", ["more than 1,000,000"]),
    ],
)
def test_a_bad_grid_is_one_line(text: str, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        expand(text)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_which_parameters_vary() -> None:
    settings = [(one.policy.name, one.values) for one in expand(GRID)]
    assert varied(settings) == {"h2o": ["recent", "scores"], "decay": ["gamma"], "tova": []}
