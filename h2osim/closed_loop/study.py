"""A study: texts, policies and budgets, and one pass of the model for each combination."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from h2osim.policies.declaration import Configured
from h2osim.replays.budgets import Budget, budget_tokens
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    from h2osim.closed_loop.caches import Eviction
    from h2osim.closed_loop.decoding import Choice, Comparison, Decoder
    from h2osim.models.loading import Model

#: Passes whose tokens a CPU writes side by side.
WRITERS = 16
Arrays = dict[str, NDArray[Any]]
#: Text, policy and budget of a pass, by their places.
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Item:
    """A text as tokens: the first prompt_len are the prompt, the last ``answer`` are the answer.

    sha256: of the text as it was given.
    """

    name: str
    ids: tuple[int, ...]
    prompt_len: int
    sha256: str
    answer: int = 0


@dataclass(frozen=True)
class Masks:
    """Evictions of a replay to be applied as they are: evicted_at int32 by policy, layer, unit,
    budget and token, for one text. layers: the model's index of each. text: sha256, or empty.
    """

    source: str
    evicted_at: NDArray[np.int32]
    layers: tuple[int, ...]
    facts: Mapping[str, Any]
    text: str = ""


@dataclass(frozen=True)
class Plan:
    """All that a study's numbers depend on, besides the model.

    budgets: tokens, shares of each text's n or prompt, or budgets by unit. layers: where policies
    are in force, None: in all. generate: how many tokens the model writes after each text (0: it
    reads). only: the pairs of a policy and a budget, by their places, that are run; None: all.
    """

    items: tuple[Item, ...]
    configured: tuple[Configured, ...]
    budgets: tuple[Budget | UnitBudgets, ...]
    share: str
    layers: tuple[int, ...] | None = None
    generate: int = 0
    choice: Choice | None = None
    masks: Masks | None = None
    only: frozenset[tuple[int, int]] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many texts, policies and budgets."""
        policies = len(self.configured) if self.masks is None else len(self.masks.evicted_at)
        return len(self.items), policies, len(self.budgets)

    @property
    def places(self) -> list[Place]:
        """Every pass, texts varying slowest."""
        texts, policies, budgets = map(range, self.shape)
        every = itertools.product(texts, policies, budgets)
        return [at for at in every if self.only is None or at[1:] in self.only]

    def length(self, i: int) -> int:
        """Tokens of a text, with those the model is to write."""
        return len(self.items[i].ids) + self.generate

    def policy(self, j: int) -> str:
        """A policy as text."""
        if self.masks is not None:
            return str(self.masks.facts["policy"][j])
        return self.configured[j].text


