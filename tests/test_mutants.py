"""The list of changes that tests must notice fits the code as it stands; mutants.py runs it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutants import KILLED, ROOT, SURVIVED, Mutant, reaches_compiled_code, read_list, report

MUTANTS = read_list()


@pytest.mark.parametrize("one", MUTANTS, ids=lambda one: one.name)
def test_every_change_fits_and_is_still_a_program(one: Mutant) -> None:
    text = (ROOT / one.file).read_text(encoding="utf-8")
    changed = one.apply(text)
    assert changed != text
    if one.file.endswith(".py"):
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(text))
    for test in one.tests:
        file, _, name = test.partition("::")
        tests = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in tests, f"no test {test}"


def test_there_are_enough_and_each_is_listed_once() -> None:
    assert len({(one.file, one.old, one.nth, one.new) for one in MUTANTS}) == len(MUTANTS)
    assert sum(not one.equivalent for one in MUTANTS) >= 60


def test_a_change_that_does_not_fit_is_an_error() -> None:
    one = Mutant("file.py", "a", "b", ("tests/test_mutants.py",))
    assert one.apply("1 a 2") == "1 b 2"
    assert Mutant("file.py", "a", "b", (), nth=2).apply("aaa") == "aba"
    for text, nth in (("none", 0), ("a a", 0), ("a", 1), ("a a", 3)):
        with pytest.raises(ValueError, match="old text"):
            Mutant("file.py", "a", "b", (), nth=nth).apply(text.replace("n", ""))


def test_files_that_numba_compiles_are_known() -> None:
    """And those they take their functions and constants from; not those that are only texts."""
    assert reaches_compiled_code(ROOT, "h2osim/attention/row_loops.py")
    assert reaches_compiled_code(ROOT, "h2osim/attention/fixed_point.py")
    assert not reaches_compiled_code(ROOT, "h2osim/optima/certifying.py")


def test_only_what_should_be_killed_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    plain = Mutant("file.py", "a", "b", ())
    same = Mutant("file.py", "a", "c", (), equivalent="c is a")
    assert report({plain: KILLED, same: SURVIVED}) == 0
    out = capsys.readouterr().out
    assert out.endswith("1 of 1 killed\n") and "c is a" in out
    assert report({plain: SURVIVED, same: SURVIVED}) == 1
    assert capsys.readouterr().out.endswith("0 of 1 killed\n")
    assert report({plain: KILLED, same: KILLED}) == 1
    assert "NOT EQUIVALENT" in capsys.readouterr().out


def test_the_checkout_is_where_the_list_lies() -> None:
    assert Path(__file__).parents[1] == ROOT
