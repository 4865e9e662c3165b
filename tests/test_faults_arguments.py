"""What is given to commands and functions: one line says what was found, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Run, fails

import h2osim
from h2osim import Trace, UserError
from h2osim.sweeps.evaluation import evaluate
from h2osim.traces import synthetic

DIGITS = "1" * 5000  # Python turns at most 4,300 digits into a number
ROWS = np.eye(8)[None, None]


@pytest.mark.parametrize(
    "words",
    [
        ("compare", "prose", "-p", "tova", "-b", DIGITS),
        ("compare", "prose", "-p", "tova", "-b", "4", "--layers", DIGITS),
        ("evaluate", "m", "--text", "t", "--prompt-len", DIGITS),
        ("evaluate", "m", "--text", __file__, "--batch", DIGITS),
        ("bench", "closed-loop", __file__, "--grid", f"2x2x{DIGITS}"),
    ],
    ids=lambda words: next(w for w in words[::-1] if w.startswith("-")),
)
def test_numbers_of_more_digits_than_python_reads(run: Run, words: tuple[str, ...]) -> None:
    fails(run(*words), "111", "expected")


@pytest.mark.parametrize("words", [("-n", 10**6), ("-n", 10**11), ("-n", 48, "--heads", 10**9)])
def test_a_trace_beyond_the_memory(run: Run, tmp_path: Path, words: tuple[Any, ...]) -> None:
    """NumPy's own errors came out, some as MemoryError, some as ValueError."""
    ended = run("synth", "powerlaw", *words, "-o", tmp_path / "new")
    fails(ended, "generator powerlaw: ", "of this machine's memory")
    assert not list(tmp_path.iterdir())


def test_memory_that_is_not_there_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "memory", lambda: 1 << 60)
    fails(run("synth", "powerlaw", "-n", 10**7, "-o", "new"), "not enough memory: Unable to alloc")


def test_options_of_a_trace_without_a_generator(run: Run, tmp_path: Path) -> None:
    """The list of generators came out, and no trace, with exit code 0."""
    fails(run("synth", "-n", "4", "-o", tmp_path / "new"), "no generator's name")


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("name", ["trace.json", "layer-000.safetensors"])
def test_no_output_goes_into_a_trace_s_own_files(
    run: Run, tmp_path: Path, name: str, linked: bool
) -> None:
    """`compare T -o T/trace.json` replaced the manifest, and the trace was lost."""
    folder = Trace.from_scores(ROWS).save(tmp_path / "trace")
    target = folder / name
    if linked:
        (tmp_path / "link").with_suffix(target.suffix).symlink_to(target)
        target = (tmp_path / "link").with_suffix(target.suffix)
    before = (folder / name).read_bytes()
    option = "--certificate" if target.suffix == ".safetensors" else "--output"
    fails(run("optimum", folder, "-b", "2", option, target), "found a trace's own file")
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("class Odd(BaseException):\n    pass\nraise Odd('two\\nlines')", r"Odd: two\nlines"),
        ("raise GeneratorExit", "GeneratorExit"),
    ],
)
def test_a_policy_file_may_not_end_the_command(
    run: Run, folder: Path, tmp_path: Path, text: str, says: str
) -> None:
    """`sys.exit()` in it ended the command with nothing said, and exit code 0."""
    rule = tmp_path / "rule.py"
    rule.write_text(text)
    fails(run("compare", folder, "-p", rule, "-b", "4"), f"policy file {rule}: {says}")


def test_texts_that_never_end(run: Run, tmp_path: Path) -> None:
    """A device took all memory there was."""
    for option in ("--text", "--prompts"):
        fails(run("evaluate", "m", option, "/dev/zero"), f"{option} /dev/zero: found more than")
    fails(run("record", "m", "--text", "/dev/zero", "-o", tmp_path / "new"), "found more than")


