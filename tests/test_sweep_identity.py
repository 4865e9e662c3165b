"""A sweep's identity covers all that can change its numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sweep_cases import GRID, SMALL, files, same
from trace_cases import random_trace

import h2osim
from h2osim.replays import tasks
from h2osim.replays.replaying import replay
from h2osim.support.errors import UserError
from h2osim.sweeps.sweeping import sweep
from h2osim.traces.trace import Trace


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"policies": "tova"}, "policies 1 of 10 is h2o:recent=0,scores=full, asked for is tova"),
        ({"policies": GRID + ",full"}, "policies is 10 long, asked for is 11 long"),
        ({"budgets": [2, 3]}, "budgets"),
        ({"budgets": "all"}, "budgets"),
        ({"prompt_len": 5}, "prompt_len"),
        ({"share": "layer"}, "share is group, asked for is layer"),
        ({"layers": [1]}, "layers"),
        ({"traces": SMALL}, "traces"),
        ({"traces": random_trace(seed=9)}, "traces"),
    ],
)
def test_another_sweep_into_the_same_store_is_refused(
    small: Path, tmp_path: Path, change: dict[str, Any], part: str
) -> None:
    asked: dict[str, Any] = {"traces": small, "policies": GRID, "budgets": [2]}
    sweep(**asked, store=tmp_path / "s.zarr")
    before = files(tmp_path / "s.zarr")
    with pytest.raises(UserError) as error:
        sweep(**{**asked, **change}, store=tmp_path / "s.zarr")
    assert part in str(error.value) and "\n" not in str(error.value)
    assert files(tmp_path / "s.zarr") == before


PARTS = {
    "constant": "1.5",
    "helper": "x * STEP",
    "default": "0",
    "input": "np.full(unit.n, scale())",
    "scale": "1.0",
    "number": "3",
    "keep": "k",
    "flags": "scores='full', inclusive=False, within_budget=True",
    "within": "True",
}


MINE = """
import numpy as np
from h2osim.policies.declaration import Policy
from h2osim.support.parameters import Param

STEP = {constant}
SCALE = {{"by": [{scale}]}}


def helper(x, by=STEP):  # a comment and a docstring's layout change nothing
    return {helper}


def rank(pos, age, number, extra):
    return helper(pos) + age * number + extra


def keep(size, k):
    return {keep}


def scale():
    return SCALE["by"][{default}]


def extra(unit, values):
    return {input}


def bounded(values):
    return {within}


