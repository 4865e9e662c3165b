"""The files and commands of docs/add-a-policy.md, and what a user has beside them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from h2osim.traces.trace import Trace

GUIDE = Path(__file__).resolve().parents[1] / "docs" / "add-a-policy.md"


def blocks(language: str, page: Path = GUIDE) -> list[str]:
    """The fenced blocks of a language in a page."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def guide_in(folder: Path) -> None:
    """Write the page's policies into a folder, a recording of queries and keys, and weights."""
    code = blocks("python")
    for name, text in zip(["my", "", "keydiff", "asked", "scorer"], code, strict=True):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    rng = np.random.default_rng(0)
    q, k = rng.standard_normal((1, 4, 40, 6)), rng.standard_normal((1, 2, 40, 6))
    Trace.from_qk(q, k, scale=0.4).save(folder / "my-trace")
    np.savez(
        folder / "w.npz", w1=rng.standard_normal((4, 5)), b1=np.zeros(5), w2=rng.standard_normal(5)
    )


def guide_commands() -> list[tuple[str, str]]:
    """The page's commands on rules that see vectors, but for what records the trace, each with
    words that it prints.
    """
    record, *commands = "".join(blocks("console")).splitlines()
    assert record.startswith("h2osim record") and "--store both" in record
    return list(zip(commands, ["keydiff.py", "weights=w.npz", "not exact"], strict=True))
