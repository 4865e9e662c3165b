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

from h2osim.closed_loop.attention import EvictingSession, LayerFound, PromptSession
from h2osim.models.hook import Session, hooked
from h2osim.models.loading import Model, quiet
from h2osim.policies.declaration import Configured
from h2osim.support.errors import UserError

_ROWS = 64  # rows of log-probabilities that are compared at a time


@dataclass(frozen=True)
class Comparison:
    """One evicted pass against the full cache, float64 [steps] for the rows p … n-1 each.

    kl: KL(full || evicted) of the next token's distribution, in nats; nll: -log probability of the
    text's next token under the evicted pass, in nats, NaN for the last row; top1: whether both have
    the same likeliest token. layers: what the policy did, by the model's layer.
    """

    kl: NDArray[np.float64]
    nll: NDArray[np.float64]
    top1: NDArray[np.bool_]
    layers: dict[int, LayerFound]


def placed(loaded: Model, device: str) -> Model:
    """The model with its weights on a device (cpu, cuda, cuda:1); UserError where there is none."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:1")
    try:
        loaded.model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # no CUDA, no such device, no room there
        raise UserError(f"device {device}: {str(error).splitlines()[0]}") from None
    return loaded


class Decoder:
    """A text of n tokens whose first p are the prompt; the prompt is computed once.

    share: which heads of a layer share a cache. full: log-probabilities [steps, vocabulary] with
    the full cache, of rows p … n-1. Everything is computed where the model's weights are. Raises
    UserError for a model that the hook cannot run, or that keeps no cache.
    """

    def __init__(self, loaded: Model, ids: Sequence[int], prompt_len: int, share: str = "group"):
        self.n, self.prompt_len, self.share = len(ids), prompt_len, share
        self._loaded = loaded
        self._ids = torch.tensor([list(ids)], device=loaded.model.device)
        session = PromptSession(loaded.name)
        result = self._call(session, 0, prompt_len, None)
        self._cache = getattr(result, loaded.cache_argument, None)
        if self._cache is None:
            raise session.refuse("it keeps no cache of keys and values, so it cannot decode")
        self._prompt_rows = session.rows
        logits, _ = self._decode(None, 0, None)
        self.full = torch.log_softmax(logits, dim=1)
        self._likeliest = self.full.argmax(dim=1)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._ids.device

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's attention layers, in ascending order."""
        return tuple(sorted(self._prompt_rows))

    @property
    def full_nll(self) -> NDArray[np.float64]:
        """-log p of each next token with the full cache, nats [steps]; NaN for the last row."""
        return self._next_nll(self.full, 0)

    def plain(self) -> torch.Tensor:
        """Logits [steps, vocabulary] of rows p … n-1 by the model alone, without the hook."""
        with quiet(), torch.inference_mode():
            return self._forward(self.prompt_len, self.n, copy.deepcopy(self._cache)).logits[0]

    def log_probabilities(
        self, configured: Configured | None, budget: int, layers: Sequence[int] | None = None
    ) -> torch.Tensor:
        """Log-probabilities [steps, vocabulary] of rows p … n-1 with the policy in force."""
        return torch.log_softmax(self._decode(configured, budget, layers)[0], dim=1)

    def evict(
        self, configured: Configured, budget: int, layers: Sequence[int] | None = None
    ) -> Comparison:
        """Decode with a policy in force, in all layers or in these, and compare."""
        logits, found = self._decode(configured, budget, layers)
        steps = logits.shape[0]
        kl, nll, top1 = np.empty(steps), np.empty(steps), np.empty(steps, bool)
        for top in range(0, steps, _ROWS):
            here = slice(top, min(top + _ROWS, steps))
            full, evicted = self.full[here], torch.log_softmax(logits[here], dim=1)
            kl[here] = (full.exp() * (full - evicted)).sum(dim=1, dtype=torch.float64).cpu().numpy()
            nll[here] = self._next_nll(evicted, top)
            top1[here] = (self._likeliest[here] == evicted.argmax(dim=1)).cpu().numpy()
        return Comparison(kl, nll, top1, found)

    def _next_nll(self, log_p: torch.Tensor, top: int) -> NDArray[np.float64]:
        """-log p of the tokens after rows p + top, …; NaN where the text has none."""
        following = self._ids[0, self.prompt_len + top + 1 :][: log_p.shape[0]]
        found = np.full(log_p.shape[0], np.nan)
        some = log_p[: len(following)].gather(1, following[:, None])[:, 0]
        found[: len(following)] = -some.double().cpu().numpy()
        return found

    def _decode(
        self, configured: Configured | None, budget: int, layers: Sequence[int] | None
    ) -> tuple[torch.Tensor, dict[int, LayerFound]]:
        session = EvictingSession(
            self._loaded.name, self._prompt_rows, configured, budget, self.prompt_len, self.n,
            self.share, layers,
        )  # fmt: skip
        # Some caches are written in place, so a pass gets its own copy of the prompt's.
        cache = copy.deepcopy(self._cache)
        session.seen = self.prompt_len
        result = self._call(session, self.prompt_len, self.n, cache)
        precision = torch.float64 if result.logits.dtype == torch.float64 else torch.float32
        return result.logits[0].to(precision), session.found

    def _call(self, session: Session, start: int, stop: int, cache: Any) -> Any:
        """Run the model on tokens start … stop-1 after what is in the cache."""
        with quiet(), torch.inference_mode(), hooked(self._loaded.model, session):
            session.begin(stop - start)
            return self._forward(start, stop, cache)

    def _forward(self, start: int, stop: int, cache: Any) -> Any:
        try:
            return self._loaded.model(
                input_ids=self._ids[:, start:stop],
                attention_mask=torch.ones(1, stop, device=self.device).long(),
                use_cache=True,
                **{self._loaded.cache_argument: cache},
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"{self._loaded.name} on {self.device}: out of memory with {self.n} tokens; take "
                f"fewer (--tokens), or another device"
            ) from None
