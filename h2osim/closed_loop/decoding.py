"""A text decoded by a model once with the full cache and then with policies in force."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.closed_loop.attention import EvictingSession, Eviction, LayerFound, PromptSession
from h2osim.models.hook import Session, hooked
from h2osim.models.layers import call, probe
from h2osim.models.loading import Model, quiet
from h2osim.support.errors import UserError

_ROWS = 64  # rows of log-probabilities that are compared at a time


@dataclass(frozen=True)
class Comparison:
    """One evicted pass against the full cache, one entry [steps] for each of the rows p … n-1.

    kl: KL(full || evicted) of the next token's distribution, float64 nats. nll: -log probability of
    the text's next token under the evicted pass, float64 nats; NaN for the last row. top1: whether
    both have the same likeliest token. hits: whether the evicted pass finds the text's next token
    the likeliest; False for the last row. layers: what the policy did, by the model's layer.
    """

    kl: NDArray[np.float64]
    nll: NDArray[np.float64]
    top1: NDArray[np.bool_]
    hits: NDArray[np.bool_]
    layers: dict[int, LayerFound]


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen: the likeliest, or sampled with a seed.

    Sampling adds noise of the Gumbel distribution to log p / temperature and takes the largest. The
    noise depends on the seed and the step only, so two runs differ where their predictions do.
    """

    sample: bool = False
    seed: int = 0
    temperature: float = 1.0

    def pick(self, logits: torch.Tensor, step: int) -> int:
        """The token after a row of logits [vocabulary]; step counts generated tokens from 0."""
        if not self.sample:
            return int(logits.argmax())
        noise = np.random.default_rng([self.seed, step]).gumbel(size=len(logits))
        scaled = logits.double().cpu().numpy() / self.temperature
        return int((scaled + noise).argmax())


