"""The queries of a running model, row after row, for policies that ask for them."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from h2osim.models.rotary import PlainQueries
from h2osim.models.rows import Call

#: The tensors that hold queries, by what a policy needs.
TENSORS = {"queries": "q", "plain_queries": "q_plain"}


class QueryLog:
    """The queries of all rows so far, by layer: those of these tensors, after RoPE and before.

    copies: sequences side by side, which all go on after ``before``.
    """

    def __init__(
        self, model: str, names: Collection[str], copies: int = 1, before: QueryLog | None = None
    ):
        self.names = frozenset(names)
        self._model, self._copies, self._before = model, copies, before
        self._rows: dict[tuple[int, str], list[torch.Tensor]] = {}
        self._plain = PlainQueries()

    def watching(self, model: Any) -> AbstractContextManager[None]:
        """The block within which the model runs."""
        return self._plain.watching(model) if "q_plain" in self.names else nullcontext()

    def add(self, call: Call) -> None:
        """Keep a layer's new rows."""
        for name in self.names:
            q = call.q
            if name == "q_plain":
                q = self._plain.take(self._model, call.layer, self._copies, q.shape[1])
            self._rows.setdefault((call.layer.index, name), []).append(q)

    def of(self, layer: int, name: str, copy: int = 0) -> torch.Tensor:
        """A layer's queries in one sequence, [heads, rows so far, d]."""
        parts = [rows.chunk(self._copies)[copy] for rows in self._rows[layer, name]]
        if self._before is not None:
            parts.insert(0, self._before.of(layer, name))
        return torch.cat(parts, dim=1)
