"""docs/policies.md says what the declarations say, and the code of docs/add-a-policy.md runs.

The table is written, after a policy was added or changed, by

    python tests/test_docs.py
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import BUNDLED, inclusive, traces_for
from guide import blocks, guide_commands, guide_in
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from h2osim.policies.declaration import Policy
from h2osim.policies.registry import all_policies, find
from h2osim.policies.to_cuda import rules_text
from h2osim.replays.replaying import replay
from h2osim.report.pages import policy_record
from h2osim.traces.trace import Trace

TOP = Path(__file__).parent.parent
TABLE = TOP / "docs" / "policies.md"
DRIVE = TOP / "docs" / "drive-a-decoder.md"

# --- the table ------------------------------------------------------------------------------

HEAD = """# Policies

<!-- Written by `python tests/test_docs.py` from h2osim/policies; a test compares the two. -->

A policy is written `name` or `name:parameter=value,parameter=value`, for example
`h2o:recent=32,scores=full`, or as the path of a file of your own
([add-a-policy.md](add-a-policy.md)). `h2osim policies` lists them all, `h2osim policies NAME` shows
one.

The budget is k tokens. Among equal ranks the oldest token is evicted first. A window (`recent`)
counts tokens from 1 on and is a share of the budget below 1. *One pass* says whether one pass over
a trace gives every budget ([every-budget.md](every-budget.md)): "one head" only where each head has
a cache of its own, "by parameters" with `scores=full` and a window in tokens.

Every policy but `topk`, `chunkkv` and `h2o-global` takes `when`: `always` (evict in every step from
the prompt's end on), `prompt` (at the prompt's end and never again) or `every:m` (at the prompt's
end and then every m steps; in between the cache grows); `nacl` takes `prompt` alone. Every one
that is shown a token's attention as one number takes `heads`, which says how the heads that share a
cache make that number: `sum`, `mean` (the same decisions), or `max`, the largest of them times
their number, so that thresholds mean what they do for a sum. With `heads=max` budgets run one by
one, unless each head has a cache of its own.
"""


def cell(text: str) -> str:
    """Text that may stand in a table."""
    return text.replace("|", "\\|")


def table(records: list[dict[str, Any]]) -> str:
    """One row a policy."""
    lines = ["| policy | rule | parameters | one pass | source |", "|---|---|---|---|---|"]
    for record in records:
        params = ", ".join(f"`{p['name']}={p['default']}`" for p in record["params"])
        name = f"[`{record['name']}`](#{record['name']})"
        row = (name, record["summary"], params, record["one_pass"], record["source"])
        lines.append("| " + " | ".join(map(cell, row)) + " |")
    return "\n".join(lines) + "\n"


def section(record: dict[str, Any]) -> str:
    """One policy in full."""
    lines = [f"### {record['name']}", "", f"{record['summary']}. Source: {record['source']}."]
    if record["needs"]:
        lines += ["", f"Needs {record['needs']} in the trace."]
    if not record["within_budget"]:
        lines += ["", "May hold more than the budget."]
    if record["params"]:
        lines += ["", "| parameter | default | values | meaning |", "|---|---|---|---|"]
        for p in record["params"]:
            row = (f"`{p['name']}`", f"{p['default']}", p["range"], p["doc"])
            lines.append("| " + " | ".join(map(cell, row)) + " |")
    if record["notes"]:
        lines += ["", record["notes"]]
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/policies.md."""
    records = [policy_record(policy) for _, policy in sorted(all_policies().items())]
    online = [r for r in records if r["kind"] == "online"]
    others = [r for r in records if r["kind"] != "online"]
    parts = [HEAD, table(online), "## References that see the future\n"]
    parts += ["No online policy: an oracle knows later rows, a bound is no schedule.\n"]
    parts += [table(others), "## Each in full\n", *map(section, records)]
    return "\n".join(parts)


def test_the_table_of_policies_is_fresh() -> None:
    assert TABLE.read_text(encoding="utf-8") == page(), "stale: run python tests/test_docs.py"


# --- the guide ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def my(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guide's files in it."""
    folder = tmp_path_factory.mktemp("mine")
    guide_in(folder)
    return folder


def run(folder: Path, *words: str) -> str:
    """What a command prints, run in the folder with this checkout's package."""
    path = os.pathsep.join([str(TOP), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


needs_prose = pytest.mark.skipif("prose" not in BUNDLED, reason="no bundled trace prose")


@needs_prose
def test_the_guides_python_runs(my: Path) -> None:
    printed = run(my, "-c", blocks("python")[1])
    assert "my.py:recent=4" in printed and "h2o" in printed


@needs_prose
def test_the_guides_commands_run(my: Path) -> None:
    for line in filter(None, "".join(blocks("sh")).splitlines()):
        program, *words = line.split()
        assert program == "h2osim"
        assert "my.py" in run(my, "-m", "h2osim", *words) or words[0] == "policies"


def test_the_guides_vectors_and_network_run(my: Path) -> None:
    """As the page says, from the command line, but for what records the trace."""
    pytest.importorskip("torch", reason="the page's network is one of PyTorch")
    for line, words in guide_commands():
        assert words in run(my, "-m", "h2osim", *line.split()[1:])


def test_the_guides_policy_is_a_policy_like_any_other(my: Path) -> None:
    """All engines agree on it, block by block and in one pass, whatever its parameters."""
    policy = find(str(my / "my.py"))
    assert isinstance(policy, Policy)
    assert policy.name not in all_policies()

    @examples(25)
    @given(traces_for(policy, min_n=2, max_n=16), inclusive(policy, 3), st.data())
    def check(trace: Trace, one: Any, data: st.DataObject) -> None:
        p = data.draw(st.integers(1, trace.n - 1), "prompt_len")
        how: dict[str, Any] = {"prompt_len": p, "evictions": True}
        how["share"] = data.draw(st.sampled_from(["head", "layer"]), "share")
        naive = replay(trace, one, "all", engine="naive", **how)
        numba = replay(trace, one, "all", step_recall=True, **how)
        stack = replay(trace, one, "all", **how)
        assert stack.one_pass.all() and not numba.one_pass.any()
        for found in (numba, stack):
            for name in ("evicted_at", "held", "recall"):
                np.testing.assert_array_equal(found[name], naive[name])

    check()


def test_the_guides_rules_can_be_said_in_cuda(my: Path) -> None:
    assert "peak" in rules_text(find(str(my / "my.py")))


def test_the_decoder_that_drops_keys_runs(tmp_path: Path) -> None:
    (code,) = blocks("python", DRIVE)
    kept = run(tmp_path, "-c", code).removeprefix("kept: [").rstrip("]\n").split(", ")
    assert kept[-8:] == [str(t) for t in range(192, 200)]  # recent=8


def test_the_guides_policy_does_what_it_says(my: Path) -> None:
    # best rows after row 3, in sixteenths: 16, 8, 12 and 4; the newest is safe, so token 1 goes
    rows = np.array([[16, 0, 0, 0], [8, 8, 0, 0], [2, 2, 12, 0], [1, 8, 3, 4]]) / 16
    found = replay(Trace.from_scores(rows), f"{my / 'my.py'}:recent=1", 3, engine="naive")
    assert found.evicted_at.values.ravel().tolist() == [4, 3, 4, 4]


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
