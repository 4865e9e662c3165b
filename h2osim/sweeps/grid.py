"""Grids of policies as text: ``h2o:recent=0..128:16,scores=full|cached``.

A policy is written as everywhere in h2osim, ``name:parameter=value,…``, and each value may be

* one value: ``recent=32``, ``scores=full``;
* a range ``first..last:step`` with both ends included: ``gamma=0.9..1.0:0.01``. The step may be
  left out where both ends are whole numbers (it is 1 then) and must lead from the first to the last
  exactly. Steps are taken in decimal, so that no 0.30000000000000004 appears;
* alternatives joined by ``|``, each a value or a range: ``recent=0|8..64:8|0.5``.

A policy stands for the product over its parameters, the last one varying fastest. ``|`` and not a
comma, because commas separate parameters and policies. ``decay=0.9..1:0.01`` as a whole is short
for ``decay:gamma=0.9..1:0.01``: a policy's name sets its first parameter.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, InvalidOperation

from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.registry import find
from h2osim.policies.text import split_policies
from h2osim.support.errors import UserError
from h2osim.support.parameters import Param, named, split_call

#: More configurations than this are taken for a slip in a step.
MOST = 1_000_000

_RANGE = re.compile(r"(.+?)\.\.(.+?)(?::(.*))?")
_SHAPE = "expected a value, a range first..last:step or alternatives joined by |"

Wanted = str | Policy | Configured


def expand(policies: Wanted | Sequence[Wanted]) -> list[Configured]:
    """Every configuration that the texts stand for, in their order, each once.

    Texts may hold several policies separated by commas; policy objects pass through. UserError on a
    policy or parameter that does not exist, a bad range or value, none at all or too many.
    """
    given = [policies] if isinstance(policies, str | Policy | Configured) else policies
    found: dict[tuple, Configured] = {}
    for one in given:
        for configured in _configurations(one):
            key = (id(configured.policy), *sorted(configured.values.items()))
            found.setdefault(key, configured)
            if len(found) > MOST:
                raise UserError(f"--policies: more than {MOST:,} configurations; check the steps")
    if not found:
        raise UserError("no policy given; expected at least one (`h2osim policies` lists them)")
    texts = [configured.text for configured in found.values()]
    if len(set(texts)) < len(texts):
        twice = next(text for text in texts if texts.count(text) > 1)
        raise UserError(f"policies: two different policies are called {twice!r}")
    return list(found.values())


def _configurations(one: Wanted) -> Iterator[Configured]:
    if isinstance(one, Configured):
        yield one
    elif isinstance(one, Policy):
        yield one.with_params()
    else:
        for text in split_policies(one):
            yield from _product(text)


def axes(text: str) -> tuple[str, Policy, dict[str, list[str]]]:
    """A policy's name, the policy, and what each parameter that the text names is to be."""
    name, given = split_call(text, "policy")
    if _number(name) is not None:
        raise UserError(
            f"--policies: {name!r} stands alone after a comma; write alternatives with |: "
            f"recent=4|8|{name}"
        )
    policy = find(name)
    if name.endswith(".py"):  # other processes may run in another folder
        name = os.path.abspath(name)
    return name, policy, {
        key: _values(named(policy.takes, key, f"policy {policy.name}"), values, policy.name)
        for key, values in given.items()
    }  # fmt: skip


def setting(name: str, policy: Policy, chosen: Mapping[str, str]) -> Configured:
    """A policy with these parameters, called as a user would write it."""
    written = ",".join(f"{key}={value}" for key, value in chosen.items())
    values = policy.with_params(**chosen).values
    return Configured(policy, values, f"{name}:{written}" if written else name)


def _product(text: str) -> Iterator[Configured]:
    name, policy, found = axes(text)
    if math.prod(map(len, found.values())) > MOST:
        raise UserError(f"policy {text!r}: more than {MOST:,} configurations; check the steps")
    for point in itertools.product(*found.values()):
        yield setting(name, policy, dict(zip(found, point, strict=True)))


def _values(param: Param, text: str, policy: str) -> list[str]:
    """What a parameter is to be, one after the other, as text; each is checked."""
    found: list[str] = []
    for word in (word.strip() for word in text.split("|")):
        where = f"policy {policy}: {param.name}={text}"
        if not word:
            raise UserError(f"{where}: found an empty alternative, {_SHAPE}")
        match = _RANGE.fullmatch(word) if not param.choices else None
        if match is None and ".." in word and not param.choices:
            raise UserError(f"{where}: {word!r} is no range, {_SHAPE}")
        words = _range(match, param, where) if match else [word]
        for one in words:
            _check(param, one, where)
        found += words
    return list(dict.fromkeys(found))


def _check(param: Param, word: str, where: str) -> None:
    try:
        param.read(word, "")
    except UserError:
        raise UserError(f"{where}: found {word!r}, expected {param.range}") from None


def _range(match: re.Match[str], param: Param, where: str) -> list[str]:
    """The numbers of ``first..last:step`` as text, ends included."""
    first, last = _number(match[1]), _number(match[2])
    if first is None or last is None:
        raise UserError(f"{where}: {match[0]!r} is no range of numbers, {_SHAPE}")
    if match[3] is None:
        step: Decimal | None = Decimal(1)
        if any(end != end.to_integral_value() for end in (first, last)):
            raise UserError(f"{where}: the range {match[0]} needs a step: {match[0]}:0.1")
    else:
        step = _number(match[3])
    if step is None or step <= 0:
        raise UserError(f"{where}: step {match[3]!r} of the range: expected a number above 0")
    if last < first:
        raise UserError(f"{where}: the range {match[0]} falls; write {match[2]}..{match[1]}")
    count = (last - first) / step
    if count > MOST:
        raise UserError(f"{where}: more than {MOST:,} configurations; check the step")
    steps = int(count)
    end = first + step * steps
    if end != last:
        raise UserError(
            f"{where}: steps of {_plain(step)} from {_plain(first)} reach {_plain(end)} and not "
            f"{_plain(last)}; write {_plain(first)}..{_plain(end)}:{_plain(step)}"
        )
    numbers = [first + step * i for i in range(steps + 1)]
    if param.kind == "window" and numbers[-1] >= 1 and any(0 < x < 1 for x in numbers):
        raise UserError(
            f"{where}: the range {match[0]} mixes shares of the budget (below 1) with tokens (from "
            "1 on); write two ranges joined by |"
        )
    return [_plain(x) for x in numbers]


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _plain(number: Decimal) -> str:
    """A decimal without exponent or trailing zeros."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
