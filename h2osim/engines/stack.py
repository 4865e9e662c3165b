"""The stack engine: every budget of an inclusive policy in one pass (Mattson's stack).

Why the caches are nested is proved in proofs/14-inclusion.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from h2osim.engines import loop_text
from h2osim.engines.arrays import NO_LISTS, NO_SPANS
from h2osim.engines.errors import Outputs, RunErrors
from h2osim.engines.request import Job
from h2osim.engines.results import Curve, Errors
from h2osim.policies.refusing import found_nan
from h2osim.policies.roles import PERIOD, Given, Own, Rule, ask
from h2osim.policies.to_numba import compiled, number_slots
from h2osim.support.errors import UserError
from h2osim.traces.unit import Block


class Pass(NamedTuple):
    """The arrays of a pass. The stack has m tokens, and w tokens are pending.

    The first four are what rules are given. Rows are in fixed point, summed over heads.
    """

    state: Own
    inputs: Given
    ints: NDArray[np.int64]  # the policy's whole parameters
    floats: NDArray[np.float64]  # its fractional ones
    sizes_now: NDArray[np.int64]  # m and w, between calls
    stack: NDArray[np.uint32]  # [:m] tokens by depth; the cache of budget k is stack[:k]
    pending: NDArray[np.uint32]  # [:w] tokens since the last eviction, oldest first; all hold them
    hits: NDArray[np.int64]  # [d] what decode rows gave to depth d, [0] to pending tokens
    budgets: NDArray[np.int64]  # ascending, whose evictions are recorded
    following: NDArray[np.int64]  # [d] index of the first listed budget of at least d
    evicted: NDArray[np.int32]  # [b, j] step after which budgets[b] has lost token j, or n
    masses: NDArray[np.int64]  # [t - p] whole mass of each decode row
    sizes: NDArray[np.int64]  # [:, t - p] m and w as decode step t found them
    ranks: NDArray[np.float64]  # [j] this step's ranks
    line: NDArray[Any]  # [j] this step's row


class StackRun:
    """A pass that is fed blocks of rows, in order, and keeps O(n) state between them.

    ``job.budget`` plays no part; ``budgets`` (ascending) are those whose evictions are recorded;
    ``outputs`` is what has read each block before, where errors are wanted.
    """

    def __init__(self, job: Job, budgets: Sequence[int] = (), outputs: Outputs | None = None):
        policy, n, p = job.configured.policy, job.unit.n, job.prompt_len
        _check_timing(policy.name, policy.keep, policy.rank_cache is not None, p, _known(job))
        ints, floats = number_slots(policy)
        self._job = job
        self._errors = None if outputs is None else RunErrors(outputs, every=True)
        self._advance = compiled(
            policy, loop_text("stack_loop"), "bound" if policy.readmits else "advance"
        )
        listed = np.array(budgets, np.int64)
        self._run = Pass(
            state=Own(np.zeros((max(1, len(policy.state)), n)), np.zeros((n, 0)), NO_SPANS),
            inputs=Given(
                np.array([job.inputs[name] for name in policy.inputs] or np.zeros((1, 1))),
                np.zeros((n, 0)),
                NO_SPANS,
                np.zeros(0),
                np.zeros(0),
            ),
            ints=np.array([job.scalars[name] for name in ints] or [0], np.int64),
            floats=np.array([job.scalars[name] for name in floats] or [0.0], np.float64),
            sizes_now=np.zeros(2, np.int64),
            stack=np.zeros(n, np.uint32),
            pending=np.zeros(n, np.uint32),
            hits=np.zeros(n + 1, np.int64),
            budgets=listed,
            following=np.searchsorted(listed, np.arange(n + 2)),
            evicted=np.full((len(listed), n), n, np.int32),
            masses=np.zeros(n - p, np.int64),
            sizes=np.zeros((2, n - p), np.int64),
            ranks=np.zeros(n),
            # a row of up to 127 heads fits 32 bits (2**24 each), twice as many of them a vector
            line=np.zeros(n, np.int32 if len(job.unit.heads) < 128 else np.int64),
        )

    def feed(self, block: Block) -> None:
        """Replay the block's new rows."""
        lists = NO_LISTS if self._errors is None else self._errors.room(block)
        nan = self._advance(
            block.bits, block.first, block.start, block.stop, self._job.prompt_len, self._run,
            *lists,
        )  # fmt: skip
        if nan >= 0:
            raise UserError(found_nan(self._job.configured.policy.name, "rank", nan))
        if self._errors is not None:
            self._errors.add(block, *lists)

    @property
    def masses(self) -> np.ndarray:
        """int64[n - p]: the whole mass of each decode row, in fixed point."""
        return self._run.masses

    def result(self) -> Curve:
        """The result for every budget, once every row has been fed."""
        held = most_attended(self._job.unit.n, *self._run.sizes)
        errors = Errors() if self._errors is None else self._errors.result()
        return Curve(np.cumsum(self._run.hits)[1:], held, self._run.evicted, errors)


def most_attended(n: int, stacked: NDArray[np.int64], pending: NDArray[np.int64]) -> np.ndarray:
    """int64 [n]: for budgets k = 1 … n the most keys that a decode step attends besides its own.

    A step that finds so many tokens in the stack, and so many pending, attends min(k, stacked) +
    pending of them.
    """
    k = np.arange(1, n + 1)
    held = np.zeros_like(k)
    deepest = -1
    for many in np.unique(pending)[::-1]:
        depth = int(stacked[pending == many].max())
        if depth > deepest:  # else more pending tokens came with as deep a stack
            held = np.maximum(held, np.minimum(k, depth) + many)
            deepest = depth
    return held


def _known(job: Job) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(job.scalars.items()))


@lru_cache(maxsize=256)  # the same for every unit of a trace, and as slow as a pass
def _check_timing(
    name: str, keep: Rule | None, whole: bool, p: int, scalars: tuple[tuple[str, float], ...]
) -> None:
    """Refuse a policy that claims to be inclusive though k decides when or how far it evicts."""
    known = dict(scalars)
    n = int(known["n"])
    if keep is None and known[PERIOD] == 1:
        if whole and p < n:
            raise UserError(f"policy {name}: inclusive, but it ranks the whole cache again")
        return
    size = n + 1
    for t in range(p - 1, n):
        kept = {}
        for k in (1, 2, n):
            known |= {"t": t, "k": k, "size": size}
            kept[k] = ask({"keep": keep} if keep else {}, "keep", known)
        everywhere = all(kept[k] == k for k in kept) or all(kept[k] == size for k in kept)
        again = whole and t >= p and kept[1] != size
        if not everywhere or again:
            raise UserError(
                f"policy {name}: it says that it is inclusive, but in step {t} keep gives "
                f"{kept} of {size} tokens; expected k for every budget k, or all tokens"
                + (" (a rule that ranks the whole cache evicts once)" if again else "")
            )
