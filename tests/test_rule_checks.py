"""A user's rules: what is refused before anything runs, what `--check` finds, and plug-ins."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from commands import Run
from drawing import long_but

from h2osim.policies import registry
from h2osim.policies.refusing import refuse
from h2osim.policies.registry import all_policies, find
from h2osim.policies.rotary import rotary_of
from h2osim.policies.text import parse
from h2osim.replays import rule_check
from h2osim.support.errors import UserError

HEAD = """from h2osim.policies.declaration import INF, Policy
"""
TAIL = """
POLICY = Policy(name="mine", summary="s", source="t", state=("x", "y"), update=update, rank=rank)
"""
UPDATE = """
def update(x, y, a):
    return x + a, y
"""
RANK = """
def rank(x, y, age):
    return x
"""


def written(folder: Path, update: str = UPDATE, rank: str = RANK, head: str = "") -> Path:
    path = folder / "mine.py"
    path.write_text(head + HEAD + update + rank + TAIL, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "line", "rule", "words"),
    [
        ({"rank": "\ndef rank(x):\n    return math.sqrt(x)\n"}, 7, "rank", "nothing defines math"),
        ({"rank": "\ndef rank(x):\n    return scale * x\n"}, 7, "rank", "nothing defines scale"),
        (
            {"head": "import math\n", "rank": "\ndef rank(x):\n    return math.exp(x)\n"},
            8, "rank", "math.exp differs in the last bit",
        ),
        (
            {"head": "import numpy as np\n", "rank": "\ndef rank(x):\n    return np.sum(x)\n"},
            8, "rank", "np.sum differs in the last bit",
        ),
        ({"rank": "\ndef rank(x):\n    return x ** 2\n"}, 7, "rank", "multiply"),
        ({"rank": "\ndef rank(x):\n    return sum((x, 1))\n"}, 7, "rank", "sum may not be used"),
        (
            {"update": "\ndef update(x, y, a):\n    return [x + a, y]\n"},
            4, "update", "found a list, expected a tuple of 2 numbers",
        ),
        (
            {"update": "\ndef update(x, y, a):\n    return x, y, a\n"},
            4, "update", "found 3 numbers for a state of 2 (x, y)",
        ),
        (
            {"rank": "\ndef half(x):\n    return y / 2\n\n\ndef rank(x):\n    return half(x)\n"},
            7, "half", "nothing defines y",
        ),
    ],
)  # fmt: skip
def test_a_rule_that_can_not_be_right_is_refused_before_anything_runs(
    tmp_path: Path, changes: dict[str, str], line: int, rule: str, words: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        find(str(path))
    said = str(error.value)
    assert "\n" not in said and f"{path}, line {line}, rule {rule}: " in said and words in said


@pytest.mark.parametrize("name", sorted(all_policies()))
def test_no_policy_of_the_library_is_refused(name: str) -> None:
    refuse(all_policies()[name])


@pytest.mark.parametrize(
    ("rank", "code", "words"),
    [
        pytest.param(*case, marks=pytest.mark.nightly)  # each is compiled
        for case in (
            (RANK, 0, "naive and numba evict the same tokens in every case tried"),
            ("\ndef rank(age):\n    return -1.0 * age\n", 0, "it evicts as recency does"),
            ("\ndef rank(age):\n    return 1.0\n", 0, "are equal: the oldest goes"),
            ("\ndef rank(age):\n    return INF\n", 0, "every token is protected"),
        )
    ]
    + [
        ("\ndef rank(age):\n    return 1.0 / age\n", 1, "wrong: a rule divides by zero"),
        ("\ndef rank(age):\n    return INF - INF\n", 1, "rank gives NaN in step"),
    ],
)
def test_check_says_what_it_found(
    run: Run, tmp_path: Path, rank: str, code: int, words: str
) -> None:
    ended = run("policies", written(tmp_path, rank=rank), "--check")
    assert ended.code == code and words in ended.out
    assert ("it evicts as h2o does" in ended.out) is False


def test_a_check_needs_something_to_check(run: Run) -> None:
    ended = run("policies", "--check")
    assert ended.code == 2 and "name a policy or the path of a file" in ended.err


def test_policies_of_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    written(tmp_path).rename(tmp_path / "their_rules.py")
    monkeypatch.syspath_prepend(tmp_path)
    group = "h2osim.policies"
    points = [
        EntryPoint("mine", "their_rules:POLICY", group),
        EntryPoint("h2o", "their_rules:POLICY", group),
        EntryPoint("other", "their_rules:POLICY", group),
        EntryPoint("gone", "no_such_module:POLICY", group),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points[:2])
    registry.plugins.cache_clear()
    try:
        assert find("mine").name == "mine" and find("h2o") is all_policies()["h2o"]
        assert "mine" in run("policies").out
        words = ("compare", "prose", "-p", "mine", "-b", "8", "--layers", "2")
        assert run(*words, "--engine", "naive", "--prompt-len", "760").code == 0
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        registry.plugins.cache_clear()
        with pytest.raises(UserError, match="found policy mine, expected a Policy called other"):
            find("other")
        with pytest.raises(UserError, match="policy gone: entry point no_such_module:POLICY: Mod"):
            find("gone")
    finally:
        registry.plugins.cache_clear()


@pytest.mark.parametrize("name", ["h2o", "streaming"])
def test_a_policy_that_is_one_of_those_compared_with(run: Run, name: str) -> None:
    """`policies h2o --check` said that each policy may be given once."""
    ended = run("policies", name, "--check")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("naive and numba evict the same tokens in every case tried\n")


VECTORS = """
from h2osim.policies import inputs
from h2osim.policies.declaration import Policy


