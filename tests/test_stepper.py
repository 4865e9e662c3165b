"""Caches fed row by row from outside lose what a replay of the same rows loses, step by step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from drawing import configured, long_but, traces_for
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

import h2osim
from h2osim import Stepper, Trace, Unit, UserError
from h2osim.attention.fixed_point import UNIT
from h2osim.engines import stepper as module
from h2osim.engines.naive import NaiveStepper
from h2osim.engines.request import Job
from h2osim.policies.arithmetic import latest
from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.registry import all_policies

POLICIES = sorted(all_policies())


def rows_of(unit: Unit, t: int) -> np.ndarray:
    """Row t of a unit's heads as a decoder would have it, float16 [heads, t + 1]."""
    return (unit.head_rows(t) * UNIT).astype(np.float16)


def block_of(unit: Unit, start: int, stop: int) -> np.ndarray:
    """Rows start … stop-1, float16 [heads, rows, stop]; what lies beyond the diagonal is no row."""
    block = np.full((len(unit.heads), stop - start, stop), np.nan, np.float16)
    for t in range(start, stop):
        block[:, t - start, : t + 1] = rows_of(unit, t)
    return block


def told(job: Job) -> dict[str, Any]:
    """The inputs that a decoder has to give: those that more than positions determine."""
    by_position = ("noise", "gumbel")
    return {name: array for name, array in job.inputs.items() if name not in by_position}


