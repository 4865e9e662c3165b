"""README.md says what works: its commands, its Python, its links."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from commands import Run

from h2osim import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
LINKS = sorted(
    (page, target)
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    if not target.startswith("http")
)


def h2osim_commands(block: str) -> list[list[str]]:
    """The words after ``h2osim`` of every command in a block."""
    found = []
    for line in re.split(r"\n|&&", block):
        words = shlex.split(line, comments=True)
        if words and words[0].endswith("bin/h2osim"):
            found.append(words[1:])
    return found


def test_the_first_two_blocks_set_up_run_and_test() -> None:
    (_, main), (_, tests) = BLOCKS[:2]
    for block in (main, tests):
        assert block.count("\n") == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
    assert tests.rstrip().endswith(".venv/bin/pytest -q -n auto")


def test_the_main_command_ends_with_the_table_and_draws_the_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    (words,) = h2osim_commands(BLOCKS[0][1])
    monkeypatch.chdir(tmp_path)
    ended = run(*words)
    assert ended.code == 0
    for text in ("│ h2o ", "│ streaming ", "│ tova ", "(5 %)", "(20 %)"):
        assert text in ended.out
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")


def test_every_command_shown_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    shown = [words for _, block in BLOCKS for words in h2osim_commands(block)]
    assert {words[0] for words in shown} >= {"compare", "record", "info"}
    for words in shown:
        assert cli.run([words[0], "--help"]) == 0
        known = capsys.readouterr().out
        for option in (word for word in words if word.startswith("--")):
            assert option in known


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block for language, block in BLOCKS if language == "python")
    exec(compile(example, "README.md", "exec"), {})
    assert "streaming:sinks=4" in capsys.readouterr().out


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda x: str(getattr(x, "name", x)))
def test_links_lead_somewhere(page: Path, target: str) -> None:
    assert (page.parent / target).exists()


def test_the_index_of_the_docs_is_complete() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index
