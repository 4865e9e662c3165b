"""Finding policies: those of h2osim/policies/library, of installed packages, and files."""

from __future__ import annotations

import importlib
import importlib.util
import linecache
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from h2osim.policies.declaration import Policy
from h2osim.policies.presses import known_as
from h2osim.policies.refusing import refuse
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
    if name in plugins():
        return _plugin(name)
    if name not in known:
        raise UserError(
            f"unknown policy {name!r}{known_as(name) or near(name, [*known, *plugins()])} "
            f"(`h2osim policies` lists all {len(known) + len(plugins())})"
        )
    return known[name]


@cache
def _load(file: Path, changed: int) -> Policy:
    """The file's policy; ``changed`` makes an edited file a new one."""
    linecache.checkcache(str(file))  # the engines read the rules' source through it
    spec = importlib.util.spec_from_file_location(f"h2osim_user_{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _code_of_others(f"policy file {file}"):
        spec.loader.exec_module(module)
    policy = getattr(module, "POLICY", None)
    if not isinstance(policy, Policy):
        raise UserError(f"policy file {file}: expected a module-level POLICY = Policy(…)")
    refuse(policy)
    return policy


@contextmanager
def _code_of_others(where: str) -> Iterator[None]:
    """Whatever it raises is one line to the user; it must not end this program by sys.exit."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error


@cache
def plugins() -> dict[str, EntryPoint]:
    """Policies of installed packages by name: their entry points in the group h2osim.policies.

    One of ours is never replaced.
    """
    found = {point.name: point for point in entry_points(group="h2osim.policies")}
    return {name: point for name, point in found.items() if name not in all_policies()}


@cache
def _plugin(name: str) -> Policy:
    point = plugins()[name]
    where = f"policy {name}: entry point {point.value}"
    with _code_of_others(where):
        policy = point.load()
    if not isinstance(policy, Policy) or policy.name != name:
        found = f"policy {policy.name}" if isinstance(policy, Policy) else type(policy).__name__
        raise UserError(f"{where}: found {found}, expected a Policy called {name}")
    refuse(policy)
    return policy
