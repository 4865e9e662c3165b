"""What an eviction policy is: one declaration that every engine, the CLI and the docs read.

A policy is a :class:`Policy` made of a few *pure scalar functions*. Each function names the values
it wants as arguments and the engines supply them, so a declaration is read the same way by the
plain Python engine, by numba and by the CUDA translator. The values are

=============  ==============================================================================
name           value
=============  ==============================================================================
state fields   the token's own state, one float each (``state=("score",)`` gives ``score``)
``a``          the attention the token received in this step (see ``scores`` below), summed over
               the heads that share the cache; with ``heads=max`` the largest times their number
``a_old``      the same, ``lag`` steps ago; 0 where the token or the row did not exist yet
``pos``        the token's position, 0 … n-1
``t``          the step, i.e. the position of the newest token
``age``        ``t - pos``: 0 for the newest token
``k``          the budget in tokens
``p``          the prompt length; decoding starts at step p
``n``          the length of the whole text, which only an oracle may ask for
``heads``      how many heads share the cache
``size``       tokens in the cache before eviction, the newest included (``keep`` only, which is
               asked in the steps that ``when`` names)
parameters     by their name; a window given as a share of the budget arrives in tokens
inputs         per-token numbers and vectors (``vectors``) known before the run, by their name;
               of an input ``x`` the newest token has ``x_now``, and ``x_mean`` is the mean over
               the cached tokens, the newest included (``update`` and ranks only)
=============  ==============================================================================

One step of a replay: the new token enters with ``init``; the row is attended; ``update`` gives each
cached token its new state; then tokens of least ``rank`` are evicted until ``keep`` (by default k)
are left, the oldest first among equals. Nothing is evicted inside the prompt; at its last row the
cache shrinks to ``keep`` at once.

A rank of ``+inf`` protects a token (recent windows, sinks) unless nothing else is left to evict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.policies.parameters import COMMON, period, resolve_window
from h2osim.policies.roles import MEAN, NOW, PERIOD, ROLES, STEP, Rule, arguments
from h2osim.support.html import facts_html
from h2osim.support.parameters import Arrays, Param, Value, values_of
from h2osim.traces.recorded import RECORDED

INF = math.inf

Array = NDArray[np.float64]
Positions = NDArray[np.uint32]

#: What the engines call by a name of their own.
RESERVED = {*STEP, "pos", "age", *(name for role in ROLES.values() for name in role.values)}


def fixed_window(values: Mapping[str, Value], heads: int) -> bool:
    """Whether an accumulated score is inclusive: recorded rows, a window that does not grow with k.

    A prompt-only rule sees dense rows alone: its ``scores`` reach this as ``full``.
    """
    return values["scores"] == "full" and (values["recent"] == 0 or float(values["recent"]) >= 1)


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
        ``when`` and ``heads`` need not be listed (:meth:`takes`).
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
        It may change the cached tokens' state in these arrays: state of the rankings so far.
    update_cache
        ``update_cache(positions, ...)`` changes the cached tokens' state in its arrays where that
        needs the whole cache at once, in every row of the text, after ``update``; it may ask for
        what ``rank_cache`` may. Not with ``rank``.
    rank_batch
        ``rank_batch(positions, …) -> ranks[m]`` instead of ``rank``, in NumPy or PyTorch: what it
        names arrives as arrays of the m cached tokens, oldest first (``head_row`` and
        ``head_scores`` [heads, m], vectors [m, width]); ``memory`` is a dict of the run's own. It
        may do anything, so it is not exact: it runs in Python, and results say ``batch``.
    visible
        ``visible(...) -> bool``: whether a cached token is attended in step t (default: yes).
    linger
        ``linger(...) -> int``: an evicted token is still attended while its age is at most this
        number, which is the same for the whole run.
    expires
        A rank of ``-inf`` evicts a token even where there is room.
    readmits
        Not a schedule but a bound: every step chooses its k earlier keys afresh, by highest rank.
    inputs, vectors
        ``{name: f(unit, values)}``: per-token numbers, float64 [n], and per-token vectors, float64
        [n, width], fixed before the run; :mod:`h2osim.policies.inputs` has the usual ones.
    vector_state
        ``{name: of}``: state that is a vector as wide as this one of ``vectors``, or ``heads``
        wide; ``init`` and ``update`` give these after the fields of ``state``.
    needs
        Recorded data beyond attention rows: names of :data:`h2osim.traces.recorded.RECORDED`, or
        ``needs(values)`` where that depends on parameters.
    lag
        Name of the parameter that says how many steps back ``a_old`` looks.
    inclusive
        Whether the rank and its timing are independent of the cache and the budget, so that
        caches of growing budgets are nested (proofs/14-inclusion.md); may depend on parameters
        and the number of heads that share the cache: ``inclusive(values, heads) -> bool``.
    oracle
        Sees the future (also: knows ``n``): a reference, never an online policy.
    within_budget
        Never holds more than k tokens after a step in which it acts, as a bool or
        ``within_budget(values)``.
    source_share
        How the source's heads share a cache, where it decides for other heads together than those
        of one KV group: ``layer``.
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
    update_cache: Rule | None = None
    scores: str = "full"
    keep: Rule | None = None
    rank_cache: Rule | None = None
    rank_batch: Rule | None = None
    visible: Rule | None = None
    linger: Rule | None = None
    expires: bool = False
    readmits: bool = False
    inputs: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    vectors: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    vector_state: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] | Callable[[Mapping[str, Value]], tuple[str, ...]] = ()
    lag: str | None = None
    inclusive: bool | Callable[[Mapping[str, Value], int], bool] = False
    oracle: bool = False
    within_budget: bool | Callable[[Mapping[str, Value]], bool] = True
    source_share: str = ""
    notes: str = ""

    def __post_init__(self) -> None:
        if sum(rule is not None for rule in (self.rank, self.rank_cache, self.rank_batch)) != 1:
            raise TypeError(
                f"policy {self.name}: give exactly one of rank, rank_cache and rank_batch"
            )
        if self.update_cache and self.rank:
            raise TypeError(f"policy {self.name}: update_cache can not go with rank")
        if self.rank_batch and (self.visible or self.readmits):
            raise TypeError(f"policy {self.name}: rank_batch can not go with visible or readmits")
        self._check_vectors()
        if self.inclusive is not False:
            self._check_inclusive()
        for ours in COMMON:
            if any(p.name == ours.name and p.kind != ours.kind for p in self.params):
                raise TypeError(
                    f"policy {self.name}: every policy has a parameter {ours.name} already "
                    f"({ours.range}); call yours otherwise, or take shared({ours.name!r}, …)"
                )
        for role, rule in self.rules().items():
            known = ROLES[role].names(self.fields, self.given)
            known |= {
                p.name for p in self.params
                if p.kind != "when" and (p.kind != "arrays" or role == "rank_batch")
            } - {"scores"}  # fmt: skip
            if not self.oracle and "n" in arguments(rule):
                raise TypeError(
                    f"policy {self.name}: {role} asks for n, the length of the whole text, which "
                    "no policy knows while the text grows; do without it, or say oracle=True"
                )
            unknown = set(arguments(rule)) - known
            if unknown:
                raise TypeError(
                    f"policy {self.name}: {role} asks for {', '.join(sorted(unknown))}; it may "
                    f"name {', '.join(sorted(known))}"
                )

    def _check_vectors(self) -> None:
        for name in () if callable(self.needs) else {*self.needs} - {*RECORDED}:
            raise TypeError(
                f"policy {self.name}: needs {name!r}; expected some of {', '.join(RECORDED)}"
            )
        for name, of in self.vector_state.items():
            if of not in self.vectors and of != "heads":
                raise TypeError(
                    f"policy {self.name}: vector_state {name} is as wide as {of!r}; expected one "
                    f"of vectors ({', '.join(self.vectors) or 'none'}) or heads"
                )
        derived = [x + end for x in self.given for end in ("", NOW, MEAN)]
        own = {param.name for param in self.params} - {param.name for param in COMMON}
        names = [*self.fields, *derived, *own, *RESERVED]
        for name in {name for name in names if names.count(name) > 1}:
            raise TypeError(f"policy {self.name}: the name {name} has two meanings")

    def _check_inclusive(self) -> None:
        # What inclusion rules out by its form; the rest is tested, and `keep` before every pass.
        for name in ("visible", "linger", "expires", "lag", "vectors", "means", "rank_batch",
                     "update_cache"):  # fmt: skip
            # what looks back may still be inclusive while it decides by the prompt alone
            if getattr(self, name) and not (name == "lag" and callable(self.inclusive)):
                raise TypeError(f"policy {self.name}: {name} can not go with inclusive")
        for role, rule in self.rules().items():
            if role != "keep" and "k" in arguments(rule):
                raise TypeError(f"policy {self.name}: inclusive, but {role} asks for the budget k")

    @property
    def kind(self) -> str:
        """``online``; or what cannot run online: ``oracle``, or ``bound`` where it re-admits."""
        return "bound" if self.readmits else "oracle" if self.oracle else "online"

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its per-token state, numbers first."""
        return (*self.state, *self.vector_state)

    @property
    def given(self) -> dict[str, Callable[..., Any]]:
        """What makes its inputs, numbers first."""
        return {**self.inputs, **self.vectors}

    @property
    def means(self) -> set[str]:
        """The roles whose rules ask for a mean over the cached tokens."""
        named = {name + MEAN for name in self.given}
        return {role for role, rule in self.rules().items() if named & set(arguments(rule))}

    def rules(self) -> dict[str, Rule]:
        """The functions given, by role."""
        given = {role: getattr(self, role) for role in ROLES}
        return {role: rule for role, rule in given.items() if rule is not None}

    def _repr_html_(self) -> str:
        rows = [(one.name, one.default, one.range, one.doc) for one in self.takes]
        facts = {"rule": self.summary, "source": self.source, "notes": self.notes}
        heads = ("parameter", "default", "values", "meaning")
        return facts_html(f"Policy {self.name}", facts, heads, rows)

    @property
    def takes(self) -> tuple[Param, ...]:
        """Its parameters, and those of all policies that act or add rows over heads."""
        asked = {name for rule in self.rules().values() for name in arguments(rule)}
        fits = {
            "when": not (self.readmits or self.expires),
            "heads": bool(asked & {"a", "a_old"}) and not self.readmits,
        }
        own = {param.name for param in self.params}
        return self.params + tuple(p for p in COMMON if fits[p.name] and p.name not in own)

    def with_params(self, **given: Value) -> Configured:
        """This policy with some parameters set, the rest at their defaults."""
        own = {param.name for param in self.params}
        values = values_of(self.takes, given, f"policy {self.name}")
        values = {name: value for name, value in values.items() if name in own or name in given}
        said = [f"{name}={value}" for name, value in given.items() if value != ""]  # "": no file
        written = ",".join(said)
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

    @property
    def needs(self) -> tuple[str, ...]:
        """The recorded data that it reads beyond attention rows."""
        declared = self.policy.needs
        return declared(self.values) if callable(declared) else declared

    def inclusive(self, heads: int) -> bool:
        """Whether one pass gives every budget, for a unit of this many heads."""
        declared = self.policy.inclusive
        if self.largest_head and heads > 1:  # one pass adds rows up
            return False
        # Renormalised over other caches, the rows of several heads add up to another order.
        seen = self.policy.update is not None and self.scores == "cached" and heads > 1
        if seen and self.when not in ("always", "prompt"):
            return False
        alone = {"scores": "full"} if self.when == "prompt" and "scores" in self.values else {}
        return declared({**self.values, **alone}, heads) if callable(declared) else declared

    @property
    def when(self) -> str:
        """When it acts: always, prompt, or every:m."""
        return str(self.values.get("when", "always"))

    @property
    def largest_head(self) -> bool:
        """Whether a token is shown the largest of its heads' attention, not the sum."""
        return self.values.get("heads") == "max"

    def within_budget(self) -> bool:
        """Whether at most k tokens are held after every step from the prompt's end on."""
        declared = self.policy.within_budget
        held = declared(self.values) if callable(declared) else declared
        return held and self.when == "always"

    def windows(self) -> list[str]:
        """The parameters that say how many of the newest tokens the ranking protects."""
        ranking = self.policy.rank or self.policy.rank_cache or self.policy.rank_batch
        return [name for name in ("recent", "window") if ranking and name in arguments(ranking)]

    def numbers(self, k: int) -> dict[str, int | float]:
        """The parameters as the rules see them at budget k; a choice becomes its index."""
        seen: dict[str, int | float] = {PERIOD: period(self.when)}
        for param in self.policy.params:
            value = self.values[param.name]
            if param.kind in ("when", "arrays"):
                continue
            if param.kind == "choice":
                seen[param.name] = param.choices.index(str(value))
            elif param.kind == "window":
                seen[param.name] = resolve_window(float(value), k)
            else:
                seen[param.name] = float(value) if param.kind == "float" else int(value)
        return seen

    @property
    def arrays(self) -> dict[str, Mapping[str, NDArray[Any]]]:
        """The arrays that were given as parameters, for inputs and ``rank_batch``."""
        found = {name: value for name, value in self.values.items() if isinstance(value, Arrays)}
        return {name: value.content for name, value in found.items()}

    def lag(self) -> int:
        """How many steps back ``a_old`` looks; 0 if the policy does not ask."""
        return int(self.values[self.policy.lag]) if self.policy.lag else 0
