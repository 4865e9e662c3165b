"""The Coq files of proofs/ and the Markdown files whose statements they prove.

A twin of ``14-inclusion.md`` is ``t14_inclusion.v``: a ``t`` in front, because a Coq module is
named by an identifier, and underscores for hyphens. A Markdown file with a twin ends in a line

    Machine-checked: [t14_inclusion.v](t14_inclusion.v), statements 0123456789abcdef.

whose number is `digest` of both: of the Markdown's section "Statement" and of what the Coq file
defines, assumes and states (not of its comments and proofs). Who changes one of them looks at the
other, makes them say the same again, and renews the numbers with

    python tests/coq_twins.py
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

PROOFS = Path(__file__).resolve().parent.parent / "proofs"

#: Sentences of a Coq file that are part of what it states.
STATING = (
    "Theorem", "Corollary", "Definition", "Fixpoint", "Record", "Inductive", "Variable",
    "Variables", "Hypothesis", "Hypotheses", "Notation",
)  # fmt: skip

LINE = re.compile(r"^Machine-checked: \[(\S+)\]\((\S+)\), statements ([0-9a-f]{16})\.$", re.M)


def twins() -> dict[Path, Path]:
    """Markdown file -> Coq file, for every Coq file that proves a statement."""
    return {markdown_of(coq): coq for coq in sorted(PROOFS.glob("t[0-9]*.v"))}


def markdown_of(coq: Path) -> Path:
    """The Markdown file of a Coq file, whether or not it exists."""
    return coq.with_name(coq.stem[1:].replace("_", "-") + ".md")


def coq_of(markdown: Path) -> Path:
    """The Coq file of a Markdown file, whether or not it exists."""
    return markdown.with_name("t" + markdown.stem.replace("-", "_") + ".v")


def statement(markdown: str) -> str:
    """The section "Statement" of a Markdown file, blanks made single."""
    found = re.search(r"^## Statement\n(.*?)^## ", markdown, re.M | re.S)
    if not found:
        raise ValueError("no section '## Statement' with another section after it")
    return " ".join(found.group(1).split())


def stated(coq: str) -> list[str]:
    """What a Coq file defines, assumes and states, in order, blanks made single."""
    bare = without_comments(coq)
    sentences = (" ".join(part.split()) for part in re.split(r"(?<=\.)\s+", bare))
    return [text for text in sentences if text.split(" ", 1)[0] in STATING]


def without_comments(coq: str) -> str:
    """A Coq text without its comments, which nest."""
    depth, kept = 0, []
    for part in re.split(r"(\(\*|\*\))", coq):
        if part == "(*":
            depth += 1
        elif part == "*)":
            depth -= 1
        elif depth == 0:
            kept.append(part)
    return "".join(kept)


def digest(markdown: str, coq: str) -> str:
    """16 hexadecimal digits over what the two texts state."""
    whole = "\n".join([statement(markdown), *stated(coq)])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def renew() -> None:
    """Write the line into every Markdown file that has a twin."""
    for markdown, coq in twins().items():
        text = markdown.read_text(encoding="utf-8")
        number = digest(text, coq.read_text(encoding="utf-8"))
        line = f"Machine-checked: [{coq.name}]({coq.name}), statements {number}."
        text = LINE.sub(line, text) if LINE.search(text) else f"{text.rstrip()}\n\n{line}\n"
        markdown.write_text(text, encoding="utf-8")
        print(f"{markdown.name}: {number}")


if __name__ == "__main__":
    renew()
