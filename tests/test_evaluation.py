"""Studies of the closed loop: budgets by unit, tasks and prompts, writing, masks, the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run

pytest.importorskip("torch", reason="a running model needs the extra `record` (torch)")
pytest.importorskip("transformers", reason="a running model needs the extra `record`")

from evaluation_cases import IDS, MODEL
from honest_decoder import Letters, N, P, make, refused, tokens

import h2osim
from h2osim.cli.common import parse_budgets
from h2osim.closed_loop.caches import Eviction
from h2osim.closed_loop.decoding import Choice, Decoder, Prompt
from h2osim.closed_loop.prompts import Question, Task, read_questions
from h2osim.models import loading
from h2osim.models.loading import given
from h2osim.optima.prompt_budgets import RULES, PromptBudgets
from h2osim.policies.text import parse
from h2osim.replays.budget_file import read_budgets, write_budgets
from h2osim.replays.results import check
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.support.errors import UserError

# --- budgets by unit -------------------------------------------------------------------------


def test_budgets_by_unit_are_what_each_unit_keeps() -> None:
    split = np.array([[4, 9], [7, 20]])
    found = h2osim.evaluate(MODEL, IDS, ["tova"], [split, 10], prompt_len=P)
    check(found)
    assert found["split"].values.tolist() == ["array 0", "equal"]
    assert found["budget"].values.tolist() == [10.0, 10.0]
    assert (found["slots"][0, 0] == split).all() and (found["slots"][0, 1] == 10).all()
    # before step t a unit holds min(t, k) keys
    expected = sum(np.minimum(k, np.arange(P, N)).mean() for k in split.ravel())
    # means of integers, added in another order
    assert float(found["cached"][0, 0, 0]) == pytest.approx(expected)
    assert float(found["cache_bytes"][0, 0, 0]) == pytest.approx(expected * 2 * 24)
    alike = h2osim.evaluate(MODEL, IDS, ["tova"], [np.full((2, 2), 10), 10], prompt_len=P)
    assert (alike["kl"][..., 0] == alike["kl"][..., 1]).all()
    assert float(found["kl"][0, 0, 0]) != float(found["kl"][0, 0, 1])


def test_a_file_of_budgets_comes_back(tmp_path: Path) -> None:
    made = UnitBudgets("b", np.array([[0.1, 0.5], [0.25, 1.0]]), (1, 0), "M", "group", "by hand")
    write_budgets(tmp_path / "b.json", made)
    (found,) = read_budgets(tmp_path / "b.json")
    assert (found.budgets == made.budgets).all()
    assert (found.layers, found.model, found.made) == ((1, 0), "M", "by hand")
    # Rows are named: layer 0 is the second. Equal budgets of the mean .4625 would have 18 of 40
    # tokens each, so that there are 72 in all, in the proportions .1, .5, .25 and 1.
    for layers, expected in (((0, 1), [[10, 39], [4, 19]]), ((1,), [[4, 19]])):
        tokens = found.resolve("M", "group", layers, 2, 40)
        assert tokens.tolist() == expected, tokens
    for arguments, said in (
        (("X", "group", (0, 1), 2, 40), "made for model M, asked for is X"),
        (("M", "head", (0, 1), 2, 40), "made for share group, asked for is head"),
        (("M", "group", (0, 2), 2, 40), "none for layer 2, expected a row for each of the 2 layer"),
        (("M", "group", (0, 1), 3, 40), "2 units a layer, expected 3"),
    ):
        with pytest.raises(UserError, match=said):
            found.resolve(*arguments)


GOOD: dict[str, Any] = {
    "h2osim_budgets": 2, "model": "", "share": "group", "layers": [0, 1], "made": "",
    "splits": [{"budgets": [[4, 9], [7, 20]], "total": 40}],
}  # fmt: skip


def split(**change: Any) -> dict[str, Any]:
    """A file's only split, with a change."""
    return {"splits": [GOOD["splits"][0] | change]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"h2osim_budgets": 1}, "field h2osim_budgets: found 1, expected int >= 2"),
        (split(total=41), "total 41, but the budgets add up to 40"),
        (split(budgets=[[4, 9], [7]]), r"found shape \[0\]"),
        (split(budgets=[[4, 9]]), "1 rows, expected one for each of 2"),
        (split(budgets=[[4, 0], [7, 20]]), "found 0 in row 0, unit 1, expected tokens from 1 on"),
        (split(budgets=[[0.5, 1.5], [0.1, 0.1]]), "found 1.5 in row 0, unit 1"),
        (split(budgets=[[0.5, 1], [0.1, 0.1]]), "tokens among shares"),
        (split(budgets="x"), r'field splits\[0\].budgets: found "x", expected array'),
        (split(budgets=[[4, 9], [7, True]]), r"field splits\[0\].budgets\[1\]\[1\]: found true"),
        (split(budgets=[[4, 9], [7, 10**30]]), r"field splits\[0\].budgets\[1\]\[1\]: found 1000"),
        (split(total=10**400), r"field splits\[0\].total: found 1000"),
        ({"made": None}, "field made: found null, expected str"),
        ({"layers": [0, 0]}, "2 rows, expected one for each of 1"),
        ({"layers": "01"}, 'field layers: found "01", expected array'),
        ({"layers": [0, True]}, r"field layers\[1\]: found true, expected int"),
        ({"share": "all"}, "field share: found .all., expected str matching regex.*head.group.lay"),
    ],
)
def test_a_bad_file_of_budgets_is_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(GOOD))
    assert [one.mean for one in read_budgets(path)] == [10]
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(UserError, match=said) as error:
        read_budgets(path)
    assert "\n" not in str(error.value)