def gain(length, a, key_now):
    return length + a * key_now[0]


{rule}

POLICY = Policy(
    name="mine", summary="s", source="t", state=("length",), update=gain,
    vectors={{"key": inputs.key}}, {fields}
)
"""


@pytest.mark.parametrize(
    ("rule", "fields", "code", "words"),
    [
        pytest.param(
            "def rank(key, key_mean, length):\n    return length * key[0] - key_mean[1]",
            'needs=("keys",), rank=rank,', 0,
            "runs on the CPU only: policy mine: its rules see vectors (key)",
            marks=pytest.mark.nightly,  # compiled
        ),
        pytest.param(
            "def rank(key):\n    return key[0]", "rank=rank,", 1,
            "wrong: it reads keys, which its needs do not name",
        ),
        (
            "def rank(key):\n    return key.sum()", "rank=rank,", 2,
            "rule rank: .sum() adds up in an order of its own",
        ),
        (
            "def rank(key, key_mean):\n    return key @ key_mean", "rank=rank,", 2,
            "rule rank: @ adds up in an order of its own",
        ),
        (
            "def rank_batch(key, length):\n    return length + key.sum(axis=1)",
            'needs=("keys",), rank_batch=rank_batch,', 0, "not exact: its ranks are those of",
        ),
        (
            "def rank_batch(key, length):\n    return key",
            'needs=("keys",), rank_batch=rank_batch,', 1,
            "wrong: policy mine: rank_batch in step ",
        ),
    ],
)  # fmt: skip
def test_check_takes_rules_that_see_vectors(
    run: Run, tmp_path: Path, rule: str, fields: str, code: int, words: str
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(VECTORS.format(rule=rule, fields=fields), encoding="utf-8")
    ended = run("policies", path, "--check")
    assert ended.code == code and words in ended.out + ended.err


SEEING = sorted(name for name, policy in all_policies().items() if policy.vectors)


@pytest.mark.parametrize("name", long_but(SEEING))  # each is compiled
def test_check_finds_nothing_wrong_with_rules_of_the_library_that_see_vectors(name: str) -> None:
    wrong, known = rule_check.check(parse(name))
    assert wrong == [] and any("runs on the CPU only" in line for line in known)


def test_check_draws_queries_that_rope_turned() -> None:
    for _, trace in rule_check.traces():
        (unit,) = trace.units("layer")
        assert np.allclose(rotary_of(unit).angle, [1.0, 0.1]) or not unit.queries().any()
    for name in ("triattention", "expected-attention"):
        assert rule_check.undeclared(parse(name)) == []


def test_check_compiles_the_cuda_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from h2osim.cuda import nvrtc
    if not nvrtc.library():
        pytest.skip("no nvrtc (pip install nvidia-cuda-nvrtc)")
    first = next(rule_check.traces())
    monkeypatch.setattr(rule_check, "traces", lambda: iter([first]))
    assert rule_check.check(parse("h2o"))[0] == []
    monkeypatch.setattr(rule_check, "kernel_text", lambda *_: "double f( { }")
    (wrong,) = rule_check.check(parse("h2o"))[0]
    assert wrong.startswith("its CUDA text does not compile: k.cu(1): error")
