"""Every statement of proofs/: it holds on drawn instances, its numbers are right, it can fail.

"Can fail" is meant twice. A deliberately wrong bound must be refuted by a search, so that a pass
means something; and the check itself must say "violated" of a run outside the setting that is
passed off as one inside.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import coq_twins
import pytest
import statements
from statements import CHECKS

from h2osim.guarantees import GUARANTEES
from h2osim.guarantees.results import Result
from h2osim.support.bundled import proofs

HEADINGS = [
    "Setting",
    "Statement",
    "Proof",
    "What is idealised",
    "Where it is tight",
    "Without each assumption",
    "Checked by",
]


@cache
def defined_tests() -> set[str]:
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in Path(__file__).parent.glob("test_guarantees*.py")
    ]
    return {node.name for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_guarantee_has_its_proof_and_every_proof_its_guarantee() -> None:
    files = {path.name for path in proofs().glob("[0-9]*.md")}
    assert {g.proof for g in GUARANTEES.values()} == files
    assert len({g.proof for g in GUARANTEES.values()}) == len(GUARANTEES)


@pytest.mark.parametrize("name", GUARANTEES)
def test_proof_files_are_complete(name: str) -> None:
    guarantee = GUARANTEES[name]
    text = guarantee.proof_file.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == HEADINGS
    check = CHECKS[name]
    folder = "h2osim.guarantees.checks" if "h2osim" in check.__module__ else check.__module__
    assert f"`{folder}.{check.__name__}`" in text
    named = re.findall(r"`(test_\w+)`", text)
    assert any(test.endswith("_can_fail") for test in named)
    assert set(named) <= defined_tests()
    assert "∎" in text
    if name != "paper-theorem":
        assert text.startswith(f"# {name}: ")


def test_index_lists_every_proof() -> None:
    text = (proofs() / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| \[(\S+)\]\((\S+)\) \|", text, re.M)
    assert rows == [(g.name, g.proof, g.proof) for g in GUARANTEES.values()]


def test_index_says_what_vouches_for_each_statement() -> None:
    text = (proofs() / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) \| \[.* \| yes \| ([^|]+) \| `(\w+)` \|$", text, re.M)
    checked = [(name, check.__name__) for name, check in CHECKS.items()]
    assert [(name, check) for name, _, check in rows] == checked
    for name, coq, _ in rows:
        twin = coq_twins.coq_of(GUARANTEES[name].proof_file)
        assert (coq == "–") == (not twin.is_file()), name


def test_links_between_proofs_lead_somewhere() -> None:
    for path in proofs().glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+\.md)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).is_file(), f"{path.name}: {target}"


def test_mathematics_survives_githubs_renderer() -> None:
    # inside $...$ Markdown still sees backslash escapes, _ after punctuation, * and <
    for path in proofs().glob("*.md"):
        text = path.read_text(encoding="utf-8")
        for match in re.finditer(r"\$\$(.+?)\$\$|\$(.+?)\$", text, re.S):
            maths = match.group(1) or match.group(2)
            assert not re.search(r"\\[^A-Za-z]|[})\]]_(?!\{)|<(?! )|\*", maths), (path.name, maths)
        for line in text.splitlines():
            assert line.count("$") % 2 == 0, (path.name, line)


def test_results_are_plain_and_complete() -> None:
    result = statements.shared.swap_ratio(3)
    assert isinstance(result, Result)
    assert set(GUARANTEES) >= {result.guarantee}
