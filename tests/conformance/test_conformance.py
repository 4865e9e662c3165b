"""What stays is what the packages that people run keep: the sets of data/*.json, compared with ==.

README.md here says how the data were made. No package of theirs is needed, nor any of their code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.cases import CASES, Case
from h2osim.engines.naive import NaiveStepper
from h2osim.engines.request import Job
from h2osim.policies.text import parse
from h2osim.replays.replaying import replay
from h2osim.traces.trace import Trace

DATA = sorted((Path(__file__).parent / "data").glob("*.json"))
PEERS: dict[str, dict[str, Any]] = {
    file.stem: json.loads(file.read_text(encoding="utf-8")) for file in DATA
}


@cache
def shown(case: Case, n: int) -> Trace:
    """The case's first n tokens as a trace."""
    group = case.heads // case.groups
    if case.kind == "rows":
        return Trace.from_scores(case.rows[:, :n, :n], group_size=group)
    vectors = {name: x if name == "w_o" else x[None, :, :n] for name, x in case.vectors.items()}
    v = case.vectors["v"].repeat(group, axis=0).astype(np.float64)
    norms = np.abs(v @ case.vectors["w_o"]).sum(axis=-1)[None, :, :n]
    return Trace.from_qk(
        vectors["q"], vectors["k"], v=vectors["v"], q_plain=vectors.get("q_plain"),
        wv_norm1=norms, scale=case.d**-0.5,
    )  # fmt: skip


def kept(case: Case, one: dict[str, Any], steps: set[int]) -> dict[int, list[list[int]]]:
    """What each unit holds after each of some steps, oldest first, as a replay says.

    Of a rule that selects anew in each step and evicts nothing: the earlier tokens that it reads.
    """
    n = one.get("n") or max(max(steps) + 2, one["budget"])
    trace, how = shown(case, n), parse(one["policy"])
    if how.policy.readmits:
        units = trace.units(one["share"])
        read = [reads(Job(unit, how, one["budget"], one["p"]), steps) for unit in units]
        return {t: [of[t] for of in read] for t in steps}
    found = replay(
        trace, how, [one["budget"]], prompt_len=one["p"], share=one["share"], engine="naive"
    )
    left = found["evicted_at"].values[0, 0, :, 0]
    return {t: [np.flatnonzero(x[: t + 1] > t).tolist() for x in left] for t in steps}


def reads(job: Job, steps: set[int]) -> dict[int, list[int]]:
    """What a unit's query reads of the earlier tokens in each of some steps."""
    stepper = NaiveStepper(job.configured, job.scalars, job.inputs)
    found = {}
    for t in range(max(steps) + 1):
        stepper.step(job.unit.head_rows(t).tolist())
        if t in steps:
            found[t] = sorted(stepper.seen - {t})
    return found


def runs(sets: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The sets that one replay gives: of a case, a policy, a budget and a prompt's length."""
    made: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in sets:
        key = [one[name] for name in ("calls", "case", "policy", "share", "budget", "p")]
        made.setdefault((*key, one.get("n"), one.get("differs")), []).append(one)
    return list(made.values())


def wrong(sets: list[dict[str, Any]]) -> list[str]:
    """Which sets of a run h2osim does not keep, as lines."""
    left = kept(CASES[sets[0]["case"]], sets[0], {one["after"] for one in sets})
    found = []
    for one in sets:
        ours = left[one["after"]]
        assert len(ours) == len(one["kept"])
        found += [
            f"{one['case']}, {one['calls']}, {one['policy']}, budget {one['budget']}, after "
            f"{one['after']}, unit {unit}: {sorted({*a} ^ {*b})} differ"
            for unit, (a, b) in enumerate(zip(ours, one["kept"], strict=True))
            if a != b
        ]
    return found


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("every", [12, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_peer_keeps_the_same_sets(
    peer: str, every: int, record_property: Callable[[str, object], None]
) -> None:
    """Every twelfth run of each rule with the quick tests, all with the long ones."""
    data = PEERS[peer]
    for name, digest in data["cases"].items():
        assert CASES[name].digest == digest, f"case {name} is not what the peer was shown"
    count, lines = 0, []
    differing: dict[str, int] = {}
    for calls in sorted({one["calls"] for one in data["sets"]}):
        for sets in runs([one for one in data["sets"] if one["calls"] == calls])[::every]:
            found, why = wrong(sets), sets[0].get("differs")
            if why is None:
                count += sum(len(one["kept"]) for one in sets)
                lines += found
            else:
                differing[why] = differing.get(why, 0) + len(found)
    documented = sum(differing.values())
    record_property(
        "conformance",
        f"{peer}, {data['made_by']}: {count} sets compared, {count - len(lines)} equal"
        + (f"; {documented} differ as documented" if documented else ""),
    )
    assert not lines, "\n".join(lines)
    assert every > 1 or all(differing.values()), f"no longer differ: {differing}"


def test_the_data_are_of_many_policies_of_many_peers() -> None:
    policies = {parse(one["policy"]).policy.name for data in PEERS.values() for one in data["sets"]}
    calls = {(peer, one["calls"]) for peer, data in PEERS.items() for one in data["sets"]}
    assert len(PEERS) >= 18
    assert len(calls) >= 60
    assert len(policies) >= 28
    for data in PEERS.values():
        assert len({one["budget"] for one in data["sets"]}) >= 3
