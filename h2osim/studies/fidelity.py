"""The fidelity study: KL of the closed loop, and every measure of the uncompressed run.

The tasks of a text are its uncompressed run with all measures, what carries errors to the
prediction, and the closed loop under some of the policies. Prompts with an answer go the same way.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from h2osim.studies.tasks import Study, is_oracle, split

if TYPE_CHECKING:
    from h2osim.closed_loop.decoding import Decoder
    from h2osim.closed_loop.prompts import Task

GOOD = (
    "h2o", "h2o:recent=0.25", "h2o-mean:recent=0.25", "decay:gamma=0.98,recent=0.5",
    "decay:gamma=0.95,recent=0.25", "tova", "tova@layer", "streaming:sinks=4", "scissorhands",
    "vatp", "roco",
)  # fmt: skip
"""Online policies one would run."""
POLICIES = (*GOOD, "recency", "random", "future")
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.4)
CLOSED_PARTS = 2
PROMPTS = 8
"""Prompts of each kind."""
PROMPT_TOKENS = 256


@dataclass(frozen=True)
class Fidelity(Study):
    """One row a text, policy and budget.

    Columns: ``kl`` of the closed loop (nats a token), ``kl_even`` and ``kl_odd`` (of the steps in
    every other window of 32), ``top1``, ``recall`` and the measures of
    :data:`h2osim.closed_loop.measures.MEASURES` on the uncompressed run, and by layer
    ``layer_residual_L`` and ``layer_gradient_L``; of prompts, in place of these two,
    ``answer_logp`` and ``exact`` of the answer, and the full cache's ``full_…``.

    probes: backward passes of the first-order measures. seed: of their random signs. device: where
    errors of the good policies are carried to the predictions of texts, 110 passes a text.
    """

    policies: tuple[str, ...] = POLICIES
    budgets: tuple[float, ...] = BUDGETS
    probes: int = 8
    device: str = "cpu"

    columns: ClassVar[frozenset[str]] = frozenset({"policy", "budget", "kl", "recall"})

    def parts(self) -> Sequence[str]:
        """The uncompressed run, carried errors, and the closed loop in parts."""
        return ["carried", *self._policies_of()]

    def prompts(self) -> dict[str, Task]:
        """Retrieval prompts of every kind, what is asked for at evenly spread depths."""
        from h2osim.closed_loop.prompts import TASKS, Task

        return {
            f"{kind}-{i}": Task(kind, PROMPT_TOKENS, (i + 0.5) / PROMPTS, self.seed + i)
            for kind in TASKS
            for i in range(PROMPTS)
        }

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
        return self.ask(part, decoder, ids, 0)

    def ask(self, part: str, decoder: Decoder, ids: Sequence[int], answer: int) -> dict[str, Any]:
        """Do one part of one text or prompt."""
        if part == "carried":
            return {} if answer else _carried(self, decoder, ids)
        found: dict[str, Any] = {}
        if part == "open":
            found, masks = _open_loop(self, decoder, ids)
            if answer:
                found = {name: x for name, x in found.items() if not name.startswith("layer_")}
                whole = _answered(decoder.full_nll, decoder.full_hits, answer)
                found |= {f"full_{name}": np.array(x) for name, x in whole.items()}
        at = itertools.product(self._policies_of()[part], enumerate(self.budgets))
        for policy, (b, budget) in at:
            masked = masks[self.policies.index(policy), b] if part == "open" else None
            found |= {
                f"{column}/{policy}/{b}": value
                for column, value in _closed_loop(decoder, policy, budget, masked, answer).items()
            }
        return found

    def rows(self, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A row a policy and budget."""
        measured = {key: values for key, values in found.items() if "/" not in key}
        at = itertools.product(self.policies, enumerate(self.budgets))
        for place, (policy, (b, budget)) in enumerate(at):
            row: dict[str, Any] = {"policy": policy, "budget": budget}
            for column in ("kl", "kl_even", "kl_odd", "top1", "answer_logp", "exact"):
                if f"{column}/{policy}/{b}" in found:
                    row[column] = float(found[f"{column}/{policy}/{b}"])
            for column, values in sorted(measured.items(), key=lambda item: item[1].ndim):
                if values.ndim < 2:
                    row[column] = float(values[place] if values.ndim else values)
                else:
                    row |= {f"{column}_{k}": float(x) for k, x in enumerate(values[place])}
            yield row


