"""Writing a trace: all or nothing, durable, in parts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trace_cases import refuses, same, softmax

from h2osim.attention.triangle import tri
from h2osim.traces.catalogue import open_trace
from h2osim.traces.trace import Trace
from h2osim.traces.writer import TraceWriter


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_writing_stops(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "new" / "folder" / "trace"
    with (
        pytest.raises(error),
        TraceWriter(target, stores=["scores"], group_size=1) as writer,
        writer.layer(0, 3, 1, 1, tensors=["scores", "row_sum"]) as file,
    ):
        file["row_sum"][...] = 1
        assert any(tmp_path.iterdir())
        raise error
    assert not any(tmp_path.iterdir())


def test_nothing_is_left_when_saving_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = Trace.from_scores(softmax(n=6))
    calls = []

    def stop(*args: Any) -> str:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return "0" * 64

    monkeypatch.setattr("h2osim.support.reading.sha256_of", stop)
    with pytest.raises(KeyboardInterrupt):
        trace.save(tmp_path / "trace")
    assert len(calls) == 2 and not any(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names of open files")
def test_all_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut there is a whole trace, or none: each file and folder is flushed first."""
    events: list[str] = []

    def flush(descriptor: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        events.append("folder" if place.parent.name.endswith(".partial") else place.name)

    rename = os.rename

    def named(old: Path, new: Path) -> None:
        events.append("rename")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", named)
    Trace.from_scores(softmax(layers=2, n=6)).save(tmp_path / "trace")
    layers = ["layer-000.safetensors", "layer-001.safetensors"]
    assert events == [*layers, "trace.json", "folder", "rename", tmp_path.name]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time; from h2osim.traces.writer import TraceWriter\n"
        "with TraceWriter(sys.argv[1], stores=['scores'], group_size=1) as w:\n"
        "    with w.layer(0, 3, 1, 1, tensors=['scores', 'row_sum']) as f:\n"
        "        print('ready', flush=True); time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "trace")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    assert any(tmp_path.iterdir())
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors
    assert not any(tmp_path.iterdir())


def test_a_bad_trace_is_not_saved(tmp_path: Path) -> None:
    with refuses("found sum 0"):
        Trace.from_packed(np.zeros((2, 1, 3), np.uint16)).save(tmp_path / "bad")
    assert not any(tmp_path.iterdir())


def test_existing_folders(saved: Path, tmp_path: Path) -> None:
    trace = Trace.from_scores(softmax(n=7, layers=1))
    before = (saved / "trace.json").read_bytes()
    with refuses("good: exists already; nothing was written"):
        trace.save(saved)
    assert (saved / "trace.json").read_bytes() == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("x")
    with refuses("exists and is no trace; only a trace is overwritten"):
        trace.save(other, overwrite=True)
    assert (other / "precious").exists()
    same(trace, open_trace(trace.save(saved, overwrite=True)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good", "other"]


def test_overwriting_a_trace_with_itself(saved: Path) -> None:
    trace = open_trace(saved)
    scores = trace.tensor(2, "scores").tobytes()
    trace.save(saved, overwrite=True)
    again = open_trace(saved)
    again.verify()
    assert again.tensor(2, "scores").tobytes() == scores == trace.tensor(2, "scores").tobytes()


def test_the_old_trace_survives_a_failed_overwrite(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(new: Any, target: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("h2osim.traces.writer.take_place", fail)
    with refuses("good: cannot be written: Input/output error"):
        Trace.from_scores(softmax(n=7)).save(saved, overwrite=True)
    open_trace(saved).verify()
    assert open_trace(saved).n == 40
    assert [p.name for p in saved.parent.iterdir()] == ["good"]


def test_a_full_disk_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("h2osim.traces.writer._reserve", full)
    with refuses("trace: cannot be written: No space left on device"):
        Trace.from_scores(softmax(n=7)).save(tmp_path / "trace")
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with refuses("cannot be made: Not a directory|exists"):
        Trace.from_scores(softmax(n=7)).save(tmp_path / "file" / "trace")


def test_streaming_rows(tmp_path: Path) -> None:
    expected = Trace.from_scores(softmax(n=30, layers=1, heads=2), layers=[4], name="stream")
    bits = expected.tensor(4, "scores")
    fields: dict[str, Any] = {"stores": ["scores"], "group_size": 2, "tokens": None}
    with TraceWriter(tmp_path / "stream", **fields) as writer:
        shapes = {"scores": ("float16", (2, tri(30))), "row_sum": (np.float32, (2, 30))}
        with writer.layer(4, 30, 2, [3], 8, tensors=shapes, scale=0.5) as file:
            for head in (1, 0):
                for start, stop in ((20, 30), (0, 1), (1, 20)):
                    part = bits[head, tri(start) : tri(stop)]
                    # float16 or patterns, any strides
                    part = part.view(np.float16) if head else np.repeat(part, 2)[::2]
                    file.write_rows("scores", head, start, part)
            file["row_sum"][:, :10] = expected.tensor(4, "row_sum")[:, :10]
            file["row_sum"][:, 10:] = expected.tensor(4, "row_sum")[:, 10:]
        writer.manifest["prompt_len"] = 12  # known late
    trace = open_trace(tmp_path / "stream")
    trace.verify()
    assert trace.kv_heads == (3,) and trace.heads == (0, 1) and trace.prompt_len == 12
    assert trace.manifest["created_by"].startswith("h2osim")
    assert trace.tensor(4, "scores").tobytes() == bits.tobytes()
    assert trace.layer_entry(4)["scale"] == 0.5 and trace.manifest["head_dim"] == 8


def test_writer_refuses_what_does_not_fit(tmp_path: Path) -> None:
    one = {"n": 4, "heads": [0], "kv_heads": [0], "group_size": 1}
    fields: dict[str, Any] = {"stores": ["scores"], **one}
    with pytest.raises(TypeError, match="no such fields in a manifest: colour"):
        TraceWriter(tmp_path / "t", colour="red")
    with pytest.raises(RuntimeError, match="with statement"):
        TraceWriter(tmp_path / "t", **fields).layer(0, tensors=["scores"]).__enter__()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n": 5, "tensors": ["scores"]}, "n 5, but 4 before"),
        ({"tensors": ["score"]}, "no tensor of a trace is called score"),
        ({"tensors": []}, "at least one tensor"),
        ({"tensors": ["v"]}, "tensor v: its shape needs head_dim"),
        ({"tensors": {"lse": ("float16", (1, 4))}}, r"tensor lse: float16 \(1, 4\), expected F32"),
        ({"tensors": {"lse": ("float32", (4,))}}, r"expected F32 \[1, 4\]"),
    ]
    for arguments, message in wrong:
        with (
            pytest.raises(ValueError, match=message),
            TraceWriter(tmp_path / "t", **fields) as writer,
            writer.layer(0, **arguments),
        ):
            pass
    for head, first, bits, error in [
        (1, 0, np.zeros(1, np.uint16), IndexError),
        (0, 4, np.zeros(5, np.uint16), IndexError),
        (0, 1, np.zeros(3, np.uint16), ValueError),
        (0, 0, np.zeros(1, np.float32), TypeError),
    ]:
        with (
            pytest.raises(error),
            TraceWriter(tmp_path / "t", **fields) as writer,
            writer.layer(0, tensors=["scores"]) as file,
        ):
            file.write_rows("scores", head, first, bits)
    with (
        refuses("field layers: found"),
        TraceWriter(tmp_path / "t", **fields),
    ):
        pass
    assert not any(tmp_path.iterdir())
