"""What functions reach, and fingerprints that change when any of it does."""

from __future__ import annotations

import functools
import importlib.util
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from h2osim.policies.registry import all_policies
from h2osim.policies.source import definition, fingerprint, outside
from h2osim.support.errors import UserError

FACTOR = 2.0


def scaled(x: float) -> float:
    return FACTOR * math.sqrt(x)


def nested(x: float) -> list[float]:
    math = [scaled(y) for y in (x, x)]
    return [*math, *map(lambda y: y * FACTOR, [x])]


def test_outside_is_what_the_code_loads_and_no_annotation() -> None:
    functions: list[Any] = [scaled, nested]
    assert outside(functions[0]) == {"FACTOR": 2.0, "math": math}
    assert outside(functions[1]) == {"scaled": scaled, "FACTOR": 2.0}


def loaded(file: Path, text: str) -> Any:
    file.write_text(textwrap.dedent(text), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Setting:
    step: float
    names: tuple[str, ...] = ()


class Slow:
    def __init__(self, by: float) -> None:
        self.by = by

    def __call__(self, x: float) -> float:
        return x / self.by


MODULE = """
import functools, helpers
RATE = {rate}
FIRST, LAST = {first}, {last}
class Kind:
    width = {width}
    def value(self, x):
        return RATE * x
@functools.cache
def cached(x):
    return Kind().value(x)
def made(offset):
    return lambda x: x + offset
rule = made({offset})
def top(x, y=FIRST, *, by={by}, z=LAST):
    return cached(x) + rule(x) + helpers.used(x)  # {comment}
"""
SAME = {"rate": "1.5", "width": "3", "offset": "1", "by": "None", "comment": ""}
SAME |= {"first": "1", "last": "1"}


def print_of(folder: Path, used: str = "x", **changed: str) -> str:
    import sys

    folder.mkdir()
    helpers = loaded(folder / "helpers.py", f"def used(x): return {used}\ndef unused(x): pass")
    sys.modules["helpers"] = helpers
    try:
        module = loaded(folder / "module.py", MODULE.format(**{**SAME, **changed}))
    finally:
        del sys.modules["helpers"]
    return fingerprint(module.top, "top")


@pytest.mark.parametrize(
    "changed",
    [
        {"used": "-x"}, {"rate": "2"}, {"width": "4"}, {"offset": "2"}, {"by": "0"},
        {"first": "2"}, {"last": "2"},
    ],
    ids=str,
)
def test_a_fingerprint_changes_with_anything_reached(
    tmp_path: Path, changed: dict[str, str]
) -> None:
    """Through a cache, a class, a closure, a default and an attribute of another module."""
    first = print_of(tmp_path / "a")
    assert first == print_of(tmp_path / "b", comment="other words")
    assert first != print_of(tmp_path / "c", **changed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(4), np.arange(4.0)),
        (np.arange(4), np.arange(4).reshape(2, 2)),
        (np.array([1.0, 2.0]), np.array([1.0, np.nextafter(2.0, 3)])),
        ({"a": [1, 2]}, {"a": [1, 3]}),
        ({"a": 1}, {"b": 1}),
        ({1, 2}, {1, 3}),
        ((1, (2,)), ((1, 2),)),
        (1, 1.0),
        (Setting(0.5), Setting(0.25)),
        (Setting(0.5, ("a",)), Setting(0.5)),
        (Slow(2.0), Slow(3.0)),
        (Slow(2.0).__call__, Slow(3.0).__call__),
        (functools.partial(scaled, 1.0), functools.partial(scaled, 2.0)),
        (np.exp, np.log),
        (math.sqrt, math.exp),
        (np.float32, np.float64),
    ],
)
def test_different_values_have_different_fingerprints(one: Any, other: Any) -> None:
    assert fingerprint(one, "") == fingerprint(one, "") != fingerprint(other, "")


def test_recursion_ends() -> None:
    ring: list[Any] = [1]
    ring.append(ring)
    assert fingerprint(ring, "") == fingerprint(ring, "")


def test_what_has_no_content_is_refused() -> None:
    for value in (np.random.default_rng(0), iter([1]), object()):
        with pytest.raises(UserError, match=r"policy p, inputs: .*expected functions, numbers"):
            fingerprint({"x": value}, "policy p, inputs")
    exec("def unread(x): return x", made := {})  # type: ignore[var-annotated]
    with pytest.raises(UserError, match="unread: its source can not be read"):
        fingerprint(made["unread"], "rule")


def test_a_function_that_differs_from_its_file_is_refused(tmp_path: Path) -> None:
    """The engines that read the source and those that run the code would part."""
    module = loaded(tmp_path / "m.py", "def f(x):\n    return x * 2\n")
    assert definition(module.f) == "def f(x):\n    return x * 2"
    for text in ("def f(x):\n    return x * 3\n", "# one line more\ndef f(x):\n    return x\n"):
        (tmp_path / "m.py").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="edited since f was loaded"):
            definition(module.f)


@pytest.mark.parametrize("name", sorted(all_policies()))
def test_every_policy_of_the_library_has_fingerprints(name: str) -> None:
    policy = all_policies()[name]
    assert len(fingerprint(policy, name)) == 64