@dataclass
class Runner:
    """Does a study's passes with a loaded model; what passes of one text share is computed once.

    batch: how many passes of a text at once. None: as many as a GPU has memory for; one on a CPU,
    where more gain nothing, but when the model writes up to WRITERS, which read the weights once
    for each token; they are compared one by one. Where memory does not suffice, it is halved.
    largest: how many there were at most.
    """

    loaded: Model
    plan: Plan
    batch: int | None = None
    largest: int = 0
    _last: tuple[int, Decoder, list[int]] | None = field(default=None, repr=False)

    def whole(self, i: int) -> Arrays:
        """The text with the full cache: nll and hits [steps], layers, units and key bytes of each,
        and the tokens that the model wrote.
        """
        decoder, layers, written = self._text(i)
        units = [decoder.prompt.units(layer) for layer in layers]
        return {
            "nll": decoder.full_nll,
            "hits": decoder.full_hits,
            "layers": np.array(layers),
            "units": np.array(units),
            "key_bytes": np.array([decoder.prompt.key_bytes(layer) for layer in layers]),
            "slots": np.array(
                [self._slots(i, b, layers, units) for b in range(self.plan.shape[2])]
            ),
            "written": np.array(written, np.int64),
        }

    def run(self, places: Sequence[Place]) -> Iterator[tuple[Place, Arrays]]:
        """Do passes, each yielded when those done with it are: kl, nll, top1 and hits [steps];
        kept, mass and cached [layers, units]; and the tokens that the model wrote with the policy
        in force.
        """
        from h2osim.closed_loop.decoding import OutOfMemory

        for i, group in itertools.groupby(places, key=lambda at: at[0]):
            todo = list(group)
            while todo:
                size = self._at_once(self._text(i)[0], len(todo))
                found: list[Arrays] = []
                try:
                    found = self._together(todo[:size])
                except OutOfMemory:
                    if size == 1:
                        raise
                    self.batch = size // 2
                self.largest = max(self.largest, len(found))
                yield from zip(todo, found, strict=False)
                del todo[: len(found)]

    def _at_once(self, decoder: Decoder, passes: int) -> int:
        """How many of some passes of a text to do at once: as many each time, as far as it goes."""
        import torch

        device, alone = self.loaded.model.device, WRITERS if self.plan.generate else 1
        most = self.batch or alone
        if self.batch is None and device.type == "cuda":
            torch.cuda.empty_cache()
            room = torch.cuda.mem_get_info(device)[0] * 4 // 5
            most = max(1, room // max(1, decoder.pass_bytes))
        if not decoder.prompt.repeatable:
            most = 1
        return -(-passes // -(-passes // most))

    def _together(self, places: Sequence[Place]) -> list[Arrays]:
        """Do passes of one text at once."""
        from h2osim.closed_loop.decoding import Choice

        plan = self.plan
        decoder, layers, _ = self._text(places[0][0])
        evictions = [self._eviction(at, decoder, layers) for at in places]
        found: list[Arrays] = []
        written: list[list[int]] = [[] for _ in places]
        if plan.generate:
            choice = plan.choice or Choice()
            written = decoder.prompt.generate_each(evictions, plan.generate, choice, layers)
        if self.batch is None and self.loaded.model.device.type == "cpu":
            compared: Iterable[Comparison] = (decoder.evict(one, layers) for one in evictions)
        else:
            compared = decoder.evict_each(evictions, layers)
        for seen, tokens in zip(compared, written, strict=True):
            found.append(
                {
                    "kl": seen.kl,
                    "nll": seen.nll,
                    "top1": seen.top1,
                    "hits": seen.hits,
                    "written": np.array(tokens, np.int64),
                    **_units(seen, layers, decoder.prompt_len, decoder.n),
                }
            )
        return found

    def _eviction(self, at: Place, decoder: Decoder, layers: Sequence[int]) -> Eviction:
        from h2osim.closed_loop.caches import Eviction

        (i, j, b), plan = at, self.plan
        slots = self._slots(i, b, layers, [decoder.prompt.units(layer) for layer in layers])
        return Eviction(
            None if plan.masks else plan.configured[j],
            dict(zip(layers, slots, strict=True)),
            None if plan.masks is None else self._masks(plan.masks, j, b, layers, decoder),
        )

    def _text(self, i: int) -> tuple[Decoder, tuple[int, ...], list[int]]:
        """A text's decoder, the layers that evict, and what the model wrote after it."""
        from h2osim.closed_loop.decoding import Choice, Decoder, Prompt

        if self._last is None or self._last[0] != i:
            self._last = None  # its memory first
            plan, item = self.plan, self.plan.items[i]
            prompt = Prompt(self.loaded, item.ids[: item.prompt_len], plan.share)
            written = []
            if plan.generate:
                written = prompt.generate(None, plan.generate, plan.choice or Choice())
            ids = [*item.ids, *written]
            decoder = Decoder(self.loaded, ids, item.prompt_len, plan.share, prompt)
            self._last = i, decoder, written
        _, decoder, written = self._last
        known = decoder.prompt.layers
        wanted = self.plan.layers if self.plan.masks is None else self.plan.masks.layers
        if unknown := [x for x in wanted or () if x not in known]:
            raise UserError(
                f"layers: found {unknown[0]}, expected attention layers of {self.loaded.name}: "
                f"{', '.join(map(str, known))}"
            )
        return decoder, known if wanted is None else tuple(wanted), written

    def _slots(
        self, i: int, b: int, layers: Sequence[int], units: Sequence[int]
    ) -> NDArray[np.int64]:
        """Budgets in tokens, int64 [layers, units]."""
        n, budget = self.plan.length(i), self.plan.budgets[b]
        if isinstance(budget, UnitBudgets) and budget.at_prompt:
            prompt = self._text(i)[0].prompt
            some = [unit for layer in layers for unit in prompt.recorded(layer)]
            return budget.decide(some, len(layers), n)
        if isinstance(budget, UnitBudgets):
            return budget.resolve(self.loaded.name, self.plan.share, layers, units[0], n)
        slots = budget_tokens(budget, n, self.plan.items[i].prompt_len)
        return np.full((len(layers), max(units)), slots, np.int64)

    def _masks(
        self, masks: Masks, j: int, b: int, layers: Sequence[int], decoder: Decoder
    ) -> dict[int, NDArray[np.int32]]:
        found = masks.evicted_at[j, :, :, b]
        if found.shape[1] != (units := decoder.prompt.units(layers[0])):
            raise UserError(f"{masks.source}: {found.shape[1]} units a layer, expected {units}")
        return {layer: found[o] for o, layer in enumerate(layers)}


def _units(seen: Comparison, layers: Sequence[int], p: int, n: int) -> Arrays:
    """Kept and whole mass int64, keys cached in the mean over steps float64, [layers, units]."""
    kept, mass, cached = [], [], []
    for layer in layers:
        found = seen.layers[layer]
        kept.append(found.kept.sum(axis=1))
        mass.append(found.masses.sum(axis=1))
        # token j is a cached key of steps max(p, j + 1) … min(n - 1, evicted_at[j])
        last = np.minimum(found.evicted_at, n - 1)
        held = np.maximum(0, last - np.maximum(p, np.arange(n) + 1) + 1).sum(axis=1)
        cached.append(held / (n - p))
    return {
        "kept": np.array(kept, np.int64),
        "mass": np.array(mass, np.int64),
        "cached": np.array(cached, np.float64),
    }
