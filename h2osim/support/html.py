"""Objects as a notebook shows them: a name and its facts, as HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape


def facts_html(
    title: str,
    facts: Mapping[str, object],
    heads: Sequence[str] = (),
    rows: Iterable[Sequence[object]] = (),
) -> str:
    """A title, facts by name (empty ones are left out), and a table below; all of it is escaped."""
    known = {name: str(fact) for name, fact in facts.items() if fact not in (None, "")}
    shown = "".join(
        f"<tr><th style='text-align:left'>{escape(name)}</th>"
        f"<td style='text-align:left'>{escape(fact)}</td></tr>"
        for name, fact in known.items()
    )
    below = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    if below:
        above = "".join(f"<th>{escape(head)}</th>" for head in heads)
        below = f"<table><thead><tr>{above}</tr></thead><tbody>{below}</tbody></table>"
    return f"<div><p><b>{escape(title)}</b></p><table><tbody>{shown}</tbody></table>{below}</div>"
