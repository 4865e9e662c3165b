"""Golden recalls and evictions of the bundled traces: equal on every machine, to the last bit.

``tests/golden/NAME.json`` holds its own settings, every parameter written out, so that a changed
default does not change a golden. After a change that is meant, write them anew with

    python tests/test_golden.py

and look at the difference before committing it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import BUNDLED, runs_on

import h2osim
from h2osim.policies.registry import all_policies
from h2osim.replays.replaying import replay

FOLDER = Path(__file__).parent / "golden"

#: Forms that the defaults leave out, worth a golden of their own.
FORMS: dict[str, list[dict[str, Any]]] = {
    "h2o": [{}, {"recent": 32, "scores": "full"}, {"recent": 0, "when": "prompt"}],
    "h2o-mean": [{}, {"recent": 0, "when": "prompt"}],
    "decay": [{}, {"recent": 32, "scores": "full"}],
    "h2o-realdrop": [{"recent": 8}],
    "lazy": [{}, {"scores": "full"}],
    "tova": [{}, {"scores": "full"}],
}
SETTINGS: list[dict[str, Any]] = [
    {"prompt_len": 1, "share": "group", "budgets": [0.05, 0.2]},
    {"prompt_len": 128, "share": "group", "budgets": [0.05, 0.2]},
    {"prompt_len": 128, "share": "head", "budgets": [24]},
]


def replayed(name: str, settings: dict[str, Any], policies: list[str]) -> dict[str, Any]:
    """Per policy: recall [layer][unit][budget], and a digest of every eviction."""
    found = replay(h2osim.open_trace(name), policies, **settings)
    evicted = np.ascontiguousarray(found.evicted_at.values, "<i4")
    return {
        policy: {
            "recall": found.recall.values[i].tolist(),
            "evictions": hashlib.sha256(evicted[i].tobytes()).hexdigest()[:16],
        }
        for i, policy in enumerate(policies)
    }


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_traces_give_the_golden_recalls(name: str) -> None:
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert golden["runs"]
    for run in golden["runs"]:
        found = replayed(name, run["settings"], list(run["found"]))
        for policy, expected in run["found"].items():
            assert found[policy] == expected, (policy, run["settings"])


@pytest.mark.parametrize("name", BUNDLED)
def test_goldens_tell_policies_apart(name: str) -> None:
    """A golden on which two rules agree would not notice one becoming the other."""
    golden = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    digests: dict[str, list[str]] = {}
    for run in golden["runs"]:
        for policy, one in run["found"].items():
            digests.setdefault(policy, []).append(one["evictions"])
    same = [p for p, seen in digests.items() if list(digests.values()).count(seen) > 1]
    assert {p.partition(":")[0] for p in same} == {"full", "topk"}  # neither evicts anything


def test_the_numbers_agree_with_what_is_known_of_models() -> None:
    """Bounds above policies, sinks above a bare window: the goldens are no accident."""
    for file in FOLDER.glob("*.json"):
        run = json.loads(file.read_text(encoding="utf-8"))["runs"][0]
        recall: dict[str, np.ndarray] = {}
        for policy, one in run["found"].items():
            recall.setdefault(policy.partition(":")[0], np.array(one["recall"]))
        assert (recall["full"] == 1).all()
        for policy in ("h2o", "tova", "streaming", "recency"):
            assert (recall[policy] <= recall["topk"]).all()
        for better, worse in (("streaming", "recency"), ("h2o", "random"), ("tova", "recency")):
            assert recall[better].mean() > recall[worse].mean(), (better, worse)


def write() -> None:
    """Write every golden anew."""
    FOLDER.mkdir(exist_ok=True)
    for name in BUNDLED:
        trace = h2osim.open_trace(name)
        policies = []
        for policy in all_policies().values():
            if not runs_on(policy, trace):
                continue
            for form in FORMS.get(policy.name, [{}]):
                values = {**policy.with_params(**form).values}
                policies.append(policy.with_params(**values).text)
        runs = []
        for settings in SETTINGS:
            found = replayed(name, settings, policies)
            lines = [f"  {json.dumps(p)}: {json.dumps(one)}" for p, one in found.items()]
            head = f'{{"settings": {json.dumps(settings)}, "found": {{'
            runs.append(head + "\n" + ",\n".join(lines) + "\n}}")
        text = f'{{"trace": {json.dumps(name)}, "runs": [\n' + ",\n".join(runs) + "\n]}\n"
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
