"""The tutorials of docs/tutorials run as they stand, and print what their readers are told."""

from __future__ import annotations

import runpy
import shlex
from pathlib import Path

import pytest
from drawing import BUNDLED

DOCS = Path(__file__).resolve().parents[1] / "docs"
SAID = {
    "laptop": ["prose 768 tokens", "below the optimum:", "best split"],
    "gpu": ["with compilation:", "every eviction is that of the definition"],
    "own_policy": ["fading-h2o:halflife=16", "both engines evict the same tokens"],
}


# The tutorials replay it; a source without the bundled traces has the rest of the tests.
@pytest.mark.skipif("prose" not in BUNDLED, reason="no bundled trace prose")
@pytest.mark.parametrize(
    "name", ["laptop", "gpu", pytest.param("own_policy", marks=pytest.mark.nightly)]  # compiles
)
def test_a_tutorial_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(DOCS / "tutorials" / f"{name}.py"))
    printed = capsys.readouterr().out
    for text in SAID[name]:
        assert text in printed


def test_every_tutorial_is_run() -> None:
    assert {path.stem for path in (DOCS / "tutorials").glob("*.py")} == set(SAID)


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_no_page_is_without_its_command(page: Path) -> None:
    """Something on each page can be run: a command, or Python that another test runs."""
    text = page.read_text(encoding="utf-8")
    programs = ("h2osim ", ".venv/bin/", "python ", "mkdocs ")
    lines = text.replace("`", "\n").splitlines()
    assert "```python" in text or any(
        line.strip().startswith(programs) and len(shlex.split(line, comments=True)) > 1
        for line in lines
        if line.count("'") % 2 == 0 and line.count('"') % 2 == 0
    )