def kind_of(name: str) -> str:
    """The kind of a prompt, by its name."""
    return name.rpartition("-")[0]


def _closed_loop(
    decoder: Decoder, policy: str, budget: float, masks: Any, answer: int
) -> dict[str, float]:
    """The model with a policy in force, or with what was evicted on the uncompressed run."""
    from h2osim.closed_loop.caches import Eviction
    from h2osim.closed_loop.uncompressed import WINDOW
    from h2osim.policies.text import parse
    from h2osim.replays.budgets import budget_tokens

    text, decoder.prompt.share = split(policy)
    by_layer = None if masks is None else dict(zip(decoder.prompt.layers, masks, strict=True))
    slots = budget_tokens(budget, decoder.n, decoder.prompt_len)
    seen = decoder.evict(Eviction(parse(text), slots, by_layer))
    found = {"kl": seen.kl.mean(), "top1": seen.top1.mean()}
    if answer:
        return found | _answered(seen.nll, seen.hits, answer)
    odd = np.arange(len(seen.kl)) // WINDOW % 2 == 1
    return found | {"kl_even": seen.kl[~odd].mean(), "kl_odd": seen.kl[odd].mean()}


def _answered(nll: Any, hits: Any, answer: int) -> dict[str, float]:
    """Log-probability of the answer, the last tokens, and whether it is the likeliest."""
    rows = slice(-1 - answer, -1)  # each predicts the token after it
    return {"answer_logp": -nll[rows].sum(), "exact": float(hits[rows].all())}


def _open_loop(
    study: Fidelity, decoder: Decoder, ids: Sequence[int]
) -> tuple[dict[str, Any], dict[tuple[int, int], Any]]:
    """Every measure on the uncompressed run, and what each policy evicts there."""
    from h2osim.closed_loop import uncompressed

    run = uncompressed.run(decoder.prompt, ids[decoder.prompt_len :], study.probes, study.seed)
    evictions, recall = _replayed(study, run.trace)
    found = uncompressed.measure(run, list(evictions.values()))
    found["recall"] = np.array(list(recall.values()))
    return {name: values.astype(np.float32) for name, values in found.items()}, evictions


def _carried(study: Fidelity, decoder: Decoder, ids: Sequence[int]) -> dict[str, Any]:
    """Errors carried to the prediction, means over steps [policies and budgets]; good ones only."""
    from h2osim.closed_loop import carrying, uncompressed

    run = uncompressed.run(decoder.prompt, ids[decoder.prompt_len :], 0)
    good = [place for place, policy in enumerate(study.policies) if policy in GOOD]
    some = replace(study, policies=tuple(study.policies[place] for place in good))
    evictions, _ = _replayed(some, run.trace)
    layers, model = decoder.prompt.layers, decoder.prompt.loaded
    by_layer = [dict(zip(layers, one, strict=True)) for one in evictions.values()]
    with carrying.decoder_on(study.device, model, ids, decoder.prompt_len) as there:
        found = carrying.measure(there, ids, by_layer)
    means = {}
    for name, values in found.items():
        mean = np.full((len(study.policies), len(study.budgets)), np.nan)
        mean[good] = values.mean(axis=1).reshape(len(good), -1)
        means[name] = mean.ravel()
    return means


def _replayed(
    study: Fidelity, trace: Any
) -> tuple[dict[tuple[int, int], Any], dict[tuple[int, int], float]]:
    """By policy and budget: what is evicted, int32 [layers, units, n], and recall."""
    from h2osim.replays.replaying import replay

    evictions: dict[tuple[int, int], Any] = {}
    recall: dict[tuple[int, int], float] = {}
    for share in dict.fromkeys(split(name)[1] for name in study.policies):
        some = [i for i, name in enumerate(study.policies) if split(name)[1] == share]
        texts = [split(study.policies[i])[0] for i in some]
        replayed = replay(trace, texts, list(study.budgets), share=share, engine="numba")
        for (place, i), b in itertools.product(enumerate(some), range(len(study.budgets))):
            one = replayed.isel(policy=place, budget=b)
            evictions[i, b] = one["evicted_at"].transpose("layer", "unit", "token").values
            recall[i, b] = float(one["recall"].mean())
    at = list(itertools.product(range(len(study.policies)), range(len(study.budgets))))
    return {one: evictions[one] for one in at}, {one: recall[one] for one in at}
