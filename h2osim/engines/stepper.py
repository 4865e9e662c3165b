"""Caches under a policy, fed one row of attention after the other.

:class:`Stepper` is the state of a replay as a thing of its own: the numba engine drives it with
recorded rows, and a decoder that really drops keys can drive it with its own: see
docs/drive-a-decoder.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import ONE_BITS
from h2osim.attention.triangle import rows_in, tri
from h2osim.engines import loop_text
from h2osim.engines.arrays import NO_LISTS, NO_SPANS, STAYS, Cache, Room, Rules, grown
from h2osim.engines.batch import BatchLoop
from h2osim.engines.naive import NaiveStepper
from h2osim.engines.request import scalars
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.inputs import checked
from h2osim.policies.refusing import found_nan, found_zero
from h2osim.policies.roles import SCORE_KINDS, arguments, ask
from h2osim.policies.text import parse
from h2osim.policies.to_numba import compiled, number_slots, sees_heads
from h2osim.support.errors import UserError

#: A policy's numbers per token: float64 [tokens] or [units, tokens], or what makes those of tokens
#: start … stop - 1 when they arrive.
Numbers = NDArray[Any] | Callable[[int, int], Any]

FIRST = 256  # tokens that there is room for at first
MINUS_ZERO = 0x8000  # a float16 pattern; what is a little below 0 rounds to it


@dataclass(frozen=True)
class _Positions:
    """All that is known of a unit before it is decoded: positions 0 … n-1."""

    n: int


class Stepper:
    """The caches of one or more units under one policy, fed rows of attention from outside.

    A step is what it is in a replay: the row attends what is cached and its own token, the policy
    updates its state, and tokens leave until the budget holds. Nothing leaves within the prompt; at
    its last row each cache shrinks at once. The text's length need not be known: the arrays grow.

    Parameters
    ----------
    policy
        Text such as ``h2o:recent=32``, or a policy object.
    budgets
        k in tokens: one number for one unit, or a sequence with one number a unit. Units are
        independent of each other, but are fed together.
    prompt_len
        Rows 0 … p-1 are the prompt, p >= 1.
    heads
        Query heads that share each unit's cache.
    inputs
        For a policy that asks for numbers per token that positions do not determine (``vatp``:
        ``value_norm``): by name an array [tokens] or [units, tokens], or a function of
        (start, stop) that gives those of tokens start … stop-1; it is called when they arrive.
        Vectors have their width as one more axis.
    n
        The length of the whole text, which oracles may ask for.

    Attributes
    ----------
    t
        Rows fed so far, which is the position of the next token.
    kept, masses
        int64 [units, rows]: mass that the rows fed last gave to what they attended, and in all, in
        fixed point (multiples of 2**-24).

    Raises
    ------
    UserError
        Unknown policy or parameter, a size out of range, inputs or n that are missing.
    """

    def __init__(
        self,
        policy: str | Policy | Configured,
        budgets: int | Sequence[int],
        *,
        prompt_len: int = 1,
        heads: int = 1,
        inputs: Mapping[str, Numbers] | None = None,
        n: int | None = None,
    ):
        self._configured = parse(policy)
        declared = self._configured.policy
        self._single = isinstance(budgets, (int, np.integer))
        chosen = list(np.atleast_1d(np.asarray(budgets, object)))
        for word, number in [("prompt_len", prompt_len), ("heads", heads)] + [
            ("budget", k) for k in chosen or [0]
        ]:
            if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
                raise UserError(f"{word} {number!r}: expected a whole number from 1 on")
        self._given = dict(inputs or {})
        for name in self._given:
            if name not in declared.given:
                takes = ", ".join(declared.given) or "none"
                raise UserError(f"policy {declared.name}: no input {name!r}; it takes {takes}")
        for name in declared.vectors:
            if name not in self._given:
                raise UserError(
                    f"policy {declared.name}: a step takes its vectors {name} from outside; give "
                    f"inputs={{{name!r}: …}}"
                )
        for role, rule in declared.rules().items():
            if n is None and "n" in arguments(rule):
                raise UserError(
                    f"policy {declared.name}: {role} asks for the text's length; give n"
                )
        self._p, self._n, self._heads = prompt_len, n or 0, heads
        self._scalars = [
            scalars(self._configured, int(k), prompt_len, heads, self._n) for k in chosen
        ]
        self._linger = [ask(declared.rules(), "linger", known) for known in self._scalars]
        self._lag = self._configured.lag()
        self._advance: Callable[..., int] = (
            BatchLoop(self._configured, self._scalars, NaiveStepper)
            if declared.rank_batch
            else compiled(declared, loop_text("direct_loop"))
        )
        self.t = 0
        self.kept = self.masses = np.zeros((len(chosen), 0), np.int64)
        ints, floats = number_slots(declared)
        self._rules = Rules(
            np.array(chosen, np.int64),
            np.array([[known[name] for name in ints] for known in self._scalars], np.int64),
            np.array([[known[name] for name in floats] for known in self._scalars], np.float64),
            np.zeros((len(chosen), len(declared.inputs), 0)),
            np.zeros((len(chosen), 0, 0)),
            NO_SPANS,
            NO_SPANS,
        )
        self._cache = Cache(
            np.zeros((len(chosen), 0), np.uint32),
            np.zeros((len(chosen), 2), np.int64),
            np.zeros((len(chosen), 0), np.int32),
            np.zeros((len(chosen), len(declared.state), 0)),
            np.zeros((len(chosen), 0, 0)),
            np.zeros((len(chosen), 0, 0)),
            np.zeros((len(chosen), heads, 0)),
        )
        self._reserve(n or FIRST)

    # --- feeding ---------------------------------------------------------------------------------

    def step(self, rows: Any) -> Any:
        """Feed the next row, or the next rows; gives the tokens that are never attended again.

        One row has shape [heads, width], r rows at once [heads, r, width]; with budgets given as a
        sequence there is one more axis in front, the unit. The width is t + 1 (t + r): one entry a
        position, ascending, what lies beyond a row's own token being ignored. A decoder that has
        dropped keys may give 0 for them, or leave them out: a single row's width may also be that
        of ``attended`` (units then come as a list where their widths differ).

        Entries are probabilities, float of any size (rounded to float16) or the bit patterns of
        float16 as uint16. Policies see a row renormalised over what is attended or as it is given,
        by their parameter ``scores``; where nothing is left out, the two are the same.

        Returns positions, ascending: int64 [·] for one unit, a list of them for several. A token
        that is only hidden for some steps, or still lingers, is not among them.
        """
        units = [rows] if self._single else list(rows)
        if len(units) != len(self._scalars):
            raise UserError(f"rows of {len(units)} units: expected {len(self._scalars)}")
        packed = [self._packed(u, one) for u, one in enumerate(units)]
        if len({bits.shape for bits in packed}) > 1:
            raise UserError("rows: expected as many for each unit")
        start = self.t
        bits = np.stack(packed)
        bits.flags.writeable = False
        self.feed(bits, start, start, rows_in(bits.shape[-1] + tri(start)))
        gone = [np.flatnonzero((last >= start) & (last < self.t)) for last in self._last()]
        return gone[0] if self._single else gone

    def feed(
        self,
        bits: NDArray[np.uint16],
        first: int,
        start: int,
        stop: int,
        lists: tuple[NDArray[np.uint32], NDArray[np.int64]] | None = None,
    ) -> None:
        """Feed rows start … stop-1; ``bits`` hold rows first … stop-1, packed and read-only.

        uint16 [units, heads, packed]: row t begins at tri(t) - tri(first), and its entries are
        patterns of float16 numbers in [0, 1]; neither is checked. ``lists``, for one unit: room for
        the tokens that each decode row does not attend, uint32 [rows, stop], and their number.
        """
        if start != self.t:
            raise ValueError(f"row {start}: expected row {self.t}")
        if stop > self._cache.left.shape[1]:
            self._reserve(max(stop, 2 * self._cache.left.shape[1]))
        self._fill(start, stop)
        self.kept = np.zeros((len(bits), stop - start), np.int64)
        self.masses = np.zeros_like(self.kept)
        policy = self._configured.policy
        try:
            nan = self._advance(
                bits, first, start, stop, self._p, self._n,
                SCORE_KINDS.index(self._configured.scores), self._configured.largest_head,
                self._lag, self._rules, self._cache, self._room, self.kept, self.masses,
                *(lists or NO_LISTS),
            )  # fmt: skip
        except ZeroDivisionError:
            raise UserError(found_zero(policy, int(self._room.at[0]))) from None
        if nan >= 0:
            raise UserError(found_nan(policy.name, "rank" if policy.rank else "rank_cache", nan))
        self.t = stop

    def _packed(self, unit: int, rows: Any) -> NDArray[np.uint16]:
        """One unit's rows as patterns, packed: uint16 [heads, packed]."""
        array, t, heads = np.asarray(rows), self.t, self._heads
        if array.ndim == 2 and array.shape == (heads, t + 1):
            pass
        elif array.ndim == 2 and array.shape == (heads, len(places := self._attended(unit))):
            whole = np.zeros((heads, t + 1), array.dtype)
            whole[:, places] = array
            array = whole
        elif array.ndim == 3 and array.shape == (heads, r := array.shape[1], t + r) and r:
            array = array[:, np.arange(t + r) <= t + np.arange(r)[:, None]]
        else:
            raise UserError(
                f"rows of shape {array.shape}: expected [heads, width] = ({heads}, {t + 1}) or "
                f"({heads}, {len(self._attended(unit))}), or [heads, rows, {t} + rows]"
            )
        if array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                bits = array.astype(np.float16, copy=False).view(np.uint16)
            bits = np.where(bits == MINUS_ZERO, np.uint16(0), bits)
        elif array.dtype == np.uint16:
            bits = array
        else:
            raise UserError(f"rows of {array.dtype}: expected float, or uint16 patterns of float16")
        if bits.max() > ONE_BITS:
            wrong = array[bits > ONE_BITS][0]
            raise UserError(f"row {t}: {wrong} among its entries, expected 0 to 1")
        return bits

    # --- looking ---------------------------------------------------------------------------------

    @property
    def cached(self) -> Any:
        """The positions cached, ascending: int64 [·] for one unit, a list of them for several."""
        tokens, sizes = self._cache.tokens.astype(np.int64), self._cache.sizes
        found = [tokens[u, :m] for u, (m, _) in enumerate(sizes)]
        return found[0] if self._single else found

    @property
    def attended(self) -> Any:
        """The positions that the next row attends, its own last; as ``cached``.

        What is cached but hidden is left out, what was evicted and lingers is there.
        """
        found = [self._attended(u) for u in range(len(self._scalars))]
        return found[0] if self._single else found

    @property
    def evicted_at(self) -> NDArray[np.int32]:
        """int32 [t], or [units, t]: the step after which each token is never attended again.

        t for a token that is still there.
        """
        found = np.minimum(self._last(), self.t).astype(np.int32)
        return found[0] if self._single else found

    @property
    def held(self) -> Any:
        """The most keys that a decode step attended besides its own: int, or int64 [units]."""
        return int(self._cache.sizes[0, 1]) if self._single else self._cache.sizes[:, 1].copy()

    def visible(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which tokens the policy's rule ``visible`` lets decode rows start … stop-1 attend.

        bool [units, rows, stop], evicted tokens and those after a row's own included.
        """
        found = np.ones((len(self._scalars), stop - start, stop), bool)
        see = compiled(self._configured.policy, loop_text("direct_loop"), "see")
        see(self._rules, start, self._p, self._n, self._heads, found)
        return found

    def _last(self) -> NDArray[np.int64]:
        """The step after which each token is never attended again; STAYS while it is cached."""
        left = self._cache.left[:, : self.t].astype(np.int64)
        lingers = np.arange(self.t) + np.array(self._linger)[:, None]
        return np.where(left < STAYS, np.maximum(left, lingers), STAYS)

    def _attended(self, unit: int) -> NDArray[np.int64]:
        policy, t, left = self._configured.policy, self.t, self._cache.left[unit, : self.t]
        there = left == STAYS
        if policy.visible and t >= self._p:
            for j in map(int, np.flatnonzero(there)):
                known = {**self._scalars[unit], "t": t, "pos": j, "age": t - j}
                there[j] = ask(policy.rules(), "visible", known)
        if policy.linger:
            there |= (left < STAYS) & (t - np.arange(t) <= self._linger[unit])
        return np.append(np.flatnonzero(there), t)

    # --- room ------------------------------------------------------------------------------------

    def _reserve(self, tokens: int) -> None:
        """Make room for this many tokens, whatever is there staying as it is."""
        policy, heads = self._configured.policy, self._heads
        by_head = tokens if sees_heads(policy) else 0
        known, cache = self._rules.inputs, self._cache
        self._cache = Cache(
            grown(cache.tokens, tokens),
            cache.sizes,
            grown(cache.left, tokens, fill=STAYS),
            grown(cache.state, tokens),
            grown(cache.vectors, tokens, axis=1),
            grown(grown(cache.history, tokens), min(self._lag, tokens), axis=1),
            grown(cache.head_scores, by_head),
        )
        vectors = grown(self._rules.vectors, tokens, axis=1)
        self._rules = self._rules._replace(inputs=grown(known, tokens), vectors=vectors)
        self._room = Room(
            np.zeros(tokens),
            np.zeros(1, np.int64),
            np.zeros(len(policy.inputs)),
            np.zeros(vectors.shape[2]),
            np.zeros(tokens, np.int64),
            np.zeros((heads, tokens), np.int32),
            np.zeros((heads, by_head)),
            np.zeros(heads, np.int64),
            np.zeros(heads, np.int64),
        )
        for i, (name, make) in enumerate(policy.inputs.items()):
            if name in self._given:
                continue
            for unit, numbers in enumerate(self._scalars):
                try:
                    given = make(_Positions(tokens), {**numbers, **self._configured.arrays})
                except AttributeError:
                    raise UserError(
                        f"policy {policy.name}: positions do not determine its input {name}; "
                        f"give inputs={{{name!r}: …}}"
                    ) from None
                found = checked(given, policy.name, name, (tokens,))
                if (found[: known.shape[2]] != known[unit, i]).any():
                    raise UserError(
                        f"policy {policy.name}: its input {name} changes as the text grows; "
                        f"give inputs={{{name!r}: …}}"
                    )
                self._rules.inputs[unit, i] = found

    def _fill(self, start: int, stop: int) -> None:
        """Take over the given inputs of the tokens that arrive."""
        policy = self._configured.policy
        for i, name in enumerate(policy.inputs):
            if name in self._given:
                self._rules.inputs[:, i, start:stop] = self._arriving(name, start, stop, ())
        vectors = [self._arriving(name, start, stop, (None,)) for name in policy.vectors]
        if not self.t:
            self._widen([found.shape[-1] for found in vectors])
        for found, (a, b) in zip(vectors, pairwise(self._rules.spans), strict=True):
            self._rules.vectors[:, start:stop, a:b] = found

    def _arriving(
        self, name: str, start: int, stop: int, width: tuple[None, ...]
    ) -> NDArray[np.float64]:
        """A given input of the tokens that arrive; ``width``: the axes it has besides theirs."""
        given = self._given[name]
        here: tuple[Any, ...] = (..., slice(start, stop), *(slice(None) for _ in width))
        some = given(start, stop) if callable(given) else given[here]
        shape: tuple[int, ...] = (len(self._scalars), stop - start)
        shape += np.shape(some)[-1:] if width else ()
        if np.shape(some) not in (shape, shape[1:]):
            raise UserError(
                f"input {name} of tokens {start} to {stop - 1}: shape {np.shape(some)}, "
                f"expected {shape[1:]} or {shape}"
            )
        expected = np.shape(some)[:-1] + width if width else np.shape(some)
        return checked(some, self._configured.policy.name, name, expected)

    def _widen(self, widths: list[int]) -> None:
        """Make room for vectors of these widths, and for the state that is as wide."""
        policy, units, tokens = self._configured.policy, len(self._scalars), len(self._room.ranks)
        of = {**dict(zip(policy.vectors, widths, strict=True)), "heads": self._heads}
        spans = np.cumsum([0, *widths])
        of_state = np.cumsum([0, *(of[name] for name in policy.vector_state.values())])
        self._rules = self._rules._replace(
            vectors=np.zeros((units, tokens, spans[-1])), spans=spans, state_spans=of_state
        )
        self._cache = self._cache._replace(vectors=np.zeros((units, tokens, of_state[-1])))
        self._room = self._room._replace(vector_means=np.zeros(spans[-1]))
