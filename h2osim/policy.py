"""What an eviction policy is: one declaration that every engine, the CLI and the docs read.

A policy is a :class:`Policy` made of a few *pure scalar functions*. Each function names the values
it wants as arguments and the engines supply them, so a declaration is read the same way by the
plain Python engine, by numba and by the CUDA translator. The values are

=============  ==============================================================================
name           value
=============  ==============================================================================
state fields   the token's own state, one float each (``state=("score",)`` gives ``score``)
``a``          the attention the token received in this step (see ``scores`` below)
``a_old``      the same, ``lag`` steps ago; 0 where the token or the row did not exist yet
``pos``        the token's position, 0 … n-1
``t``          the step, i.e. the position of the newest token
``age``        ``t - pos``: 0 for the newest token
``k``          the budget in tokens
``p``          the prompt length; decoding starts at step p
``n``          the length of the trace
``heads``      how many heads share the cache
``size``       tokens in the cache before eviction, the newest included (``keep`` only)
parameters     by their name; a window given as a share of the budget arrives in tokens
inputs         per-token numbers computed before the run, by their name
=============  ==============================================================================

One step of a replay: the new token enters with ``init``; the row is attended; ``update`` gives each
cached token its new state; then tokens of least ``rank`` are evicted until ``keep`` (by default k)
are left, the oldest first among equals. Nothing is evicted inside the prompt; at its last row the
cache shrinks to ``keep`` at once.

A rank of ``+inf`` protects a token (recent windows, sinks) unless nothing else is left to evict.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import linecache
import math
import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from h2osim.errors import UserError

INF = math.inf

Value = int | float | str
Array = NDArray[np.float64]
#: What the policy is shown of a row: see :class:`Policy`.
SCORE_KINDS = ("full", "cached")


@dataclass(frozen=True)
class Param:
    """A typed, ranged, documented parameter of a policy.

    ``kind`` is ``int``, ``float``, ``choice`` or ``window``: a number of tokens from 1 on, a share
    of the budget below 1 (rounded down to tokens).
    """

    name: str
    default: Value
    doc: str
    kind: Literal["int", "float", "choice", "window"] = "int"
    low: float = 0
    high: float = 2**31 - 1
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The accepted values, in words."""
        if self.kind == "choice":
            return " | ".join(self.choices)
        kind = {"int": "whole number", "float": "number", "window": "tokens, or share below 1"}
        top = "" if self.high == 2**31 - 1 else f" to {self.high:g}"
        return f"{kind[self.kind]}, {self.low:g}{top or ' up'}"

    def read(self, text: Value, policy: str) -> Value:
        """Turn what the user wrote into a value, or raise :class:`UserError`."""
        if self.kind == "choice":
            if text in self.choices:
                return text
            raise self._wrong(text, policy)
        try:
            number = float(text)
        except ValueError:
            raise self._wrong(text, policy) from None
        whole = number.is_integer()
        fits = self.low <= number <= self.high
        if self.kind == "int" or (self.kind == "window" and number >= 1):
            fits = fits and whole
        if not fits or math.isnan(number):
            raise self._wrong(text, policy)
        return number if self.kind == "float" or not whole else int(number)

    def _wrong(self, found: Value, policy: str) -> UserError:
        return UserError(f"policy {policy}: {self.name}={found}: expected {self.range}")


def resolve_window(window: float, k: int) -> int:
    """A window in tokens: itself from 1 on, its share of the budget (rounded down) below 1.

    Decimal fractions are taken as written, so that 0.29 of 100 is 29.
    """
    return int(window) if window >= 1 else math.floor(Fraction(str(window)) * k)


#: The shared parameters; a policy picks its default with :func:`shared`.
_SHARED = {
    "sinks": Param(
        "sinks", 0, "oldest tokens that are never evicted (if all that is protected fits)"
    ),
    "recent": Param("recent", 0.5, "newest tokens that are never evicted", "window"),
    "scores": Param(
        "scores",
        "cached",
        "what the policy sees of a row: the recorded one, or one renormalised over the cache",
        "choice",
        choices=("full", "cached"),
    ),
    "gamma": Param("gamma", 0.98, "decay of the accumulated score a step", "float", 0, 1),
    "window": Param("window", 64, "observation window: rows of the prompt's end", "int", 1),
    "kernel": Param(
        "kernel", 5, "keys averaged around each key (an even width acts as the next odd)", "int", 1
    ),
    "when": Param(
        "when",
        "always",
        "evict in every step, or once at the prompt's end and never again",
        "choice",
        choices=("always", "prompt"),
    ),
    "seed": Param("seed", 0, "seed of the per-token hash", "int", 0, 2**53),
}


def shared(name: str, default: Value, **changes: Any) -> Param:
    """A shared parameter with this policy's own default (and, if need be, range or words)."""
    known = _SHARED[name]
    return Param(**{**known.__dict__, "default": default, **changes})