@pytest.mark.parametrize("name", POLICIES)
def test_each_step_evicts_what_the_definition_evicts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows one by one, the length unknown; caches, evictions and masses after every step."""
    policy = all_policies()[name]
    monkeypatch.setattr(module, "FIRST", 3)  # so that the arrays grow, again and again

    @examples(25)
    @given(traces_for(policy, min_n=2), configured(policy), st.data())
    def check(trace: Trace, one: Configured, data: st.DataObject) -> None:
        unit = trace.units(data.draw(st.sampled_from(["head", "group", "layer"])))[-1]
        p = data.draw(st.just(1) | st.integers(1, trace.n - 1), "prompt_len")
        job = Job(unit, one, data.draw(st.integers(1, trace.n), "budget"), p)
        naive = NaiveStepper(one, job.scalars, job.inputs)
        stepper = Stepper(
            one, job.budget, prompt_len=p, heads=len(unit.heads), inputs=told(job)
        )
        for t in range(trace.n):
            attended = stepper.attended
            evicted = stepper.step(rows_of(unit, t))
            naive.step(unit.head_rows(t).tolist())
            assert stepper.t == t + 1
            assert stepper.cached.tolist() == naive.cache
            last = {j: s for j, s in naive.last_attended().items() if s <= t}
            assert evicted.tolist() == sorted(j for j, s in last.items() if s == t)
            assert stepper.evicted_at.tolist() == [last.get(j, t + 1) for j in range(t + 1)]
            assert stepper.held == naive.held
            row = unit.row(t)
            assert stepper.masses.tolist() == [[row.sum()]]
            if t >= p:
                assert stepper.kept.tolist() == [naive.kept[-1:]]
                if not policy.readmits:
                    assert row[attended].sum() == naive.kept[-1]
            else:
                assert attended.tolist() == list(range(t + 1))

    check()


@pytest.mark.parametrize("name", POLICIES)
def test_units_are_fed_together_and_in_blocks(name: str) -> None:
    """The units of a layer at budgets of their own, the prompt at once, then a few rows a time."""
    policy = all_policies()[name]

    @examples(15)
    @given(traces_for(policy, min_n=3), configured(policy), st.data())
    def check(trace: Trace, one: Configured, data: st.DataObject) -> None:
        units = [u for u in trace.units("head") if u.layer == trace.layers[0]]
        p = data.draw(st.integers(1, trace.n - 1), "prompt_len")
        jobs = [Job(u, one, data.draw(st.integers(1, trace.n)), p) for u in units]
        inputs = {name: np.stack([told(j)[name] for j in jobs]) for name in told(jobs[0])}
        budgets = [job.budget for job in jobs]
        stepper = Stepper(one, budgets, prompt_len=p, inputs=inputs)
        naive = [NaiveStepper(one, job.scalars, job.inputs) for job in jobs]
        while stepper.t < trace.n:
            start = stepper.t
            stop = p if start < p else min(trace.n, start + data.draw(st.integers(1, 4)))
            evicted = stepper.step([block_of(u, start, stop) for u in units])
            for u, (unit, one_by_one) in enumerate(zip(units, naive, strict=True)):
                for t in range(start, stop):
                    one_by_one.step(unit.head_rows(t).tolist())
                last = one_by_one.last_attended()
                gone = [j for j in sorted(last) if start <= last[j] < stop]
                assert evicted[u].tolist() == gone
                assert stepper.cached[u].tolist() == one_by_one.cache
                assert stepper.held[u] == one_by_one.held
                rows = range(max(start, p), stop)
                kept = one_by_one.kept[len(one_by_one.kept) - len(rows) :]
                assert stepper.kept[u][stop - start - len(rows) :].tolist() == kept

    check()


@pytest.mark.parametrize("name", long_but(POLICIES, "h2o", "nacl", "scissorhands", "tova"))
def test_a_decoder_gives_the_keys_it_has(name: str) -> None:
    """Rows over what is attended are those rows with zeros elsewhere; full and cached agree."""
    policy = all_policies()[name]
    if policy.readmits:
        return  # no decoder can bring back a key

    @examples(10)
    @given(traces_for(policy, min_n=2), configured(policy), st.data())
    def check(trace: Trace, one: Configured, data: st.DataObject) -> None:
        unit = trace.units("layer")[0]
        p, k = data.draw(st.integers(1, trace.n)), data.draw(st.integers(1, trace.n))
        kinds = ["full", "cached"] if "scores" in {q.name for q in policy.params} else [""]
        job = Job(unit, one, k, p)
        steppers = []
        for kind in kinds:
            values = {**one.values, "scores": kind} if kind else dict(one.values)
            how: dict[str, Any] = {"prompt_len": p, "heads": len(unit.heads)}
            how["inputs"] = {  # as callables: what arrives is asked for when it arrives
                name: lambda start, stop, array=array: array[start:stop]
                for name, array in told(job).items()
            }
            steppers += [Stepper(policy.with_params(**values), k, **how) for _ in range(2)]
        for t in range(trace.n):
            there = steppers[0].attended
            some = rows_of(unit, t)[:, there]
            zeros = np.zeros((len(unit.heads), t + 1), np.float16)
            zeros[:, there] = some
            gone = [
                stepper.step(some if i % 2 else zeros).tolist()
                for i, stepper in enumerate(steppers)
            ]
            assert all(other == gone[0] for other in gone)
            for stepper in steppers:  # nothing fell on what is gone
                assert (stepper.kept == stepper.masses).all()

    check()


def test_rows_may_be_of_any_float_or_patterns() -> None:
    rng = np.random.default_rng(0)
    steppers = [Stepper("h2o", 4, heads=2) for _ in range(4)]
    for t in range(40):
        row = rng.dirichlet(np.full(t + 1, 0.3), 2).astype(np.float32)
        row[1, 0] = -1e-12  # rounds to minus zero
        half = abs(row.astype(np.float16))
        given = (row.astype(np.float64), row, half, half.view(np.uint16))
        gone = [s.step(r).tolist() for s, r in zip(steppers, given, strict=True)]
        assert all(other == gone[0] for other in gone)
        assert len(gone[0]) == (t >= 4)
    assert len(steppers[2].cached) == 4


def fails(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_does_not_fit_is_refused_in_a_line() -> None:
    fails(lambda: Stepper("h20", 4), "did you mean h2o")
    fails(lambda: Stepper("h2o", 0), "budget 0: expected a whole number from 1 on")
    fails(lambda: Stepper("h2o", [4, 1.5]), "budget 1.5")  # type: ignore[list-item]
    fails(lambda: Stepper("h2o", []), "budget 0")
    fails(lambda: Stepper("h2o", 4, prompt_len=0), "prompt_len 0")
    fails(lambda: Stepper("h2o", 4, heads=True), "heads True")
    fails(lambda: Stepper("h2o", 4, inputs={"x": np.ones(3)}), "no input 'x'; it takes none")
    fails(lambda: Stepper("vatp", 4), "policy vatp", "input value_norm", "inputs={'value_norm': …}")
    fails(lambda: Stepper("future", 4), "policy future", "input total")
    short = Stepper("vatp", 4, inputs={"value_norm": np.ones(2)})
    short.step(np.ones((1, 1)))
    short.step(np.full((1, 2), 0.5))
    fails(lambda: short.step(np.full((1, 3), 0.25)), "input value_norm of tokens 2 to 2", "(1,)")
    assert short.t == 2

    stepper = Stepper("recency", 2, heads=2)
    for shape in ((1, 1), (2, 2), (1,), (2, 0, 0), (2, 1, 3)):
        rows = np.ones(shape)
        fails(partial(stepper.step, rows), "rows of shape", "[heads, width] = (2, 1)")
    fails(lambda: stepper.step(np.ones((2, 1), int)), "rows of int64: expected float")
    for wrong in (1.5, -0.5, np.nan, np.inf):
        fails(partial(stepper.step, np.full((2, 1), wrong)), f"row 0: {wrong}")
    fails(lambda: stepper.step(np.full((2, 1), 0x3C01, np.uint16)), "row 0: 15361")
    several = Stepper("recency", [2, 2])
    fails(lambda: several.step(np.ones((3, 1, 1))), "rows of 3 units: expected 2")
    fails(lambda: several.step([np.ones((1, 1)), np.ones((1, 2, 2))]), "as many for each unit")
    assert stepper.t == several.t == 0  # and nothing was fed


def last_of(pos: int, n: int) -> float:
    return n - pos


def shares(unit: Any, values: Any) -> np.ndarray:
    return np.arange(unit.n) / unit.n


def rank_of(share: float) -> float:
    return share


def test_what_depends_on_the_length_must_be_told() -> None:
    oracle = Policy("mine", "", "", rank=last_of, oracle=True)
    fails(lambda: Stepper(oracle, 2), "policy mine: rank asks for the text's length; give n")
    assert Stepper(oracle, 2, n=9).step(np.ones((1, 1))).tolist() == []
    growing = Stepper(Policy("mine", "", "", rank=rank_of, inputs={"share": shares}), 2)
    with pytest.raises(UserError, match="input share changes as the text grows"):
        for t in range(300):
            growing.step(np.full((1, t + 1), 0.001))


THIRDS = 7 / 3 * UNIT


def nearest(score: float, age: int) -> float:
    return 0.0 if score == THIRDS else age


def test_a_renormalised_entry_is_rounded_once() -> None:
    """1 of 3 units attended of 7: the float nearest to 7/3, which (1/3) * 7 is not."""
    assert 1 / 3 * 7 * UNIT != THIRDS
    rule = dict(rank=nearest, state=("score",), update=latest, scores="cached")
    policy = Policy("mine", "", "", **rule)  # type: ignore[arg-type]
    stepper = Stepper(policy, 2)
    one = policy.with_params()
    naive = NaiveStepper(one, one.numbers(2) | {"k": 2, "p": 1, "heads": 1}, {})
    for row, expected in (([1], []), ([1, 1], []), ([1, 1, 1], [2]), ([1, 1, 4, 1], [0])):
        assert stepper.step(np.array([row], np.uint16)).tolist() == expected
        assert sorted(naive.step([row])) == expected


def test_a_copy_goes_its_own_way() -> None:
    rows = [np.eye(t + 1)[[0]] for t in range(6)]  # all on the first token
    stepper = Stepper("tova", 3)
    for row in rows[:5]:
        stepper.step(row)
    other = copy.deepcopy(stepper)
    assert stepper.step(rows[5]).tolist() == [3]
    assert other.step(rows[5][:, ::-1]).tolist() == [0]  # all on the newest
    assert (stepper.cached.tolist(), other.cached.tolist()) == ([0, 4, 5], [3, 4, 5])


def test_it_is_public() -> None:
    assert h2osim.Stepper is module.Stepper