def placed(loaded: Model, device: str) -> Model:
    """The model with its weights on a device (cpu, cuda, cuda:1); UserError where there is none."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:1")
    try:
        loaded.model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # no CUDA, no such device, no room there
        raise UserError(f"device {device}: {str(error).splitlines()[0]}") from None
    return loaded


class Prompt:
    """A prompt of p tokens, read densely once; every pass begins with a copy of its cache.

    share: which heads of a layer share a cache. Everything is computed where the model's weights
    are. Raises UserError for a model that the hook cannot run, or that keeps no cache.
    """

    def __init__(self, loaded: Model, ids: Sequence[int], share: str = "group"):
        self.loaded, self.share, self.length = loaded, share, len(ids)
        self.ids = torch.tensor([list(ids)], device=loaded.model.device)
        session = PromptSession(loaded.name)
        self._layers = probe(loaded, list(ids))
        for layer in self._layers:
            if layer.cache_of is not None:
                raise session.refuse(
                    f"layer {layer.index} attends to the keys of layer {layer.cache_of}, so "
                    "evicting there would evict here"
                )
        result = self.run(session, self.ids, None)
        self._cache = getattr(result, loaded.cache_argument, None)
        if self._cache is None:
            raise session.refuse("it keeps no cache of keys and values, so it cannot decode")
        self.rows, self._found = session.rows, session.called
        self.last = result.logits[0, -1]

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's attention layers, in ascending order."""
        return tuple(sorted(self.rows))

    def units(self, layer: int) -> int:
        """How many units a layer has."""
        found = self._found[layer]
        return {"head": found.heads, "group": found.kv_heads, "layer": 1}[self.share]

    def key_bytes(self, layer: int) -> int:
        """Bytes that one cached token takes in a unit: its key and value, in float16."""
        found = self._found[layer]
        return 2 * (found.head_dim + found.value_dim) * max(1, found.kv_heads // self.units(layer))

    def cache(self) -> Any:
        """The prompt's cache; some are written in place, so each pass gets its own copy."""
        return copy.deepcopy(self._cache)

    def session(
        self, eviction: Eviction | None, n: int, layers: Sequence[int] | None
    ) -> EvictingSession:
        """A session that goes on after the prompt, for a text of n tokens in all."""
        name = self.loaded.name
        found = EvictingSession(name, self.rows, eviction, self.length, n, self.share, layers)
        found.seen = self.length
        return found

    def generate(
        self,
        eviction: Eviction | None,
        count: int,
        choice: Choice,
        layers: Sequence[int] | None = None,
    ) -> list[int]:
        """Let the model write ``count`` tokens with the policy in force (None: the full cache)."""
        session, cache = self.session(eviction, self.length + count, layers), self.cache()
        found, logits = [choice.pick(self.last, 0)], self.last
        while len(found) < count:
            fed = torch.tensor([[found[-1]]], device=self.ids.device)
            logits = self.run(session, fed, cache).logits[0, -1]
            found.append(choice.pick(logits, len(found)))
        return found

    def run(self, session: Session, ids: torch.Tensor, cache: Any) -> Any:
        """Run the model on more tokens [1, r], its attention through the session."""
        session.layers = self._layers
        with quiet(), torch.inference_mode(), hooked(self.loaded.model, session):
            session.begin(ids.shape[1])
            return self.forward(ids, session.seen, cache)

    def forward(self, ids: torch.Tensor, seen: int, cache: Any) -> Any:
        """Run the model as it stands on more tokens, after which it has seen ``seen`` in all."""
        try:
            return call(
                self.loaded, ids[0].tolist(), seen, use_cache=True,
                **{self.loaded.cache_argument: cache},
            )  # fmt: skip
        except UserError as error:
            if not isinstance(error.__cause__, torch.OutOfMemoryError):
                raise
            raise UserError(
                f"{self.loaded.name} on {ids.device}: out of memory with {seen} tokens; take fewer "
                "(--tokens), or another device"
            ) from None


class Decoder:
    """A text of n tokens whose first p are the prompt.

    prompt: the prompt, where it has been read already. full: log-probabilities [steps, vocabulary]
    of rows p … n-1 with the full cache.
    """

    def __init__(
        self,
        loaded: Model,
        ids: Sequence[int],
        prompt_len: int,
        share: str = "group",
        prompt: Prompt | None = None,
    ):
        self.n, self.prompt_len = len(ids), prompt_len
        self.prompt = prompt or Prompt(loaded, ids[:prompt_len], share)
        self._rest = torch.tensor([list(ids[prompt_len:])], device=self.prompt.ids.device)
        self.full = torch.log_softmax(self.decode(None)[0], dim=1)
        self._likeliest = self.full.argmax(dim=1)

    @property
    def full_nll(self) -> NDArray[np.float64]:
        """-log p of each next token with the full cache, nats [steps]; NaN for the last row."""
        return self._next_nll(self.full, 0)

    @property
    def full_hits(self) -> NDArray[np.bool_]:
        """Whether the full cache finds the text's next token the likeliest, [steps]."""
        return self._hits(self._likeliest, 0)

    def plain(self) -> torch.Tensor:
        """Logits [steps, vocabulary] of rows p … n-1 by the model alone, without the hook."""
        with quiet(), torch.inference_mode():
            logits: torch.Tensor = self.prompt.forward(
                self._rest, self.n, self.prompt.cache()
            ).logits[0]
            return logits

    def log_probabilities(
        self, eviction: Eviction | None, layers: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probabilities [steps, vocabulary] of rows p … n-1 with the policy in force."""
        return torch.log_softmax(self.decode(eviction, layers)[0], dim=1)

    def evict(self, eviction: Eviction, layers: Sequence[int] | None = None) -> Comparison:
        """Decode with a policy in force, in all layers or in these, and compare."""
        logits, found = self.decode(eviction, layers)
        steps = logits.shape[0]
        kl, nll = np.empty(steps), np.empty(steps)
        top1, hits = np.empty(steps, bool), np.empty(steps, bool)
        for top in range(0, steps, _ROWS):
            here = slice(top, min(top + _ROWS, steps))
            full, evicted = self.full[here], torch.log_softmax(logits[here], dim=1)
            kl[here] = (full.exp() * (full - evicted)).sum(dim=1, dtype=torch.float64).cpu().numpy()
            nll[here] = self._next_nll(evicted, top)
            likeliest = evicted.argmax(dim=1)
            top1[here] = (self._likeliest[here] == likeliest).cpu().numpy()
            hits[here] = self._hits(likeliest, top)
        return Comparison(kl, nll, top1, hits, found)

    def decode(
        self, eviction: Eviction | None, layers: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, dict[int, LayerFound]]:
        """Logits [steps, vocabulary] of rows p … n-1, and what the policy did in each layer."""
        session = self.prompt.session(eviction, self.n, layers)
        result = self.prompt.run(session, self._rest, self.prompt.cache())
        precision = torch.float64 if result.logits.dtype == torch.float64 else torch.float32
        return result.logits[0].to(precision), session.found

    def _next_nll(self, log_p: torch.Tensor, top: int) -> NDArray[np.float64]:
        """-log p of the tokens after rows p + top, …; NaN where the text has none."""
        following = self._rest[0, top + 1 :][: log_p.shape[0]]
        found = np.full(log_p.shape[0], np.nan)
        some = log_p[: len(following)].gather(1, following[:, None])[:, 0]
        found[: len(following)] = -some.double().cpu().numpy()
        return found

    def _hits(self, likeliest: torch.Tensor, top: int) -> NDArray[np.bool_]:
        """Whether the likeliest tokens after rows p + top, … are the text's."""
        following = self._rest[0, top + 1 :][: len(likeliest)]
        found = np.zeros(len(likeliest), bool)
        found[: len(following)] = (likeliest[: len(following)] == following).cpu().numpy()
        return found
