"""Masks of a model: which keys each row may attend, and whether a sliding window explains it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from h2osim.support.errors import UserError

_ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class MaskFacts:
    """What the rows of one call see, over all of them.

    allowed: bool [rows, keys], None where there is no mask. gaps: whether some row skips a key
    between its first one and its own. whole: length of the longest row that sees every token.
    cut: least and greatest length of the rows that do not, None when there are none.
    """

    allowed: torch.Tensor | None
    gaps: bool
    whole: int
    cut: tuple[int, int] | None


def without_mask(start: int, origin: int, rows: int) -> MaskFacts:
    """Rows `start` on that see all keys from position `origin` to their own."""
    if origin == 0:
        return MaskFacts(None, False, start + rows, None)
    return MaskFacts(None, False, 0, (start + 1 - origin, start + rows - origin))


def read_mask(
    mask: torch.Tensor, start: int, origin: int, refuse: Callable[[str], UserError]
) -> MaskFacts:
    """The facts of a mask [1, 1, rows, keys], boolean or additive, for rows `start` on.

    refuse: makes the error for a mask that lets a row see later keys or none, differs between
    heads, or adds anything but 0 and minus infinity to the logits.
    """
    if mask.dim() != 4 or mask.shape[0] != 1 or (mask.shape[1] > 1 and mask.stride(1) != 0):
        raise refuse(f"has a mask of shape {list(mask.shape)}")
    allowed = mask[0, 0]
    if allowed.dtype != torch.bool:
        blocked = allowed <= torch.finfo(allowed.dtype).min / 2
        if bool(((allowed != 0) & ~blocked).any()):
            raise refuse("adds a bias to its logits through the mask")
        allowed = ~blocked
    rows, keys = allowed.shape
    columns = torch.arange(origin, origin + keys, device=allowed.device)
    gaps, whole, cut = False, 0, []
    for top in range(0, rows, _ROWS_AT_A_TIME):
        part = allowed[top : top + _ROWS_AT_A_TIME]
        t = torch.arange(start + top, start + top + len(part), device=part.device)
        if bool((part & (columns > t[:, None])).any()):
            raise refuse("is not causal")
        count = part.sum(dim=1)
        if not bool(count.all()):
            raise refuse("has rows that attend to nothing")
        first = origin + part.to(torch.uint8).argmax(dim=1)
        gaps = gaps or bool((count != t + 1 - first).any())
        if len(seen := count[first == 0]):
            whole = max(whole, int(seen.max()))
        if len(seen := count[first > 0]):
            cut += [int(seen.min()), int(seen.max())]
    return MaskFacts(allowed, gaps, whole, (min(cut), max(cut)) if cut else None)


class WindowSeen:
    """Whether all rows of a layer so far, over all its calls, are those of one sliding window.

    With a window of w keys, a row of t + 1 <= w tokens sees all of them, and a longer one its last
    w. One row alone says little: the row at the start of a chunk looks like a window of one key.
    """

    def __init__(self) -> None:
        self.regular = True
        self._window: int | None = None
        self._whole = 0

    def window(self, facts: MaskFacts, declared: int | None, seen: int) -> int | None:
        """Take the next rows; the window that explains all rows so far, None when there is none.

        declared: the window in the model's configuration, believed while the text of `seen` tokens
        is too short for it to show.
        """
        self._whole = max(self._whole, facts.whole)
        if facts.cut is not None:
            self._window = self._window or facts.cut[0]
            self.regular = self.regular and facts.cut == (self._window, self._window)
        if self._window is None:
            self.regular = self.regular and not facts.gaps
            return declared if seen <= (declared or 0) else None
        self.regular = self.regular and not facts.gaps and self._window >= self._whole
        return self._window if self.regular else None


def declared(config: Any, index: int) -> tuple[int | None, int | None]:
    """(window, chunk) that a text configuration gives a layer by its type, None for none."""
    types = getattr(config, "layer_types", None) or ()
    kind = types[index] if index < len(types) else None
    window = getattr(config, "sliding_window", None) if kind == "sliding_attention" else None
    chunk = getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None
    return window, chunk
