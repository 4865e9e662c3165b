"""Queries before the rotary embedding (RoPE), of the layer whose attention comes next.

transformers' decoders turn their queries with a function of their own module called
`apply_rotary_pos_emb`, right before they attend. While a model runs, that name is bound to one that
keeps what it is given; no code of a model is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

from h2osim.models.rows import Layer
from h2osim.support.errors import UserError

TURN = "apply_rotary_pos_emb"


class PlainQueries:
    """The queries that were last turned, [copies, heads, rows, d]."""

    def __init__(self) -> None:
        self._last: torch.Tensor | None = None

    @contextmanager
    def watching(self, model: Any) -> Iterator[None]:
        """Within the block, see what the model's layers turn."""
        homes = {type(module).__module__ for module in model.modules()}
        with ExitStack() as stack:
            for home in (sys.modules[name] for name in homes if hasattr(sys.modules[name], TURN)):
                stack.enter_context(mock.patch.object(home, TURN, self._seen(getattr(home, TURN))))
            yield

    def take(self, model: str, layer: Layer, copies: int, rows: int) -> torch.Tensor:
        """Those of a layer that attends now, [copies x heads, rows, d] in the order of its heads.

        UserError for a layer that turned none of this shape since the one before.
        """
        q, self._last = self._last, None
        shape = (copies, layer.heads, rows, layer.head_dim)
        if q is None or q.shape != shape:
            found = "none" if q is None else f"some of shape {list(q.shape)}"
            raise UserError(
                f"{model}: queries before RoPE: layer {layer.index} turned {found}, expected "
                f"{list(shape)}: its rotary embedding is not known here"
            )
        if layer.order is not None:
            q = q[:, list(layer.order)]
        return q.flatten(0, 1)

    def _seen(self, turn: Any) -> Any:
        def keep(q: Any, *others: Any, **named: Any) -> Any:
            self._last = q.detach()
            return turn(q, *others, **named)

        return keep
