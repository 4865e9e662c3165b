"""Declarations and their text: parsing, parameters, windows, near misses and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawing import configured
from hypothesis import given
from hypothesis import strategies as st

import h2osim.policies.library
from h2osim.policies.arithmetic import by_score
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.parameters import resolve_window
from h2osim.policies.registry import all_policies, find
from h2osim.policies.roles import PERIOD
from h2osim.policies.text import parse, split_policies
from h2osim.support.errors import UserError
from h2osim.support.parameters import Param


def fails(call: Callable[[], object], *parts: str) -> None:
    """One line that has all of these in it."""
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


# --- text -----------------------------------------------------------------------------------


def test_a_name_alone_has_the_defaults() -> None:
    found = parse("h2o")
    assert found.policy is all_policies()["h2o"]
    assert found.values == {"recent": 0.5, "scores": "cached", "sinks": 0, "when": "always"}
    assert found.text == "h2o"


def test_parameters_override_the_defaults_and_the_text_stays_as_written() -> None:
    found = parse(" h2o:recent=32, scores=full ")
    assert found.values == {"recent": 32, "scores": "full", "sinks": 0, "when": "always"}
    assert found.text == "h2o:recent=32, scores=full"
    assert parse("h2o:").values == parse("h2o").values


def test_policy_objects_pass_through() -> None:
    policy = all_policies()["decay"]
    assert parse(policy).text == "decay"
    once = policy.with_params(gamma=0.5, recent=8)
    assert parse(once) is once
    assert once.text == "decay:gamma=0.5,recent=8"
    assert all_policies()["triattention"].with_params(stats="", divide_length=4).text == (
        "triattention:divide_length=4"
    )


@given(st.sampled_from(sorted(all_policies())).flatmap(lambda n: configured(all_policies()[n])))
def test_the_text_of_a_policy_reads_back_as_the_same_values(found: Configured) -> None:
    again = parse(found.text)
    assert again.values == found.values
    assert again.text == found.text
    assert [type(v) for v in again.values.values()] == [type(v) for v in found.values.values()]


@given(
    st.lists(
        st.sampled_from(sorted(all_policies())).flatmap(lambda n: configured(all_policies()[n])),
        max_size=5,
    )
)
def test_a_list_of_policies_splits_where_it_was_joined(found: list[Configured]) -> None:
    texts = [one.text for one in found]
    assert split_policies(",".join(texts)) == texts
    assert split_policies(" , ".join(texts)) == texts


def test_a_parameter_after_a_comma_belongs_to_the_policy_before() -> None:
    text = "h2o:recent=32,scores=full,tova,my.py:bonus=1,x-y=2,,full"
    expected = ["h2o:recent=32,scores=full", "tova", "my.py:bonus=1,x-y=2", "full"]
    assert split_policies(text) == expected
    assert split_policies("") == []
    # another policy's name sets that policy's first parameter
    text = "decay=0.9,recent=8,h2o:recent=4,decay=0.5,scores=full,full=1"
    expected = ["decay:gamma=0.9,recent=8", "h2o:recent=4", "decay:gamma=0.5,scores=full", "full=1"]
    assert split_policies(text) == expected
    # without a colon there is nothing that a parameter could belong to
    assert split_policies("h2o,recent=32") == ["h2o", "recent=32"]


# --- mistakes -------------------------------------------------------------------------------


def test_unknown_names_come_with_near_misses() -> None:
    fails(lambda: parse("h20"), "unknown policy 'h20'", "did you mean h2o")
    fails(lambda: parse("snapvk:window=8"), "'snapvk'", "did you mean snapkv")
    fails(lambda: parse("zzzzzz"), "unknown policy 'zzzzzz' (`h2osim policies` lists all")
    fails(lambda: parse(""), "unknown policy ''")
    fails(lambda: parse("h2o:resent=3"), "policy h2o", "'resent'", "did you mean recent")
    fails(lambda: parse("h2o:zzz=3"), "'zzz'; it takes recent, scores, sinks, when, heads")
    fails(lambda: parse("full:sinks=3"), "'sinks'; it takes when")


@pytest.mark.parametrize("part", ["recent", "recent=", "recent 3"])
def test_a_parameter_without_a_value_is_refused(part: str) -> None:
    fails(lambda: parse(f"h2o:{part}"), f"{part!r} is not of the form parameter=value")
    fails(lambda: parse("h2o:=3"), "unknown parameter ''")


def test_a_parameter_given_twice_is_refused() -> None:
    fails(lambda: parse("h2o:recent=3,recent=4"), "parameter recent given twice")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h2o:recent=-1", "recent=-1: expected tokens, or share below 1, 0 up"),
        ("h2o:recent=1.5", "recent=1.5: expected tokens, or share below 1"),
        ("h2o:recent=nan", "recent=nan: expected tokens"),
        ("h2o:recent=inf", "recent=inf: expected tokens"),
        ("h2o:recent=few", "recent=few: expected tokens"),
        ("h2o:recent=1e10", "recent=1e10: expected tokens"),
        ("h2o:scores=fulll", "scores=fulll: expected full | cached"),
        ("h2o:sinks=0.5", "sinks=0.5: expected whole number, 0 up"),
        ("decay:gamma=1.01", "gamma=1.01: expected number, 0 to 1"),
        ("decay:gamma=-0.1", "gamma=-0.1: expected number, 0 to 1"),
        ("decay:gamma=nan", "gamma=nan: expected number, 0 to 1"),
        ("snapkv:window=0", "window=0: expected whole number, 1 up"),
        ("random:seed=-1", "seed=-1: expected whole number, 0 to"),
        ("random:seed=1e17", "seed=1e17: expected whole number, 0 to"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(text: str, expected: str) -> None:
    fails(lambda: parse(text), f"policy {text.partition(':')[0]}: {expected}")


@given(st.sampled_from(sorted(all_policies())), st.text(max_size=12), st.text(max_size=12))
def test_any_text_is_read_or_refused_in_one_line(name: str, key: str, value: str) -> None:
    for text in (key, f"{name}:{key}", f"{name}:{key}={value}", f"{name}:sinks={value}"):
        try:
            parse(text)
        except UserError as error:
            assert str(error)


# --- numbers --------------------------------------------------------------------------------


def test_values_have_the_type_of_their_kind() -> None:
    def read(param: Param, text: str) -> Any:
        value = param.read(text, "policy p")
        return value, type(value)

    assert read(Param("x", 0, "", "int"), "4.0") == (4, int)
    assert read(Param("x", 0, "", "float"), "4") == (4.0, float)
    assert read(Param("x", 0, "", "window"), "4") == (4, int)
    assert read(Param("x", 0, "", "window"), "0.25") == (0.25, float)
    assert read(Param("x", 0, "", "window"), "1") == (1, int)
    assert read(Param("x", "a", "", "choice", choices=("a", "b")), "b") == ("b", str)


def test_ranges_are_told_in_words() -> None:
    assert Param("x", 0, "", "int", 1, 8).range == "whole number, 1 to 8"
    assert Param("x", 0, "", "float").range == "number, 0 up"
    assert Param("x", "a", "", "choice", choices=("a", "b")).range == "a | b"


def test_a_window_below_one_is_a_share_of_the_budget() -> None:
    assert resolve_window(0.5, 7) == 3
    assert resolve_window(0, 7) == 0
    assert resolve_window(1, 7) == 1
    assert resolve_window(40, 7) == 40
    # taken as written: 0.29 * 100 is 28.999999999999996 in binary
    assert resolve_window(0.29, 100) == 29
    assert resolve_window(1e-05, 100_000) == 1


@given(st.integers(0, 99), st.integers(1, 10_000))
def test_a_share_in_hundredths_is_rounded_down_exactly(hundredths: int, k: int) -> None:
    assert resolve_window(hundredths / 100, k) == hundredths * k // 100


def test_rules_see_tokens_whole_numbers_and_the_index_of_a_choice() -> None:
    found = parse("h2o:scores=cached").numbers(9)
    assert found == {"recent": 4, "scores": 1, "sinks": 0, PERIOD: 1}
    assert parse("tova:when=prompt").numbers(9)[PERIOD] == 0
    assert parse("tova:when=every:12").numbers(9)[PERIOD] == 12
    assert parse("decay:gamma=1").numbers(9)["gamma"] == 1.0
    assert parse("scissorhands:window=7").lag() == 7
    assert parse("h2o").lag() == 0


def test_a_parameter_that_every_policy_has_may_not_mean_something_else() -> None:
    own = Param("when", "early", "", "choice", choices=("early", "late"))
    with pytest.raises(TypeError, match="every policy has a parameter when already"):
        Policy("mine", "", "", rank=by_score, state=("score",), params=(own,))


def test_what_a_policy_is_may_depend_on_its_parameters() -> None:
    def inclusive(text: str, heads: int = 1) -> bool:
        return parse(text).inclusive(heads)

    assert inclusive("h2o:recent=32,scores=full", heads=3)
    assert inclusive("h2o:recent=0,scores=full")
    assert inclusive("h2o:recent=32,when=prompt")
    assert not inclusive("h2o")
    assert not inclusive("h2o:recent=32")
    assert not inclusive("h2o:scores=full")
    assert inclusive("tova") and not inclusive("tova", heads=2)
    assert inclusive("tova:scores=full", heads=2)
    assert inclusive("tova:when=prompt", heads=2) and not inclusive("tova:when=every:2", heads=2)
    assert inclusive("tova:scores=full,when=every:2", heads=2)
    assert inclusive("tova:heads=max") and not inclusive("tova:heads=max,scores=full", heads=2)
    assert inclusive("h2o-alg1:when=every:3") and inclusive("h2o-alg1", heads=2)
    assert not inclusive("h2o-alg1:when=every:3", heads=2)
    assert inclusive("snapkv", heads=2) and not inclusive("snapkv:when=every:2", heads=2)
    assert parse("h2o").within_budget() and not parse("h2o:when=prompt").within_budget()


# --- declarations ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(all_policies()))
def test_declarations_are_complete(name: str) -> None:
    policy = all_policies()[name]
    assert policy.name == name
    assert policy.summary and policy.source
    assert policy.summary[0].islower() or policy.summary[0].isupper()
    assert "\n" not in policy.summary + policy.source + policy.notes
    assert len({p.name for p in policy.params}) == len(policy.params)
    for param in policy.params:
        assert param.doc and "\n" not in param.doc
        assert param.read(param.default, name) == param.default
        assert param.range
    assert policy.lag is None or policy.lag in {p.name for p in policy.params}
    assert isinstance(parse(name).inclusive(1), bool)
    assert isinstance(parse(name).within_budget(), bool)


def test_discovery_finds_one_policy_a_file() -> None:
    folder = Path(h2osim.policies.library.__file__).parent
    files = {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert {name.replace("-", "_") for name in all_policies()} == files
    assert find("h2o-alg1") is all_policies()["h2o-alg1"]


def rank(score: float) -> float:
    return score


def test_a_rule_may_ask_only_for_what_there_is() -> None:
    def nonsense(score: float, future: float) -> float:
        return score + future

    with pytest.raises(TypeError, match="policy x: rank asks for future; it may name a"):
        Policy("x", "s", "o", rank=nonsense, state=("score",))

    def last(pos: int, n: int) -> float:
        return pos - n

    with pytest.raises(TypeError, match="policy x: rank asks for n, the length of the whole text"):
        Policy("x", "s", "o", rank=last)
    assert Policy("x", "s", "o", rank=last, oracle=True).rules() == {"rank": last}

    def waning(t: int) -> int:
        return t

    with pytest.raises(TypeError, match="policy x: linger asks for t; it may name heads, k, n, p"):
        Policy("x", "s", "o", rank=rank, state=("score",), linger=waning)
    with pytest.raises(TypeError, match="policy x: rank asks for score"):
        Policy("x", "s", "o", rank=rank)
    with pytest.raises(TypeError, match="exactly one of rank, rank_cache and rank_batch"):
        Policy("x", "s", "o")


# --- a policy in a file ---------------------------------------------------------------------


def test_a_file_that_declares_no_policy_is_refused_in_one_line(tmp_path: Path) -> None:
    missing = tmp_path / "missing.py"
    fails(lambda: parse(str(missing)), f"policy file {missing}: no such file")
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    fails(lambda: parse(str(empty)), f"policy file {empty}: expected a module-level POLICY")
    broken = tmp_path / "broken.py"
    broken.write_text("def rank(:\n")
    fails(lambda: parse(str(broken)), f"policy file {broken}: SyntaxError")
    raising = tmp_path / "raising.py"
    raising.write_text("import nosuchthing\n")
    fails(lambda: parse(str(raising)), "ModuleNotFoundError: No module named 'nosuchthing'")