def test_budgets_that_do_not_fit_the_model_are_refused() -> None:
    for array, said in (
        (np.ones((3, 2), int), "3 rows, expected a row for each of the 2 layers 0, 1"),
        (np.ones((2, 3), int), "3 units a layer, expected 2"),
        (np.full((2, 2), N + 1), f"budget {N + 1}: expected 1 to {N} tokens"),
        (np.full((2, 2), "x"), "expected numbers"),
    ):
        assert said in refused(MODEL, IDS, "tova", [array])


def test_budgets_are_decided_at_the_end_of_each_prompt(tmp_path: Path) -> None:
    """From its rows and values: as a trace of the prompt gives them, whatever comes after it."""
    texts = {"a": tokens(N), "b": [(7 * x + 3) % 61 for x in tokens(N)]}
    asked = [PromptBudgets.of(rule, 0.4) for rule in RULES]
    found = h2osim.evaluate(MODEL, texts, ["tova"], [*asked, 0.4], prompt_len=20)
    check(found)
    assert found["split"].values.tolist() == [*RULES, "equal"]
    slots = found["slots"].values
    assert (slots.sum(axis=(2, 3)) == 4 * int(0.4 * N)).all()
    other = {"a": [*texts["a"][:20], *reversed(texts["a"][20:])]}
    again = h2osim.evaluate(MODEL, other, ["tova"], asked, prompt_len=20)
    assert (again["slots"].values[0] == slots[0, :2]).all()
    assert (slots[0, 1] != slots[1, 1]).any()  # another prompt decides otherwise
    # The same from a recording of the prompt.
    h2osim.record(MODEL, out=tmp_path / "t", tokens=texts["a"][:20], values=True)
    trace = h2osim.open_trace(tmp_path / "t")
    units = trace.units("group")
    for b, one in enumerate(asked):
        assert one.decide(units, 2, N).tolist() == slots[0, b].tolist()
    with pytest.raises(UserError, match="only evaluate takes them"):
        h2osim.replay(trace, "tova", asked[0])
    with pytest.raises(UserError, match="expected one of adakv, predicted-error"):
        PromptBudgets.of("luck", 0.4)
    said: Any = parse_budgets("@predicted-error:40%,@adakv:12")
    assert [(one.name, one.mean, one.in_tokens) for one in said] == [
        ("predicted-error", 0.4, False), ("adakv", 12, True),
    ]  # fmt: skip