def fixed_window(values: Mapping[str, Value], heads: int) -> bool:
    """T7's condition for an accumulated score: recorded rows, a window that does not grow with k.

    A prompt-only rule sees dense rows alone, whatever its scores.
    """
    fixed = values["recent"] == 0 or float(values["recent"]) >= 1
    return fixed and (values["scores"] == "full" or values.get("when") == "prompt")


Rule = Callable[..., Any]
#: The roles a rule can play and the values it may name besides parameters, state and inputs.
_SCALARS = {"t", "k", "p", "n", "heads"}
_TOKEN = _SCALARS | {"pos", "age"}
ROLES: Mapping[str, set[str]] = {
    "init": _TOKEN,
    "update": _TOKEN | {"a", "a_old"},
    "rank": _TOKEN,
    "rank_cache": _SCALARS | {"positions", "ranks", "head_scores", "head_row"},
    "keep": _SCALARS | {"size"},
    "visible": _TOKEN,
    "linger": _SCALARS,
}
_PER_TOKEN = {"init", "update", "rank", "rank_cache"}  # these also see state and inputs


@dataclass(frozen=True)
class Policy:
    """An eviction policy.

    Parameters
    ----------
    name, summary, source
        What it is called, one line on the rule, and where it comes from (arXiv number).
    rank
        ``rank(...) -> float``: least is evicted, the oldest first among equals.
    params
        :class:`Param` objects; ``scores`` among them lets the user choose what is observed.
    state, init, update
        Names of the per-token state; ``init(...)`` gives a new token's state (default 0),
        ``update(...)`` the state after a step (one float, or a tuple in the order of ``state``).
    scores
        What ``a`` is when ``scores`` is no parameter: ``full``: sum over the unit's heads of
        A[t, j]; ``cached``: each head's row renormalised over the attended keys, A[t, j] / r_t.
        Rows of the prompt are dense and always ``full``.
    keep
        ``keep(size, ...) -> int``: how many tokens may stay after this step (default k).
    rank_cache
        ``rank_cache(positions, ranks, ...)`` fills ``ranks[i]`` for the cached ``positions[i]``
        (oldest first) where a rank needs the whole cache; state and inputs then arrive as arrays
        indexed by position, and it may ask for ``head_row[h][j]``, what head h showed of token j in
        this step, and ``head_scores[h][j]``, the sum of that so far. Given instead of ``rank``.
    visible
        ``visible(...) -> bool``: whether a cached token is attended in step t (default: yes).
    linger
        ``linger(...) -> int``: an evicted token is still attended while its age is at most this.
    expires
        A rank of ``-inf`` evicts a token even where there is room.
    readmits
        Not a schedule but a bound: every step chooses its k earlier keys afresh, by highest rank.
    inputs
        ``{name: f(unit, values) -> float64[n]}``: per-token numbers fixed before the run.
    needs
        Recorded data beyond attention rows, in words for tables (``value norms``).
    lag
        Name of the parameter that says how many steps back ``a_old`` looks.
    inclusive
        Whether the rank and its timing are independent of the cache and the budget, so that
        caches of growing budgets are nested (theorem T7); may depend on parameters and the number
        of heads that share the cache: ``inclusive(values, heads) -> bool``.
    oracle
        Sees the future: a reference, never an online policy.
    within_budget
        Never holds more than k tokens after a step, as a bool or ``within_budget(values)``.
        Prompt-only and periodic rules do hold more.
    notes
        Where we differ from the source.
    """

    name: str
    summary: str
    source: str
    rank: Rule | None = None
    params: tuple[Param, ...] = ()
    state: tuple[str, ...] = ()
    init: Rule | None = None
    update: Rule | None = None
    scores: str = "full"
    keep: Rule | None = None
    rank_cache: Rule | None = None
    visible: Rule | None = None
    linger: Rule | None = None
    expires: bool = False
    readmits: bool = False
    inputs: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    needs: str = ""
    lag: str | None = None
    inclusive: bool | Callable[[Mapping[str, Value], int], bool] = False
    oracle: bool = False
    within_budget: bool | Callable[[Mapping[str, Value]], bool] = True
    notes: str = ""

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.rank_cache is None):
            raise TypeError(f"policy {self.name}: give exactly one of rank and rank_cache")
        if self.inclusive is not False:
            self._check_inclusive()
        for role, rule in self.rules().items():
            known = ROLES[role] | ({p.name for p in self.params} - {"scores"})
            if role in _PER_TOKEN:
                known |= {*self.state, *self.inputs}
            unknown = set(arguments(rule)) - known
            if unknown:
                raise TypeError(
                    f"policy {self.name}: {role} asks for {', '.join(sorted(unknown))}; it may "
                    f"name {', '.join(sorted(known))}"
                )

    def _check_inclusive(self) -> None:
        # What T7 rules out by its form; the rest is tested (and `keep` again before every pass).
        for name in ("visible", "linger", "expires", "lag"):
            if getattr(self, name):
                raise TypeError(f"policy {self.name}: {name} can not go with inclusive (T7)")
        for role, rule in self.rules().items():
            if role != "keep" and "k" in arguments(rule):
                raise TypeError(f"policy {self.name}: inclusive, but {role} asks for the budget k")

    def rules(self) -> dict[str, Rule]:
        """The functions given, by role."""
        given = {role: getattr(self, role) for role in ROLES}
        return {role: rule for role, rule in given.items() if rule is not None}

    def with_params(self, **given: Value) -> Configured:
        """This policy with some parameters set, the rest at their defaults."""
        known = {p.name: p for p in self.params}
        for name in given:
            if name not in known:
                raise UserError(
                    f"policy {self.name}: unknown parameter {name!r}"
                    + (near(name, known) or f"; it takes {', '.join(known) or 'none'}")
                )
        values = {n: p.read(given.get(n, p.default), self.name) for n, p in known.items()}
        written = ",".join(f"{name}={value}" for name, value in given.items())
        return Configured(self, values, f"{self.name}:{written}" if written else self.name)


