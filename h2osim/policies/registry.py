"""Finding policies: those of h2osim/policies/library, and files of the user's."""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import pkgutil
from functools import cache
from pathlib import Path

from h2osim.policies.declaration import Policy
from h2osim.support.errors import UserError
from h2osim.support.wording import near


@cache
def all_policies() -> dict[str, Policy]:
    """Every policy of ``h2osim/policies/library``, by name: each module declares ``POLICY``."""
    package = importlib.import_module("h2osim.policies.library")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        policy = importlib.import_module(f"h2osim.policies.library.{module.name}").POLICY
        found[policy.name] = policy
    return found


def find(name: str) -> Policy:
    """A policy by its name, or by the path of a Python file that declares ``POLICY``."""
    if name.endswith(".py"):
        file = Path(name)
        if not file.is_file():
            raise UserError(f"policy file {name}: no such file")
        return _load(file, file.stat().st_mtime_ns)
    known = all_policies()
    if name not in known:
        raise UserError(
            f"unknown policy {name!r}{near(name, known)} (`h2osim policies` lists all {len(known)})"
        )
    return known[name]


@cache
def _load(file: Path, changed: int) -> Policy:
    """The file's policy; ``changed`` makes an edited file a new one."""
    linecache.checkcache(str(file))  # the engines read the rules' source through it
    spec = importlib.util.spec_from_file_location(f"h2osim_user_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises, it is one line to the user
        raise UserError(f"policy file {file}: {type(error).__name__}: {error}") from error
    policy = getattr(module, "POLICY", None)
    if not isinstance(policy, Policy):
        raise UserError(f"policy file {file}: expected a module-level POLICY = Policy(…)")
    return policy