# --- prompts with an answer ------------------------------------------------------------------


def test_an_answer_is_scored_as_greedy_decoding_and_by_its_probability() -> None:
    loaded = replace(given(MODEL), tokenizer=Letters())
    question = Question("abcabdabeabfabg", " xy", "abhab")
    ids = [ord(c) % 61 for c in "abcabdabeabfabgabhab xy"]
    found = h2osim.evaluate(
        MODEL, {"q": question}, ["tova", "full"], [6], tokenizer=loaded.tokenizer
    )
    check(found)
    assert int(found["prompt_len"][0]) == 15  # the question is decoded, the answer too
    with np.errstate(all="ignore"):
        log_p = Decoder(loaded, ids, 15).log_probabilities(Eviction(parse("tova"), 6))
    rows = [20 - 1 - 15 + i for i in range(3)]  # rows that predict the three tokens of the answer
    expected = sum(float(log_p[row, ids[20 + i]]) for i, row in enumerate(rows))
    # a sum of three float64 numbers, in another order
    assert float(found["answer_logp"][0, 0, 0]) == pytest.approx(expected)
    assert float(found["answer_logp"][0, 1, 0]) == float(found["full_answer_logp"][0])
    # what the model writes itself is answered exactly
    prompt = Prompt(loaded, ids[:20])
    own = prompt.generate(None, 3, Choice())
    letters = {ord(c) % 61: c for c in map(chr, range(32, 93))}
    best = Question("abcabdabeabfabgabhab", "".join(letters[token] for token in own))
    right = h2osim.evaluate(MODEL, {"q": best}, "full", 6, tokenizer=loaded.tokenizer)
    assert float(right["exact"].item()) == float(right["full_exact"].item()) == 1
    assert float(found["full_exact"][0]) == float([ord(c) % 61 for c in " xy"] == own)
    assert int(right["prompt_len"][0]) == 19  # so that the policy is in force for every token


def test_tasks_hide_what_they_ask_for_where_they_say() -> None:
    def words(text: str) -> int:
        return len(text.split())

    for kind in ("needle", "pairs", "facts"):
        early, late = (Task(kind, 120, depth, 7).question(words) for depth in (0.0, 1.0))
        assert early.answer == late.answer and early.question == late.question
        for one in (early, late):
            size = words(one.context + one.question) + words(one.answer)
            assert 100 < size <= 120
            assert one.context.count(one.answer.strip()) >= (3 if kind == "facts" else 1)
        assert Task(kind, 120, 0.0, 8).question(words) != early
    needle = Task("needle", 120, 0.0, 7).question(words)
    assert needle.context.startswith("The secret number of")
    assert needle.answer.strip() in needle.context.split(".")[0]
    last = Task("needle", 120, 1.0, 7).question(words)
    assert last.context.endswith(f"is{last.answer}.")
    with pytest.raises(UserError, match="length 5, expected at least"):
        Task("needle", 5).question(words)
    with pytest.raises(UserError, match="depth 2, expected 0 to 1"):
        Task("needle", depth=2)
    with pytest.raises(UserError, match="task 'hay': expected one of needle, pairs, facts"):
        Task("hay")