@dataclass(frozen=True)
class Configured:
    """A policy with a value for every parameter; ``text`` is how the user wrote it."""

    policy: Policy
    values: Mapping[str, Value]
    text: str

    @property
    def scores(self) -> str:
        """What the policy is shown of a row: full or cached."""
        return str(self.values.get("scores", self.policy.scores))

    def inclusive(self, heads: int) -> bool:
        """Whether one pass gives every budget (T7), for a unit of this many heads."""
        told = self.policy.inclusive
        return told(self.values, heads) if callable(told) else told

    def within_budget(self) -> bool:
        """Whether at most k tokens are held after every step from the prompt's end on."""
        told = self.policy.within_budget
        return told(self.values) if callable(told) else told

    def numbers(self, k: int) -> dict[str, int | float]:
        """The parameters as the rules see them at budget k; a choice becomes its index."""
        seen: dict[str, int | float] = {}
        for param in self.policy.params:
            value = self.values[param.name]
            if param.kind == "choice":
                seen[param.name] = param.choices.index(str(value))
            elif param.kind == "window":
                seen[param.name] = resolve_window(float(value), k)
            else:
                seen[param.name] = float(value) if param.kind == "float" else int(value)
        return seen

    def lag(self) -> int:
        """How many steps back ``a_old`` looks; 0 if the policy does not ask."""
        return int(self.values[self.policy.lag]) if self.policy.lag else 0


@cache
def arguments(rule: Rule) -> tuple[str, ...]:
    """The names of a rule's arguments."""
    return tuple(inspect.signature(rule).parameters)


def near(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """``; did you mean …?`` for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, list(known), 3, 0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""


@cache
def all_policies() -> dict[str, Policy]:
    """Every policy found in ``h2osim/policies``, by name: each module there declares ``POLICY``."""
    package = importlib.import_module("h2osim.policies")
    found = {}
    for module in pkgutil.iter_modules(package.__path__):
        policy = importlib.import_module(f"h2osim.policies.{module.name}").POLICY
        found[policy.name] = policy
    return found


def find(name: str) -> Policy:
    """A policy by its name, or by the path of a Python file that declares ``POLICY``."""
    if name.endswith(".py"):
        return _from_file(name)
    known = all_policies()
    if name not in known:
        raise UserError(
            f"unknown policy {name!r}{near(name, known)} (`h2osim policies` lists all {len(known)})"
        )
    return known[name]


def _from_file(path: str) -> Policy:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"policy file {path}: no such file")
    return _load(file, file.stat().st_mtime_ns)


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


def parse(text: str | Policy | Configured) -> Configured:
    """Read ``h2o:recent=32,scores=full``; policy objects pass through."""
    if isinstance(text, Configured):
        return text
    if isinstance(text, Policy):
        return text.with_params()
    name, _, rest = text.strip().partition(":")
    given: dict[str, Value] = {}
    for part in filter(None, (s.strip() for s in rest.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value:
            raise UserError(f"policy {text!r}: {part!r} is not of the form parameter=value")
        if key in given:
            raise UserError(f"policy {text!r}: parameter {key} given twice")
        given[key] = value
    configured = find(name).with_params(**given)
    return Configured(configured.policy, configured.values, text.strip())


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
            if other is None or before is None or any(key == p.name for p in before.params):
                found[-1] += f",{part}"
                continue
        if other is not None and other.params:
            found.append(f"{key}:{other.params[0].name}={value}")
        else:
            found.append(part)
    return found