POLICY = Policy(
    name="mine", summary="", source="", rank=rank, keep=keep, inputs={{"extra": extra}},
    params=(Param("number", {number}, ""),), {flags},
)
"""


def write_policy(file: Path, **changed: str) -> None:
    file.write_text(MINE.format(**{**PARTS, **changed}), encoding="utf-8")


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({"constant": "1.25"}, "declarations 1 of 1 (mine), rank is sha256"),
        ({"helper": "x + STEP"}, "declarations 1 of 1 (mine), rank is sha256"),
        ({"input": "np.zeros(unit.n)"}, "declarations 1 of 1 (mine), inputs is sha256"),
        ({"scale": "2.0"}, "declarations 1 of 1 (mine), inputs is sha256"),
        ({"default": "-1"}, "declarations 1 of 1 (mine), inputs is sha256"),
        ({"number": "4"}, "parameters 1 of 1, number is 3, asked for is 4"),
        ({"keep": "min(k, size)"}, "declarations 1 of 1 (mine), keep is sha256"),
        ({"flags": "scores='cached'"}, "scores is 'full', asked for is 'cached'"),
        ({"flags": "expires=True"}, "expires is False, asked for is True"),
        ({"flags": "readmits=True"}, "readmits is False, asked for is True"),
        ({"flags": "lag='number'"}, "lag is None, asked for is 'number'"),
        ({"flags": "within_budget=False"}, "within_budget is True, asked for is False"),
        ({"flags": "within_budget=bounded"}, "within_budget is True, asked for is sha256"),
    ],
)
def test_an_edited_policy_is_another_one(
    small: Path, tmp_path: Path, changed: dict[str, str], part: str
) -> None:
    """An edit of anything that a number depends on, at any distance, stops the sweep."""
    file, store = tmp_path / "mine.py", tmp_path / "s.zarr"
    write_policy(file)
    found = sweep(small, str(file), [4], store, engine="naive")
    assert found.policy.values.tolist() == [str(file)]
    before = files(store)
    write_policy(file, **changed)
    os.utime(file, ns=(1, 1))  # another time than the first, however coarse the clock
    with pytest.raises(UserError) as error:
        sweep(small, str(file), [4], store, engine="naive")
    assert part in str(error.value) and "\n" not in str(error.value)
    assert files(store) == before
    # the same text again is the same policy, wherever its comments stand
    text = MINE.format(**PARTS).replace("  # a comment and a docstring's layout change nothing", "")
    file.write_text(text, encoding="utf-8")
    same(sweep(small, str(file), [4], store, engine="numba"), found)


@pytest.mark.parametrize("engine", ["naive", "numba"])
def test_an_edited_helper_gives_other_numbers(small: Path, tmp_path: Path, engine: str) -> None:
    """What the refusal is for: the numbers of the edited policy are not those in the store."""
    found: list[Any] = []
    for text in ("x * STEP", "x * STEP * 9"):
        write_policy(tmp_path / "mine.py", helper=text)
        os.utime(tmp_path / "mine.py", ns=(len(found), len(found)))
        found.append(sweep(small, str(tmp_path / "mine.py"), [4], engine=engine).recall.values)
    assert (found[0] != found[1]).any()


def test_two_policies_of_one_name_are_both_in_the_identity(small: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_policy(tmp_path / name / "mine.py")
    both = [str(tmp_path / name / "mine.py") for name in ("a", "b")]
    sweep(small, both, [4], tmp_path / "s.zarr")
    write_policy(tmp_path / "a" / "mine.py", helper="-x")
    with pytest.raises(UserError, match=r"declarations 1 of 2 \(mine\), rank is"):
        sweep(small, both, [4], tmp_path / "s.zarr")


QK = np.random.default_rng(5).standard_normal((2, 1, 4, 20, 4))


@pytest.mark.parametrize(
    ("make", "fields", "part"),
    [
        (Trace.from_qk, {"scale": 0.25}, "layer 0, scale is 0.5, asked for is 0.25"),
        (Trace.from_qk, {"softcap": 3.0}, "layer 0, softcap is None, asked for is 3.0"),
        (Trace.from_qk, {"window": 5}, "layer 0, window is None, asked for is 5"),
        (Trace.from_packed, {"group_size": 4}, "kv_heads is 2 long, asked for is 1 long"),
        (Trace.from_packed, {"prompt_len": 7}, "prompt_len 1 of 1 is 1, asked for is 7"),
    ],
)
def test_a_field_of_the_trace_changes_the_sweep(
    tmp_path: Path, make: Any, fields: dict[str, Any], part: str
) -> None:
    """The arrays are the same, what they mean is not."""
    if make == Trace.from_qk:
        given: dict[str, Any] = {"q": QK[0], "k": QK[1], "scale": 0.5}
    else:
        given = {"bits": random_trace(20, 1, 4).tensor(0, "scores")[None], "group_size": 2}
    paths = [
        make(**{**given, **changed}, name="same").save(tmp_path / name)
        for name, changed in (("a", {}), ("b", fields))
    ]
    sweep(paths[0], "tova", [4], tmp_path / "s.zarr")
    with pytest.raises(UserError) as error:
        sweep(paths[1], "tova", [4], tmp_path / "s.zarr")
    assert part in str(error.value) and "\n" not in str(error.value)


def test_the_arrays_of_a_trace_in_memory_are_in_the_identity(tmp_path: Path) -> None:
    """Two traces that agree in all but one number of one row, or one value norm."""
    bits = np.array(SMALL.tensor(0, "scores"))[None]
    norms = np.ones((1, 2, 24), np.float32)
    swept = Trace.from_packed(bits, v_norm1=norms)
    sweep(swept, "tova", [4], tmp_path / "s.zarr")
    sweep(Trace.from_packed(bits, v_norm1=norms), "tova", [4], tmp_path / "s.zarr")
    row, norm = bits.copy(), norms.copy()
    row[0, 1, 200] ^= 1
    norm[0, 1, 3] = 2
    for other in (Trace.from_packed(row, v_norm1=norms), Trace.from_packed(bits, v_norm1=norm)):
        with pytest.raises(UserError, match=r"layer 0, sha256 is .*asked for is"):
            sweep(other, "tova", [4], tmp_path / "s.zarr")


def test_a_layer_swapped_under_an_open_trace_is_refused(tmp_path: Path) -> None:
    """By rename or written over, before a sweep and between two: never new numbers, old name."""
    trace = h2osim.open_trace(random_trace(name="x").save(tmp_path / "x"))
    other = random_trace(seed=3).save(tmp_path / "other")
    file = next((tmp_path / "x").glob("*.safetensors"))
    good = file.read_bytes()
    bad = (other / file.name).read_bytes()
    sweep(trace, "tova", [4], tmp_path / "s.zarr", chunk=(1, 1))
    for way in ("rename", "write"):
        if way == "rename":
            (tmp_path / "new").write_bytes(bad)
            os.replace(tmp_path / "new", file)
        else:
            file.write_bytes(bad)
        for store in (None, tmp_path / "t.zarr"):
            with pytest.raises(UserError, match="sha256 found"):
                sweep(trace, "tova", [4], store)
        with pytest.raises(UserError, match="sha256 found"):
            replay(trace, "tova", [4])
        file.write_bytes(good)
        sweep(trace, "tova", [4])


def test_a_layer_swapped_during_a_replay_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good when the work began and another at its end: nobody knows which one was read."""
    trace = h2osim.open_trace(random_trace(name="x").save(tmp_path / "x"))
    layer = trace.layers[0]
    file = tmp_path / "x" / trace.layer_entry(layer)["file"]
    other = random_trace(seed=3).save(tmp_path / "other") / file.name
    compute = tasks._numba

    def swap(*given: Any) -> None:
        compute(*given)
        os.replace(other, file)

    monkeypatch.setattr(tasks, "_numba", swap)
    with pytest.raises(UserError, match="sha256 found"):
        replay(trace, "tova", [4], layers=[layer], share="layer", engine="numba")
