"""A text decoded by a model once with the full cache and then with policies in force."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.closed_loop.attention import EvictingSession, PromptSession
from h2osim.closed_loop.caches import Eviction, LayerFound, LiveLayer, units_of
from h2osim.closed_loop.queries import TENSORS
from h2osim.models.hook import Session, hooked
from h2osim.models.layers import call, probe
from h2osim.models.loading import Model, quiet
from h2osim.models.residual import Residual, find
from h2osim.models.rows import Layer
from h2osim.support.errors import UserError
from h2osim.traces.unit import Unit, split_layer

_ROWS = {"cpu": 64, "cuda": 1024}  # rows of log-probabilities that are compared at a time


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


class OutOfMemory(UserError):
    """A pass, or several at once, did not fit."""


@contextmanager
def _memory(loaded: Model, copies: int, n: int) -> Iterator[None]:
    """Turn whatever says that memory ran out into one line."""
    try:
        yield
    except (UserError, RuntimeError, MemoryError) as error:
        cause = error.__cause__ or error
        said = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
        kinds = (torch.OutOfMemoryError, MemoryError)
        if not isinstance(cause, kinds) and not any(words in str(cause) for words in said):
            raise
        several = f" in {copies} passes at a time" if copies > 1 else ""
        raise OutOfMemory(
            f"{loaded.name} on {loaded.model.device}: out of memory with {n} tokens{several}; take "
            "fewer (--tokens), or another device"
        ) from None


class Prompt:
    """A prompt of p tokens, read densely once; every pass begins with a copy of its cache.

    share: which heads of a layer share a cache. Everything is computed where the model's weights
    are. Raises UserError for a model that the hook cannot run, or that keeps no cache.
    """

    def __init__(self, loaded: Model, ids: Sequence[int], share: str = "group"):
        self.loaded, self.share, self.length = loaded, share, len(ids)
        self.ids = torch.tensor([list(ids)], device=loaded.model.device)
        session = PromptSession(loaded.name)
        self._projections: Mapping[int, Residual] = {}
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
        self.read, self._found = session, session.called
        self.last = result.logits[0, -1]

    def rows(self, layer: int) -> NDArray[np.uint16]:
        """The prompt's rows of a layer: float16 patterns [heads, packed]."""
        return np.concatenate([bits for _, _, bits in self.read.rows(layer)], axis=1)

    def recorded(self, layer: int) -> list[Unit]:
        """The units of a layer as a trace of the prompt has them, with rows and values."""
        found = self._found[layer]
        values = self._cache_layers()[layer].values[0]
        alone = found.latent and self.share != "head"
        if values.shape[1] != self.length or alone:
            raise UserError(
                f"{self.loaded.name}: layer {layer} keeps no values of the whole prompt, by which "
                "budgets could be decided"
            )
        tensors: dict[str, Any] = {
            "scores": lambda: self.rows(layer),
            "v": lambda: values.float().cpu().numpy(),
        }
        live = LiveLayer(self.loaded.name, tensors)
        caches = range(found.kv_heads)
        return split_layer(live, layer, range(found.heads), caches, self.length, self.share)

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's attention layers, in ascending order."""
        return tuple(sorted(self._found))

    def units(self, layer: int) -> int:
        """How many units a layer has."""
        return units_of(self._found[layer], self.share)

    def key_bytes(self, layer: int) -> int:
        """Bytes that one cached token takes in a unit, in float16: as the model's own cache keeps
        it, a key and a value for each of its heads, or one latent vector.
        """
        found, units = self._found[layer], self.units(layer)
        one = found.head_dim + found.value_dim
        if found.latent:
            kept = self._cache_layers()[layer]
            one = kept.keys.shape[3] + kept.values.shape[3]
        return 2 * one * max(1, found.caches // units)

    @property
    def repeatable(self) -> bool:
        """Whether several passes can run at once: whether the cache is keys and values only."""
        known = "DynamicLayer", "DynamicSlidingWindowLayer"  # others may keep states beside them
        return all(type(layer).__name__ in known for layer in self._cache_layers())

    def _cache_layers(self) -> Sequence[Any]:
        cache = getattr(self._cache, "self_attention_cache", self._cache)
        return getattr(cache, "layers", None) or [None]

    def cache(self, copies: int = 1) -> Any:
        """The prompt's cache; some are written in place, so each pass gets its own copy."""
        found: Any = copy.deepcopy(self._cache)
        if copies > 1:
            found.batch_repeat_interleave(copies)
        return found

    def session(
        self, evictions: Sequence[Eviction], n: int, layers: Sequence[int] | None
    ) -> EvictingSession:
        """A session that goes on after the prompt, for texts of n tokens in all.

        The prompt is read again where a policy is the first that asks for queries, or for output
        projections.
        """
        asked = {need for one in evictions if one.configured for need in one.configured.needs}
        names = {TENSORS[need] for need in asked & set(TENSORS)} | self.read.queries.names
        if names > self.read.queries.names:
            again = PromptSession(self.loaded.name, names)
            self.run(again, self.ids, None)
            self.read.queries = again.queries
        if "output_norms" in asked and not self._projections:
            self._projections = find(self.loaded, self.ids[0].tolist(), self._layers)
        return EvictingSession(
            self.loaded.name, self.read, evictions, n, self.share, layers,
            self.projections if self._projections else None,
        )  # fmt: skip

    def projections(self, layer: Layer) -> NDArray[np.float32]:
        """A layer's output projections, float32 [heads, d, residual size]."""
        weights = self._projections[layer.index].weights(layer.heads, layer.value_dim)
        return weights if layer.order is None else weights[list(layer.order)]

    def generate(
        self,
        eviction: Eviction | None,
        count: int,
        choice: Choice,
        layers: Sequence[int] | None = None,
    ) -> list[int]:
        """Let the model write ``count`` tokens with the policy in force (None: the full cache)."""
        evictions = [] if eviction is None else [eviction]
        return self.generate_each(evictions, count, choice, layers)[0]

    def generate_each(
        self,
        evictions: Sequence[Eviction],
        count: int,
        choice: Choice,
        layers: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Let the model write with each of these in force, all side by side."""
        session = self.session(evictions, self.length + count, layers)
        cache = self.cache(session.copies)
        written = [[choice.pick(self.last, 0)] for _ in range(session.copies)]
        while len(written[0]) < count:
            fed = torch.tensor([one[-1:] for one in written], device=self.ids.device)
            logits = self.run(session, fed, cache).logits[:, -1]
            for one, row in zip(written, logits, strict=True):
                one.append(choice.pick(row, len(one)))
        return written

    def run(self, session: Session, ids: torch.Tensor, cache: Any) -> Any:
        """Run the model on more tokens [copies, r], its attention through the session."""
        session.layers = self._layers
        with quiet(), torch.inference_mode(), hooked(self.loaded.model, session):
            session.begin(ids.shape[1])
            return self.forward(ids, session.seen, cache)

    def forward(self, ids: torch.Tensor, seen: int, cache: Any) -> Any:
        """Run the model as it stands on more tokens [copies, r], the last of ``seen`` in all."""
        with _memory(self.loaded, len(ids), seen):
            return call(
                self.loaded, ids.tolist(), seen, use_cache=True,
                **{self.loaded.cache_argument: cache},
            )  # fmt: skip


class Decoder:
    """A text of n tokens whose first p are the prompt.

    prompt: the prompt, where it has been read already. full: log-probabilities [steps, vocabulary]
    of rows p … n-1 with the full cache. pass_bytes: memory of a GPU that a pass took at its peak.
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
        self.pass_bytes, device = 0, self._rest.device
        with _memory(loaded, 1, self.n):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
                before = torch.cuda.memory_allocated(device)
            self.full = torch.log_softmax(self.decode(None)[0], dim=1)
            self._likeliest = self.full.argmax(dim=1)
            if device.type == "cuda":
                self.pass_bytes = torch.cuda.max_memory_allocated(device) - before

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
        return self.evict_each([eviction], layers)[0]

    def evict_each(
        self, evictions: Sequence[Eviction], layers: Sequence[int] | None = None
    ) -> list[Comparison]:
        """Decode with each of these in force, all passes at once, and compare."""
        with _memory(self.prompt.loaded, len(evictions), self.n):
            logits, session = self._decode(evictions, layers)
            return [
                self._compared(one if lost else None, session.found(copy))
                for copy, (one, lost) in enumerate(zip(logits, session.lost, strict=True))
            ]

    def decode(
        self, eviction: Eviction | None, layers: Sequence[int] | None = None
    ) -> tuple[torch.Tensor, dict[int, LayerFound]]:
        """Logits [steps, vocabulary] of rows p … n-1, and what the policy did in each layer."""
        logits, session = self._decode([] if eviction is None else [eviction], layers)
        return logits[0], session.found()

    def _decode(
        self, evictions: Sequence[Eviction], layers: Sequence[int] | None
    ) -> tuple[torch.Tensor, EvictingSession]:
        session = self.prompt.session(evictions, self.n, layers)
        rest = self._rest.expand(session.copies, -1)
        logits = self.prompt.run(session, rest, self.prompt.cache(session.copies)).logits
        double = logits.dtype == torch.float64
        return logits.to(torch.float64 if double else torch.float32), session

    def _compared(self, logits: torch.Tensor | None, found: dict[int, LayerFound]) -> Comparison:
        """A pass against the full cache; logits None: nothing was evicted, so both are the same."""
        steps, rows = len(self.full), _ROWS[self.full.device.type]
        kl, nll = np.zeros(steps), np.empty(steps)
        top1, hits = np.empty(steps, bool), np.empty(steps, bool)
        for top in range(0, steps, rows):
            here = slice(top, min(top + rows, steps))
            full = evicted = self.full[here]
            if logits is not None:
                evicted = torch.log_softmax(logits[here], dim=1)
                lost = full.exp() * (full - evicted)
                kl[here] = lost.sum(dim=1, dtype=torch.float64).cpu().numpy()
            nll[here] = self._next_nll(evicted, top)
            likeliest = evicted.argmax(dim=1)
            top1[here] = (self._likeliest[here] == likeliest).cpu().numpy()
            hits[here] = self._hits(likeliest, top)
        return Comparison(kl, nll, top1, hits, found)

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
