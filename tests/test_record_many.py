"""Several texts recorded at once: one trace each, continued where it stopped, never mixed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from commands import Run, fails
from test_faults_running import Letters
from tiny_models import family, torch

import h2osim
from h2osim.models import kept, layers, loading, recorder
from h2osim.models.sink import packed
from h2osim.support.errors import UserError

TEXTS = {"a": "first of the texts", "b": "second of them all", "c": "third and last"}
Record = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def tiny() -> loading.Model:
    return loading.Model(family("llama"), Letters(), "tiny", None, "0" * 64)


@pytest.fixture
def loads(tiny: loading.Model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that are loaded: whatever their names, it is the tiny one."""
    names: list[str] = []

    def load(name: str, say: loading.Say) -> loading.Model:
        names.append(name)
        say("reading its weights")
        return tiny

    monkeypatch.setattr(loading, "load", load)
    return names


def recorded(folder: Path) -> dict[str, int]:
    """When each trace in a folder was written, by its name."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/trace.json")}


def files(folder: Path, texts: dict[str, str], suffix: str = ".txt") -> list[Path]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}{suffix}").write_text(text)
    return sorted(folder.iterdir())


def test_each_trace_is_what_its_text_alone_gives(loads: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    told: list[tuple[float, float, str]] = []
    paths = h2osim.record_many(
        "tiny", TEXTS, out=out, store="both", values=True, n_tokens=9,
        progress=lambda *said: told.append(said),
    )  # fmt: skip
    assert paths == [out / name for name in TEXTS] and loads == ["tiny"]
    for name, text in TEXTS.items():
        alone = h2osim.record(
            "tiny", text=text, out=tmp_path / f"alone-{name}", store="both", values=True, n_tokens=9
        )
        for layer in ("layer-000.safetensors", "layer-002.safetensors"):
            assert (out / name / layer).read_bytes() == (alone / layer).read_bytes()
        fields = h2osim.open_trace(out / name).manifest
        digest = hashlib.sha256(text.encode()).hexdigest()
        assert fields["name"] == fields["text"]["name"] == name
        assert fields["text"]["sha256"] == digest
    done = [one for one in told if one[1]]
    assert [one[0] for one in done] == sorted(one[0] for one in done)
    assert done[-1][:2] == (27, 27) and done[-1][2].startswith("c (3 of 3), layer 2")
    assert told[1] == (0, 0, "reading its weights")


def test_the_same_command_continues(
    loads: list[str], tiny: loading.Model, tmp_path: Path, run: Run
) -> None:
    folder, out = tmp_path / "texts", tmp_path / "out"
    files(folder, {"a": TEXTS["a"], "c": TEXTS["c"]})
    (folder / ".hidden").write_bytes(b"\xff")
    words = ("record", "tiny", "--text", folder, "-o", out, "--layers", "1")
    assert run(*words).err == f"2 traces in {out}\n"
    before = recorded(out)
    files(folder, TEXTS)
    assert run(*words).err == f"3 traces in {out}\n"
    after = recorded(out)
    assert set(after) == {"a", "b", "c"} and all(after[name] == before[name] for name in before)
    assert run(*words, "--overwrite").code == 0
    assert all(recorded(out)[name] > after[name] for name in after)
    # other commands take the folder
    assert run("compare", out, "-p", "h2o,tova", "-b", "4").out.startswith("3 traces (a, b, c)")
    assert len(json.loads(run("info", out, "-f", "json").out)) == 3


def test_several_texts_and_json_lines(loads: list[str], tmp_path: Path, run: Run) -> None:
    one, two, _ = files(tmp_path / "texts", TEXTS)
    words = ("record", "tiny", "--text", one, two, "--text", tmp_path / "texts" / "c.txt")
    assert run(*words, "-o", tmp_path / "out", "--generate", 2).code == 0
    assert set(recorded(tmp_path / "out")) == {"a", "b", "c"}
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "what?", "answer": "it"}\n\n{"text": "a text", "name": "mine"}\n')
    assert run("record", "tiny", "--dataset", lines, "-o", tmp_path / "lines").code == 0
    assert set(recorded(tmp_path / "lines")) == {"prompts-0001", "mine"}
    one_line = tmp_path / "one.jsonl"
    one_line.write_text('{"prompt": "what?"}')
    assert run("record", "tiny", "--dataset", one_line, "-o", tmp_path / "one").code == 0
    assert set(recorded(tmp_path / "one")) == {"one-0001"}


def test_what_is_another_recording_is_refused_in_a_line(
    loads: list[str], tiny: loading.Model, tmp_path: Path, run: Run, monkeypatch: Any
) -> None:
    a, b, c = files(tmp_path / "texts", TEXTS)
    out = tmp_path / "out"
    words: Sequence[object] = ("record", "tiny", "--text", a, b, "-o", out)
    assert run(*words).code == 0
    before = recorded(out)
    for more, said in (
        (("-n", 9), "settings, n_tokens is None, asked for is 9"),
        (("--layers", "1"), "settings, layers is None, asked for is [1]"),
        (("--values-8bit",), "settings, values is False, asked for is 8bit"),
        (("--store", "qk"), "settings, store is scores, asked for is qk"),
    ):
        fails(run(*words, *more), f"{out}/a: holds another recording: {said}")
    fails(run("record", "tiny", "--text", c, tmp_path / "texts", "-o", out), "the same name")
    a.write_text("another text of this name")
    loads.clear()
    fails(run(*words), f"{out}/a: holds another recording: text is ")
    fails(run("record", "tiny", "--text", b, c, "-n", 9, "-o", out), f"{out}/a: holds another")
    assert not loads  # told before the model is loaded
    a.write_text(TEXTS["a"])
    other = loading.Model(tiny.model, tiny.tokenizer, "tiny", None, "1" * 64)
    monkeypatch.setattr(loading, "load", lambda name, say: other)
    fails(run(*words), "holds another recording: model (tiny), sha256 is 000")
    assert recorded(out) == before


def test_mistakes_are_told_before_the_first_text(
    loads: list[str], tmp_path: Path, run: Run
) -> None:
    a, b, _ = files(tmp_path / "texts", TEXTS)
    out = tmp_path / "out"
    lines = tmp_path / "x.jsonl"
    words = ("record", "tiny", "-o", out)
    fails(run(*words), "expected one of --text and --dataset")
    fails(run(*words, "--text", a, "--dataset", lines), "expected one of --text and --dataset")
    fails(run(*words, "--text", a, b, "--name", "x"), "--name: is for one text")
    fails(run(*words, "--text", a, "-"), "--text -: standard input is recorded alone")
    fails(run(*words, "--text", a, tmp_path / "no"), "No such file")
    (tmp_path / "empty").mkdir()
    fails(run(*words, "--text", tmp_path / "empty"), "found no file in this folder")
    for text, said in (
        ("", "no prompt in it"),
        ("{", "line 1: not valid JSON"),
        ('{"prompt": "a"}\n{"prompt": ""}', "line 2: field prompt"),
        ('{"prompt": "a", "text": "b"}', "line 1: found 2 of prompt and text"),
        ('{"answer": "a"}', "line 1: found 0 of prompt and text"),
        ('{"text": "a", "name": "n"}\n{"text": "b", "name": "n"}', "line 2: the name 'n' is taken"),
        ('{"text": "a", "name": "../n"}', "text '../n': expected a name for a folder"),
        ('{"text": "a", "name": ".n"}', "text '.n': expected a name for a folder"),
        ('{"text": "a", "name": "trace.json"}', "text trace.json: expected another name"),
        (json.dumps({"text": "a", "name": "n" * 201}), "found a name of 201 bytes"),
        ('{"text": "abc", "name": "n"}\n{"text": "a"}', "text x-0002: found 1 tokens"),
    ):
        lines.write_text(text)
        fails(run(*words, "-n", 2, "--dataset", lines), said)
    fails(run(*words, "--text", a, b, "--generate", 60), "expected at most its context of 64")
    fails(run(*words, "--text", a, b, "--layers", "7"), "layers: found 7")
    assert not out.exists()
    out.mkdir()
    (out / "a").mkdir()
    fails(run(*words, "--text", a, b), f"{out}/a: exists and is no trace")
    fails(run("record", "tiny", "--text", a, b, "-o", a), f"{a}: exists and is no folder")
    assert run("record", "tiny", "--text", a, "-o", tmp_path / "t").code == 0
    fails(run("record", "tiny", "--text", a, b, "-o", tmp_path / "t"), "is a trace, expected a")
    elsewhere = ("record", "tiny", "-o", tmp_path / "o", "--text", a, b, "--device", "cuda:99")
    fails(run(*elsewhere), "device cuda:99: ")
    assert [path.name for path in out.iterdir()] == ["a"]


def test_places_are_tried_before_the_model_is_loaded(
    loads: list[str], tmp_path: Path, run: Run
) -> None:
    a, b, _ = files(tmp_path / "texts", TEXTS)
    out, file, link = tmp_path / "out", tmp_path / "file", tmp_path / "link"
    file.touch()
    link.symlink_to("nowhere")
    words = ("record", "tiny", "--text", a, b, "-n", 4, "-o")
    for place in (file / "x", link):
        fails(run(*words, place), f"{place}/a: cannot be made")
    assert run(*words, out).code == 0 and loads.pop() == "tiny"
    # a trace in a trace would be lost with it
    fails(run(*words, out / "a" / "more"), f"is in the trace {out}/a, expected another place")
    fails(run(*words[:4], "-o", out / "a" / "one"), f"is in the trace {out}/a")
    assert {path.suffix for path in (out / "a").iterdir()} == {".json", ".safetensors"}
    (out / "b" / "layer-000.safetensors").write_bytes(b"")
    fails(run(*words, out), f"{out}/b/layer-000.safetensors: truncated")
    assert not loads


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files")
def test_a_disk_that_is_full_keeps_what_is_finished(
    loads: list[str], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system tells it in the thread that brings a layer to the disk."""
    out = tmp_path / "out"
    words = ("record", "tiny", "--text", *files(tmp_path / "texts", TEXTS), "-o", out)
    flushed: list[str] = []
    full = {"b": "layer-001"}

    def fsync(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        flushed.append(name)
        if any(f"/{text}/{layer}" in name for text, layer in full.items()):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    fails(run(*words), f"{out}/b: cannot be written: No space left on device")
    before = recorded(out)
    assert set(before) == {"a"} and [path.name for path in out.iterdir()] == ["a"]
    full.clear()
    flushed.clear()
    assert run(*words).code == 0
    assert set(recorded(out)) == {"a", "b", "c"} and recorded(out)["a"] == before["a"]
    assert not any("/a/layer" in name for name in flushed)
    for path in out.iterdir():
        h2osim.open_trace(path).verify()


def test_interrupted_between_rows(
    loads: list[str], tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ("record", "tiny", "--text", *files(tmp_path / "texts", TEXTS), "-o", out)
    passes = []

    def call(*given: Any, **named: Any) -> Any:
        passes.append(given)
        if len(passes) == 2:
            raise KeyboardInterrupt
        return real(*given, **named)

    real = layers.call
    monkeypatch.setattr(recorder, "call", call)
    ended = run(*words)
    assert (ended.code, ended.err) == (130, "h2osim: error: interrupted\n")
    assert [path.name for path in out.iterdir()] == ["a"]
    assert run(*words).code == 0 and len(passes) == 4  # b and c


@pytest.mark.parametrize("first", [0, 3])
def test_rows_are_packed_alike_on_every_device(first: int) -> None:
    """Elsewhere than on a CPU by a mask; a tensor that says that it is elsewhere shows it here."""

    class Elsewhere(torch.Tensor):
        device = torch.device("cpu")

    Elsewhere.device = type("Device", (), {"type": "other"})()
    rows = torch.rand(2, 4, 11 - first).half()
    for row in range(4):
        rows[:, row, 8 + row - first :] = 0
    elsewhere = rows.as_subclass(Elsewhere)
    found = packed(rows, 7, first)
    assert found.shape == (2, 8 + 9 + 10 + 11)
    for row, at in enumerate((0, 8, 17, 27)):
        own = found[:, at + first : at + 8 + row]
        assert (own == rows[:, row, : 8 + row - first].numpy()).all()
        assert not found[:, at : at + first].any()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "arange", lambda *given, device: _ARANGE(*given))
        assert (packed(elsewhere, 7, first) == found).all()


_ARANGE = torch.arange


# --- models that are kept -------------------------------------------------------------------------


def test_a_kept_model_is_the_one_that_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path)
    model = family("llama")
    words = {chr(97 + i): i for i in range(26)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "a")))
    made: list[int] = []

    def make() -> tuple[Any, Any]:
        made.append(1)
        return model, tokenizer

    with loading.quiet():
        kept.load("tiny", make)
        again, spelled = kept.load("tiny", make)
        assert len(made) == 1
        had, has = model.state_dict(), again.state_dict()
        assert had.keys() == has.keys() and all(torch.equal(had[key], has[key]) for key in had)
        assert spelled("c")["input_ids"] == [2]
        (folder,) = (tmp_path / "models").iterdir()
        for name in ("model.safetensors", "tokenizer.json", kept.LISTING):
            data = (folder / name).read_bytes()
            (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            kept.load("tiny", make)
            assert kept.whole(folder)
        assert len(made) == 4
        # no room: it is done without
        (folder / kept.LISTING).unlink()
        monkeypatch.setattr(kept, "ROOM", 10**12)
        kept.load("tiny", make)
        assert len(made) == 5 and not kept.whole(folder)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [folder.name]


def test_python_callers_are_told_what_no_command_can_ask(tmp_path: Path) -> None:
    for texts, said in (({}, "texts: found none"), ({"a/b": "x"}, "expected a name for a folder")):
        with pytest.raises(UserError, match=said):
            h2osim.record_many("tiny", texts, out=tmp_path / "out")
    with pytest.raises(TypeError, match="no_such"):
        h2osim.record_many("tiny", TEXTS, out=tmp_path / "out", no_such=1)