def test_prompts_are_read_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a", "answer": " b"}\n\n{"prompt": "c", "question": "?", '
                    '"answer": "d", "name": "x"}\n')  # fmt: skip
    assert read_questions(path) == {"line 1": Question("a", " b"), "x": Question("c", "d", "?")}
    # ends of lines that are no ends of lines in JSON, a byte-order mark, those of Windows
    path.write_bytes('\ufeff{"prompt": "a\u2028\u0085b", "answer": "c"}\r\n'.encode())
    assert read_questions(path) == {"line 1": Question("a\u2028\u0085b", "c")}
    for text, said in (
        ("", "no prompt in it"),
        ("x", "line 1: not valid JSON"),
        ("[]", r"line 1: found \[\], expected object"),
        ('{"prompt": "a"}', "line 1: field answer is missing"),
        ('{"prompt": "a", "answer": ""}', 'field answer: found "", expected str of len'),
        ('{"prompt": "a", "answer": "b", "z": 1}', "line 1: unknown field z"),
        ('{"prompt": "a", "answer": "b", "answer": "c"}', "line 1.*field 'answer' twice"),
        ('{"prompt": "a", "answer": "\\ud800"}', "line 1: not valid JSON"),
        ("[" * 100_000, "line 1: not valid JSON: nested too deep"),
        ('{"prompt": "a", "answer": "b", "name": "n"}\n' * 2, "line 2: the name 'n' is taken"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_questions(path)


# --- writing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["h2o", "vatp", "random:seed=3", "h2o-mask"])
def test_what_is_written_is_the_pass_token_by_token(policy: str) -> None:
    """Greedy tokens of a pass over what was written are what was written: one pass is decoding."""
    loaded, ids, how = given(MODEL), tokens(32, 14), Eviction(parse(policy), 6)
    prompt = Prompt(loaded, ids)
    written = prompt.generate(how, 20, Choice())
    decoder = Decoder(loaded, [*ids, *written], 14, prompt=prompt)
    logits, _ = decoder.decode(how)
    assert logits.argmax(dim=1)[:-1].tolist() == written[1:]
    # so the first token that differs is the first that the policy's pass over the full text misses
    full = prompt.generate(None, 20, Choice())
    seen = Decoder(loaded, [*ids, *full], 14, prompt=prompt).evict(how)
    found = h2osim.evaluate(MODEL, {"a": ids}, policy, 6, generate=20)
    check(found)
    agreed = 1 + int(np.append(seen.hits[:-1], False).argmin())
    assert int(found["agreement"].item()) == agreed < 20
    assert found["generated"].item() == " ".join(map(str, written))
    assert found["full_generated"].item() == " ".join(map(str, full))
    # the mean over an array of another shape
    assert float(found["kl"].item()) == pytest.approx(seen.kl.mean())


def test_sampling_depends_on_the_seed_and_nothing_else() -> None:
    ids = {"a": tokens(33, 12)}
    one, again, other = (
        h2osim.evaluate(MODEL, ids, ["tova", "full"], 6, generate=12, sample=True, seed=seed)
        for seed in (1, 1, 2)
    )
    assert one["full_generated"].item() == again["full_generated"].item()
    assert one["full_generated"].item() != other["full_generated"].item()
    assert int(one["agreement"][0, 1, 0]) == 12  # the full policy evicts nothing
    greedy = h2osim.evaluate(MODEL, ids, "tova", 6, generate=12)
    cold = h2osim.evaluate(MODEL, ids, "tova", 6, generate=12, sample=True, temperature=1e-6)
    assert cold["generated"].item() == greedy["generated"].item()


# --- masks -----------------------------------------------------------------------------------


def test_a_mask_evicts_what_the_replay_did(tmp_path: Path) -> None:
    h2osim.record(MODEL, out=tmp_path / "t", tokens=IDS["a"])
    trace = h2osim.open_trace(tmp_path / "t")
    replay = h2osim.replay(trace, ["streaming:sinks=2", "tova", "future"], [6, 12], prompt_len=P)
    file = tmp_path / "r.nc"
    replay.to_netcdf(file, engine="h5netcdf")
    found = h2osim.evaluate(MODEL, IDS, mask_from=file)
    check(found)
    assert found["policy"].values.tolist() == ["streaming:sinks=2", "tova", "future"]
    assert found["kind"].values.tolist() == ["online", "online", "oracle"]
    own = h2osim.evaluate(MODEL, IDS, ["streaming:sinks=2", "tova"], [6, 12], prompt_len=P)
    # streaming's evictions do not depend on rows; tova's do
    assert (found["kl"][:, 0] == own["kl"][:, 0]).all()
    assert (found["kept"][:, 0] == own["kept"][:, 0]).all()
    assert (found["cached"][:, 0] == own["cached"][:, 0]).all()
    assert (found["kl"][:, 1] != own["kl"][:, 1]).any()
    # the first layer's rows are those of the uncompressed run
    assert (found["kept"][:, :, :, 0] == replay["kept"].isel(layer=0).transpose(
        "policy", "budget", "unit").values).all()  # fmt: skip
    assert "a replay of 34 tokens, but text a has 20" in refused(
        MODEL, {"a": tokens(31, 20)}, mask_from=file
    )
    assert "2 texts, expected the one" in refused(MODEL, IDS | {"b": tokens(1)}, mask_from=file)
    assert "policies, budgets and layers are the replay's" in refused(
        MODEL, IDS, "tova", mask_from=file
    )
    h2osim.replay(trace, "topk", 6).to_netcdf(file, engine="h5netcdf")
    assert "attends again to what it evicted" in refused(MODEL, IDS, mask_from=file)
    h2osim.replay(trace, "h2o", "all").to_netcdf(file, engine="h5netcdf")
    assert "expected a replay with its evictions" in refused(MODEL, IDS, mask_from=file)
    file.write_text("x")
    assert "no NetCDF file" in refused(MODEL, IDS, mask_from=file)


# --- the command -----------------------------------------------------------------------------


def test_the_command_takes_tasks_prompts_files_and_writes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Spelled(Letters):
        def decode(self, ids: list[int]) -> str:
            return " ".join(map(str, ids))

    model = make("gqa", double=False)
    model.config.max_position_embeddings = 2048
    loaded = replace(given(model), tokenizer=Spelled())
    monkeypatch.setattr(loading, "load", lambda name: loaded)
    text = tmp_path / "a.txt"
    text.write_text("".join(chr(97 + t % 26) for t in tokens(20, 40)))
    (tmp_path / "p.jsonl").write_text('{"prompt": "abcabcabcabc", "answer": "abc"}\n')
    (tmp_path / "b.json").write_text(json.dumps(GOOD))
    task = ["--task", "needle", "--task-length", "400", "--task-depths", "0.5", "-b", "20%"]
    ended = run("evaluate", "any", *task, "--task-seeds", "2", "-p", "tova")
    assert ended.code == 0 and "2 texts" in ended.out, ended.err
    assert "log-probability of the answer" in ended.out
    ended = run("evaluate", "any", "--prompts", tmp_path / "p.jsonl", "-b", "5", "-f", "json")
    assert {"exact", "answer_logp"} <= set(json.loads(ended.out)[0])
    split = ["-b", f"@{tmp_path / 'b.json'},6", "--plot", tmp_path / "x.png"]
    ended = run("evaluate", "any", "--text", text, *split, "-p", "tova")
    assert ended.code == 0 and "mean 10 tokens" in ended.out, ended.err
    ended = run("evaluate", "any", "--text", text, "--generate", "5", "-b", "6", "-f", "json")
    assert len(json.loads(ended.out)[0]["generated"].split()) == 5
    for more, said in (
        ([], "expected one of --text, --prompts and --task"),
        (["--text", text, *task], "expected one of"),
        ([*task, "--generate", "4"], "--generate: goes with --text"),
        (["--task", "needle", "--task-depths", "x"], "--task-depths: 'x'"),
        (["--text", text, "-b", "@none.json"], "none.json: cannot be read: No such file"),
        (["--text", text, "--mask-from", "none.nc"], "--mask-from none.nc"),
        (["--text", text, "--device", "cuda:9"], "device cuda:9: "),
        (
            ["--text", text, "--sample", "--temperature", "0", "--generate", "2"],
            "temperature: found 0",
        ),
    ):
        ended = run("evaluate", "any", *more)
        assert ended.code == 2 and said in ended.err and ended.err.count("\n") == 1, ended.err
