"""The machine-checked proofs: they belong to their prose, they compile, and they speak of h2osim.

Without Coq the first part runs alone. With it, `proofs/check.sh` compiles everything and asks what
each theorem assumes; and the model, extracted to OCaml, is compared with the engine that defines
h2osim. A thousand drawn traces: ``pytest -m nightly tests/test_proofs_coq.py``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import coq_twins
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import traces

from h2osim import replay
from h2osim.policies.arithmetic import accumulate, guarded_score
from h2osim.policies.declaration import Policy
from h2osim.policies.parameters import shared
from h2osim.traces.trace import Trace

PROOFS = coq_twins.PROOFS
TWINS = coq_twins.twins()


def named(path: Path) -> str:
    return path.name


# --- prose and Coq, without Coq ------------------------------------------------------------------


def test_every_twin_has_its_prose_and_the_names_go_both_ways() -> None:
    assert TWINS
    for markdown, coq in TWINS.items():
        assert markdown.is_file(), f"{coq.name}: no {markdown.name}"
        assert coq_twins.coq_of(markdown) == coq


@pytest.mark.parametrize("markdown", TWINS, ids=named)
def test_statements_have_not_drifted_apart(markdown: Path) -> None:
    coq, text = TWINS[markdown], markdown.read_text(encoding="utf-8")
    lines = coq_twins.LINE.findall(text)
    assert [line[:2] for line in lines] == [(coq.name, coq.name)]
    assert lines[0][2] == coq_twins.digest(text, coq.read_text(encoding="utf-8")), (
        f"the statement of {markdown.name} or of {coq.name} has changed: make them say the "
        "same, then run python tests/coq_twins.py"
    )


def test_a_markdown_file_without_a_twin_claims_none() -> None:
    for markdown in PROOFS.glob("[0-9]*.md"):
        claimed = bool(coq_twins.LINE.search(markdown.read_text(encoding="utf-8")))
        assert claimed == (markdown in TWINS), markdown.name


def test_the_digest_sees_statements_and_nothing_else() -> None:
    prose = "# T\n\n## Statement\n\nx holds.\n\n## Proof\n\nEasy.\n"
    coq = "(* why (* nested. *) *)\nVariable p : nat.\nTheorem a : p = p.\nProof.\nby [].\nQed.\n"
    number = coq_twins.digest(prose, coq)
    assert coq_twins.stated(coq) == ["Variable p : nat.", "Theorem a : p = p."]
    for same in (coq.replace("why", "how"), coq.replace("by []", "done"), coq.replace(" a", "  a")):
        assert coq_twins.digest(prose, same) == number
    for other in (coq.replace("p = p", "p <= p"), coq.replace("p : nat", "p : bool")):
        assert coq_twins.digest(prose, other) != number
    assert coq_twins.digest(prose.replace("Easy", "Hard"), coq) == number
    assert coq_twins.digest(prose.replace("holds", "fails"), coq) != number


@pytest.mark.parametrize("coq", sorted(PROOFS.glob("*.v")), ids=named)
def test_coq_files_say_what_they_model_and_leave_nothing_open(coq: Path) -> None:
    text = coq.read_text(encoding="utf-8")
    bare = coq_twins.without_comments(text)
    assert text.startswith("(* ")
    assert not re.search(r"\b(Admitted|admit|Abort|Axiom|Axioms|Parameter|Conjecture)\b", bare)
    if coq in TWINS.values():
        assert coq_twins.markdown_of(coq).name in text
        theorems = re.findall(r"^(?:Theorem|Corollary) (\w+)", bare, re.M)
        assert sorted(re.findall(r"^Print Assumptions (\w+)\.$", bare, re.M)) == sorted(theorems)
        assert theorems


# --- compiled ------------------------------------------------------------------------------------


def coq_is_here() -> bool:
    if not shutil.which("coqc") or not shutil.which("ocamlopt"):
        return False
    where = subprocess.run(["coqc", "-where"], capture_output=True, text=True, check=True)
    return (Path(where.stdout.strip()) / "user-contrib" / "mathcomp" / "ssreflect").is_dir()


needs_coq = pytest.mark.skipif(
    not coq_is_here(), reason="no Coq: apt-get install coq libcoq-mathcomp-ssreflect"
)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with everything compiled, and what the check printed."""
    folder = tmp_path_factory.mktemp("coq")
    done = subprocess.run(
        [str(PROOFS / "check.sh"), str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


@pytest.mark.nightly
@needs_coq
def test_every_proof_compiles_and_assumes_nothing(compiled: tuple[Path, str]) -> None:
    folder, printed = compiled
    counts = dict(re.findall(r"^(\w+\.v) +(\d+) closed", printed, re.M))
    assert set(counts) == {path.name for path in PROOFS.glob("*.v")}
    for coq in TWINS.values():
        assert int(counts[coq.name]) >= 1
        assert (folder / coq.name).with_suffix(".vo").is_file()


@needs_coq
@pytest.mark.parametrize(
    "text, complaint",
    [
        (
            "Axiom a : False.\nTheorem b : False.\nProof. exact a. Qed.\nPrint Assumptions b.\n",
            "assumes",
        ),
        ("Theorem b : True.\nProof. exact I. Qed.\n", "no Print Assumptions"),
        (
            "Theorem a : True.\nProof. exact I. Qed.\nTheorem b : True.\nProof. exact I. Qed.\n"
            "Print Assumptions a.\n",
            "differ",
        ),
    ],
)
def test_the_check_can_fail(tmp_path: Path, text: str, complaint: str) -> None:
    shutil.copy(PROOFS / "check.sh", tmp_path)
    (tmp_path / "t99_wrong.v").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [str(tmp_path / "check.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and complaint in done.stderr


# --- the model and the engine that defines h2osim ------------------------------------------------


def every(size: int, t: int, k: int, p: int, window: int) -> int:
    """Shrink to the budget at the prompt's end and every `window` steps after it."""
    return k if (t - p + 1) % window == 0 else size


NOW_AND_THEN = Policy(
    name="now-and-then",
    summary="accumulated attention, evicting every `window` steps",
    source="this test",
    params=(shared("window", 1), shared("recent", 0), shared("scores", "full"), shared("sinks", 0)),
    state=("score",),
    update=accumulate,
    rank=guarded_score,
    keep=every,
    within_budget=False,
)


@pytest.fixture(scope="module")
def model(compiled: tuple[Path, str]) -> Path:
    """The extracted model as a program."""
    folder, _ = compiled
    shutil.copy(PROOFS / "driver.ml", folder)
    subprocess.run(
        ["ocamlopt", "-o", "model", "model.mli", "model.ml", "driver.ml"], cwd=folder, check=True
    )
    return folder / "model"


def ask(model: Path, runs: list[list[int]]) -> list[list[str]]:
    words = " ".join(str(number) for run in runs for number in run)
    done = subprocess.run([str(model)], input=words, capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


TRACES = traces(min_n=2, max_n=16, max_layers=1)


@pytest.mark.nightly
@needs_coq
@settings(max_examples=1000)
@given(data=st.data(), trace=TRACES)
def test_the_model_does_what_the_naive_engine_does_a_thousand_times(
    model: Path, data: st.DataObject, trace: Trace
) -> None:
    compare(model, data, trace)


def compare(model: Path, data: st.DataObject, trace: Trace) -> None:
    """Every budget loses every token at the same step, in both, under a drawn policy."""
    n = trace.n
    p = data.draw(st.integers(1, n - 1), label="prompt length")
    recent = data.draw(st.integers(0, 4), label="recent")
    window = data.draw(st.sampled_from([1, 1, 2, 3, n]), label="window")
    budgets = list(range(1, n + 1))
    policy = NOW_AND_THEN.with_params(window=window, recent=recent)
    found = replay(trace, policy, budgets, prompt_len=p, engine="naive", evictions=True)
    units = trace.units()
    steps = [int(t >= p - 1 and (t - p + 1) % window == 0) for t in range(n)]
    runs = [
        [n, recent, n, *budgets, *steps]
        + [int(entry) for t in range(n) for entry in unit.head_rows(t).sum(axis=0)]
        for unit in units
    ]
    said = ask(model, runs)
    assert len(said) == 2 * n * len(units)
    gone = found.evicted_at.squeeze(["policy", "layer"]).transpose("unit", "budget", "token").values
    for u in range(len(units)):
        for kind, at in (("run", 2 * n * u), ("stack", 2 * n * u + n)):
            for b in range(n):
                line = said[at + b]
                assert line[0] == kind
                assert [int(word) for word in line[1:]] == gone[u, b].tolist()
