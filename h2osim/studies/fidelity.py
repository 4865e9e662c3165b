"""The fidelity study: KL of the closed loop, and every measure of the uncompressed run.

The tasks of a text are its uncompressed run with all measures, and the closed loop under some of
the policies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from h2osim.studies.tasks import Study, is_oracle, split

if TYPE_CHECKING:
    from h2osim.closed_loop.decoding import Decoder

GOOD = (
    "h2o", "h2o:recent=0.25", "h2o-mean:recent=0.25", "decay:gamma=0.98,recent=0.5",
    "decay:gamma=0.95,recent=0.25", "tova", "tova@layer", "streaming:sinks=4", "scissorhands",
    "vatp", "roco",
)  # fmt: skip
"""Online policies one would run."""
POLICIES = (*GOOD, "recency", "random", "future")
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.4)
CLOSED_PARTS = 2


@dataclass(frozen=True)
class Fidelity(Study):
    """One row a text, policy and budget.

    Columns: ``kl`` of the closed loop (nats a token), ``kl_even`` and ``kl_odd`` (of the steps in
    every other window of 32), ``top1``, ``recall`` and the measures of
    :data:`h2osim.closed_loop.measures.MEASURES` on the uncompressed run, and by layer
    ``layer_residual_L`` and ``layer_gradient_L``.

    probes: backward passes of the first-order measures. seed: of their random signs.
    """

    policies: tuple[str, ...] = POLICIES
    budgets: tuple[float, ...] = BUDGETS
    probes: int = 8

    columns: ClassVar[frozenset[str]] = frozenset({"policy", "budget", "kl", "recall"})

    def parts(self) -> Sequence[str]:
        """The uncompressed run, and the closed loop in parts."""
        return list(self._policies_of())

    def _policies_of(self) -> dict[str, tuple[str, ...]]:
        """The parts and the policies whose closed loop each of them runs.

        An oracle's evictions come from the uncompressed run, so it goes with that one.
        """
        online = [name for name in self.policies if not is_oracle(name)]
        oracles = tuple(name for name in self.policies if is_oracle(name))
        closed = {f"closed-{i}": tuple(online[i::CLOSED_PARTS]) for i in range(CLOSED_PARTS)}
        return {"open": oracles, **{part: names for part, names in closed.items() if names}}

    def work(self, part: str, decoder: Decoder, ids: Sequence[int]) -> dict[str, Any]:
        """Do one part of one text."""
        found: dict[str, Any] = {}
        if part == "open":
            found, masks = _open_loop(self, decoder, ids)
        at = itertools.product(self._policies_of()[part], enumerate(self.budgets))
        for policy, (b, budget) in at:
            masked = masks[self.policies.index(policy), b] if part == "open" else None
            found |= {
                f"{column}/{policy}/{b}": value
                for column, value in _closed_loop(decoder, policy, budget, masked).items()
            }
        return found

    def rows(self, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A row a policy and budget."""
        measured = {key: values for key, values in found.items() if "/" not in key}
        at = itertools.product(self.policies, enumerate(self.budgets))
        for place, (policy, (b, budget)) in enumerate(at):
            row: dict[str, Any] = {"policy": policy, "budget": budget}
            for column in ("kl", "kl_even", "kl_odd", "top1"):
                row[column] = float(found[f"{column}/{policy}/{b}"])
            for column, values in sorted(measured.items(), key=lambda item: item[1].ndim):
                if values.ndim == 1:
                    row[column] = float(values[place])
                else:
                    row |= {f"{column}_{k}": float(x) for k, x in enumerate(values[place])}
            yield row


def _closed_loop(decoder: Decoder, policy: str, budget: float, masks: Any) -> dict[str, float]:
    """The model with a policy in force, or with what was evicted on the uncompressed run."""
    from h2osim.closed_loop.attention import Eviction
    from h2osim.closed_loop.uncompressed import WINDOW
    from h2osim.policies.text import parse
    from h2osim.replays.budgets import budget_tokens

    text, decoder.prompt.share = split(policy)
    by_layer = None if masks is None else dict(zip(decoder.prompt.layers, masks, strict=True))
    seen = decoder.evict(Eviction(parse(text), budget_tokens(budget, decoder.n), by_layer))
    odd = np.arange(len(seen.kl)) // WINDOW % 2 == 1
    return {
        "kl": seen.kl.mean(), "kl_even": seen.kl[~odd].mean(), "kl_odd": seen.kl[odd].mean(),
        "top1": seen.top1.mean(),
    }  # fmt: skip


def _open_loop(
    study: Fidelity, decoder: Decoder, ids: Sequence[int]
) -> tuple[dict[str, Any], dict[tuple[int, int], Any]]:
    """Every measure on the uncompressed run, and what each policy evicts there."""
    from h2osim.closed_loop import uncompressed
    from h2osim.replays.replaying import replay

    run = uncompressed.run(decoder.prompt, ids[study.prompt_len :], study.probes, study.seed)
    assert run.trace is not None
    evictions: dict[tuple[int, int], Any] = {}
    recall: dict[tuple[int, int], float] = {}
    for share in dict.fromkeys(split(name)[1] for name in study.policies):
        some = [i for i, name in enumerate(study.policies) if split(name)[1] == share]
        texts = [split(study.policies[i])[0] for i in some]
        replayed = replay(run.trace, texts, list(study.budgets), share=share, engine="numba")
        for (place, i), b in itertools.product(enumerate(some), range(len(study.budgets))):
            one = replayed.isel(policy=place, budget=b)
            evictions[i, b] = one["evicted_at"].transpose("layer", "unit", "token").values
            recall[i, b] = float(one["recall"].mean())
    at = list(itertools.product(range(len(study.policies)), range(len(study.budgets))))
    found = uncompressed.measure(run, [evictions[one] for one in at])
    found["recall"] = np.array([recall[one] for one in at])
    return {name: values.astype(np.float32) for name, values in found.items()}, evictions