def test_a_text_from_a_pipe_with_a_name(run: Run, tmp_path: Path) -> None:
    """As a shell's <(command) gives one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = subprocess.Popen(["sh", "-c", f"printf '{{}}\\n' > {pipe}"])
    fails(run("evaluate", "m", "--prompts", pipe), "line 1: field prompt is missing")
    assert writer.wait(timeout=10) == 0


def test_standard_input_that_was_closed_from_the_start(tmp_path: Path) -> None:
    words = f"{sys.executable} -m h2osim record m --text - -o {tmp_path}/new <&-"
    ended = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "--text -: found standard input closed" in ended.stderr


def test_standard_input_may_be_interrupted(tmp_path: Path) -> None:
    """Ctrl-C while a text is waited for, as at a terminal."""
    words = [sys.executable, "-m", "h2osim", "record", "m", "--text", "-", "-o", str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=2) == 130
        assert process.stderr.read() == b"h2osim: error: interrupted\n"


# --- Python -----------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [None, "prose", b"prose", 5, ROWS, [None], {"a": 1}], ids=repr)
@pytest.mark.parametrize("call", ["replay", "optimum", "allocate"])
def test_what_is_no_trace(call: str, what: Any) -> None:
    more = {"replay": ("tova", 2), "optimum": (2,), "allocate": (2,)}[call]
    with pytest.raises(UserError, match=r"trace: found .*, expected a Trace, as h2osim.open_trace"):
        getattr(h2osim, call)(what, *more)


@pytest.mark.parametrize("what", [None, 5, b"tova", [None], ["tova", 5]], ids=repr)
def test_what_is_no_policy(what: Any) -> None:
    with pytest.raises(UserError, match=r"policy .*: expected a text like h2o:recent=32"):
        h2osim.replay(Trace.from_scores(ROWS), what, 2)


@pytest.mark.parametrize("layers", [0, "0", [0.5], [True], [-1], [None]], ids=repr)
def test_what_is_no_list_of_layers(layers: Any) -> None:
    trace = Trace.from_scores(ROWS)
    for call in (
        lambda: h2osim.replay(trace, "tova", 2, layers=layers),
        lambda: h2osim.optimum(trace, 2, layers=layers),
        lambda: h2osim.allocate(trace, 2, layers=layers),
    ):
        with pytest.raises(UserError, match=r"layers: found .*, expected"):
            call()
    good: Any
    for good in ([0], (np.int32(0),), {0}, iter([0])):
        assert h2osim.replay(trace, "tova", 2, layers=good).sizes["unit"] == 1


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("temperature", np.inf), ("temperature", np.nan), ("temperature", 0),
        ("temperature", 1e-320), ("generate", -1), ("seed", 0.5), ("jobs", 0), ("batch", 0),
    ],
)  # fmt: skip
def test_numbers_of_an_evaluation(word: str, value: Any) -> None:
    """A temperature of 1e-320 overflowed, and the first token was chosen."""
    with pytest.raises(UserError, match=rf"{word}: found {value}, expected"):
        evaluate("no-model", {"a": "b"}, "tova", 2, **{word: value})


@pytest.mark.parametrize("word", ["text", "name", "text_name", "text_license"])
def test_texts_that_are_no_utf8(word: str, tmp_path: Path) -> None:
    """The licence was written after the recording, and ended it with a traceback."""
    given: dict[str, Any] = {"text": "words", word: "half \ud800"}
    with pytest.raises(UserError, match=r"found '\\ud800', expected characters that UTF-8 has"):
        h2osim.record("no-model", out=tmp_path / "new", **given)
    assert not list(tmp_path.iterdir())


def test_a_name_is_refused_before_the_recording(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="a recording needs the extra `record` (torch)")
    with pytest.raises(UserError, match=r"new: field name: found \"a\\nb\", expected"):
        h2osim.record("no-model", out=tmp_path / "new", text="words", name="a\nb")
    assert not list(tmp_path.iterdir())


def test_narrow_numbers_of_numpy_are_numbers() -> None:
    """Entries of 200 rows are counted beyond what 8 bits hold; sizes of arrays went wrong."""
    wanted = h2osim.synth("powerlaw", 200, heads=2, layers=2)
    n: Any = np.uint8(200)
    sizes: dict[str, Any] = {"heads": np.int8(2), "layers": np.uint8(2)}
    found = h2osim.synth("powerlaw", n, **sizes)
    assert (found.n, found.heads, found.layers) == (200, wanted.heads, wanted.layers)
    for layer in wanted.layers:
        assert np.array_equal(found.tensor(layer, "scores"), wanted.tensor(layer, "scores"))


@pytest.mark.parametrize("value", ["hot", None, [1]])
def test_a_temperature_that_is_no_number(value: Any, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(UserError, match=r"temperature: found .*, expected a finite number"):
        h2osim.record("m", text="a", out=tmp_path / "t", sample=True, temperature=value)


@pytest.mark.parametrize("limit", [("--least", "nan"), ("--most", "nan"), ("--least", "inf")])
def test_limits_of_a_split_that_are_no_numbers(
    run: Run, folder: Path, limit: tuple[str, str]
) -> None:
    fails(run("allocate", folder, "-t", "20", *limit), "expected 0 to 1 and from 1 on")


def test_a_split_without_an_upper_limit(run: Run, folder: Path) -> None:
    """`--most inf` was an OverflowError; it means that there is none."""
    ended = run("allocate", folder, "-t", "20", "--most", "inf", "-f", "json")
    assert (ended.code, ended.out) == (0, run("allocate", folder, "-t", "20", "-f", "json").out)
