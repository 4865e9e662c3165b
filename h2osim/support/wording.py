"""Phrases that several error messages share."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any


def near(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """``; did you mean …?`` for a misspelt word, or nothing."""
    close = difflib.get_close_matches(word, list(known), 3, 0.5)
    return f"; did you mean {' or '.join(close)}?" if close else ""
