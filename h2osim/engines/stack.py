"""The stack engine: every budget of an inclusive policy in one pass (Mattson's stack).

Why the caches are nested is proved in proofs/14-inclusion.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from h2osim.engines import loop_text
from h2osim.engines.request import Job
from h2osim.engines.results import Curve
from h2osim.policies.roles import Rule, ask
from h2osim.policies.to_numba import compiled, number_slots
from h2osim.support.errors import UserError
from h2osim.traces.unit import Block


class StackRun:
    """A pass that is fed blocks of rows, in order, and keeps O(n) state between them.

    ``job.budget`` plays no part; ``budgets`` (ascending) are those whose evictions are recorded.
    """

    def __init__(self, job: Job, budgets: Sequence[int] = ()):
        policy, n, p = job.configured.policy, job.unit.n, job.prompt_len
        _check_timing(policy.name, policy.keep, policy.rank_cache is not None, p, _known(job))
        ints, floats = number_slots(policy)
        self._job = job
        self._budgets = np.array(budgets, np.int64)
        self._cell = np.zeros(2, np.int64)
        self._hits = np.zeros(n + 1, np.int64)
        self._evicted = np.full((len(budgets), n), n, np.int32)
        self._masses = np.zeros(n - p, np.int64)
        self._sizes = np.zeros((2, n - p), np.int64)
        self._rules = (
            np.zeros((max(1, len(policy.state)), n)),
            np.array([job.inputs[name] for name in policy.inputs] or np.zeros((1, 1))),
            np.array([job.scalars[name] for name in ints] or [0], np.int64),
            np.array([job.scalars[name] for name in floats] or [0.0], np.float64),
        )
        # A row of up to 127 heads fits 32 bits (2**24 each), twice as many of them a vector.
        ranks = np.zeros(n)
        line = np.zeros(n, np.int32 if len(job.unit.heads) < 128 else np.int64)
        if policy.readmits:
            self._arrays: tuple[np.ndarray, ...]
            self._advance = compiled(policy, loop_text("stack_loop"), "bound")
            self._arrays = (*self._rules, self._hits, self._masses, self._sizes, ranks, line)
        else:
            self._advance = compiled(policy, loop_text("stack_loop"))
            self._arrays = (
                *self._rules,
                self._cell,
                np.zeros(n, np.uint32),
                np.zeros(n, np.uint32),
                self._hits,
                self._budgets,
                np.searchsorted(self._budgets, np.arange(n + 2)),
                self._evicted,
                self._masses,
                self._sizes,
                ranks,
                line,
            )

    def feed(self, block: Block) -> None:
        """Replay the block's new rows."""
        self._advance(
            block.bits, block.first, block.start, block.stop, self._job.prompt_len, *self._arrays
        )

    @property
    def masses(self) -> np.ndarray:
        """int64[n - p]: the whole mass of each decode row, in fixed point."""
        return self._masses

    def result(self) -> Curve:
        """The result for every budget, once every row has been fed."""
        return Curve(np.cumsum(self._hits)[1:], self._held(), self._evicted)

    def _held(self) -> np.ndarray:
        """Most keys attended besides the own: min(k, stacked) + pending, over the decode steps."""
        k = np.arange(1, self._job.unit.n + 1)
        held = np.zeros_like(k)
        deepest = -1
        for pending in np.unique(self._sizes[1])[::-1]:
            stacked = int(self._sizes[0][self._sizes[1] == pending].max())
            if stacked > deepest:  # else more pending tokens came with as deep a stack
                held = np.maximum(held, np.minimum(k, stacked) + pending)
                deepest = stacked
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
    if keep is None:
        if whole and p < n:
            raise UserError(f"policy {name}: inclusive, but it ranks the whole cache again")
        return
    size = n + 1
    for t in range(p - 1, n):
        kept = {}
        for k in (1, 2, n):
            known |= {"t": t, "k": k, "size": size}
            kept[k] = ask({"keep": keep}, "keep", known)
        everywhere = all(kept[k] == k for k in kept) or all(kept[k] == size for k in kept)
        again = whole and t >= p and kept[1] != size
        if not everywhere or again:
            raise UserError(
                f"policy {name}: it says that it is inclusive, but in step {t} keep gives "
                f"{kept} of {size} tokens; expected k for every budget k, or all tokens"
                + (" (a rule that ranks the whole cache evicts once)" if again else "")
            )
