"""Policies as text: h2o:recent=32,scores=full."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.registry import all_policies, find
from h2osim.support.errors import UserError
from h2osim.support.parameters import split_call


def parse(text: str | Policy | Configured) -> Configured:
    """Read ``h2o:recent=32,scores=full``; policy objects pass through."""
    if isinstance(text, Configured):
        return text
    if isinstance(text, Policy):
        return text.with_params()
    if not isinstance(text, str):
        raise UserError(f"policy {text!r}: expected a text like h2o:recent=32, or a Policy")
    name, given = split_call(text, "policy")
    configured = find(name).with_params(**given)
    return Configured(configured.policy, configured.values, text.strip())


def parse_all(policies: Any) -> list[Configured]:
    """One policy or several, as texts or objects."""
    if isinstance(policies, str) or not isinstance(policies, Iterable):
        policies = [policies]
    return [parse(one) for one in policies]


def split_policies(text: str) -> list[str]:
    """Split a comma-separated list of policies; ``name=`` after a comma stays with its policy.

    A name that is no parameter of that policy but a policy itself begins the next one, and the
    value is its first parameter's: ``decay=0.9`` is short for ``decay:gamma=0.9``.

    >>> split_policies("h2o:recent=32,scores=full,tova,decay=0.9")
    ['h2o:recent=32,scores=full', 'tova', 'decay:gamma=0.9']
    """
    found: list[str] = []
    for part in (s.strip() for s in text.split(",")):
        if not part:
            continue
        key, equals, value = (word.strip() for word in part.partition("="))
        other = all_policies().get(key) if equals else None
        if found and ":" in found[-1] and equals and re.fullmatch(r"[\w-]+", key):
            before = all_policies().get(found[-1].partition(":")[0])
            if other is None or before is None or any(key == p.name for p in before.takes):
                found[-1] += f",{part}"
                continue
        if other is not None and other.params:
            found.append(f"{key}:{other.params[0].name}={value}")
        else:
            found.append(part)
    return found
