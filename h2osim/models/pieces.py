"""The text of each token of a run."""

from __future__ import annotations

from typing import Any


def pieces(tokenizer: Any, ids: list[int]) -> list[str] | None:
    """The text of each token; joined, they are the decoded text. None without a tokenizer.

    A character of several tokens belongs to the last of them, the others get an empty piece.
    """
    if tokenizer is None:
        return None

    def decode(some: list[int]) -> str:
        return str(
            tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    # How a token is spelled can depend on the one before (a space at the beginning of a word), so
    # a piece is what decoding a few tokens more adds. Tokens shown already stay in `context`.
    found: list[str] = []
    context: list[int] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        before, after = decode(context), decode(context + waiting)
        if after.endswith("\ufffd") and len(waiting) < 8:
            found.append("")
            continue
        found.append(after[len(before) :])
        context, waiting = waiting[-4:], []
    if waiting:
        found[-1] = decode(context + waiting)[len(decode(context)) :]
    return found
