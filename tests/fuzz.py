"""Fuzzers of all that h2osim reads, replays and writes: ``python -m tests.fuzz --minutes 10``.

Each fuzzer draws one case with hypothesis, structure-aware: valid JSON with a field, a shape or an
offset changed, digests sealed again or not, bytes flipped. What is refused must be refused by
UserError in one line; what is let in must pass an oracle that shares no code with the readers. A
sample goes through the command in a process of its own.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_bench import Bench, Fuzzer, Invalid, flip, mutate
from fuzz_oracle import check_claims, check_trace, tensors_of
from strategies import traces

import h2osim
from h2osim import Trace, UserError
from h2osim.closed_loop.prompts import read_questions
from h2osim.optima.certifying import certify, digest
from h2osim.replays.budget_file import read_budgets
from h2osim.studies.tasks import read_table
from h2osim.support.archive import read_arrays, write_arrays

COUNTS = ("tried", "refused", "tracebacks", "accepted invalid", "silent")
TABLE = b"model,text,policy,budget,kl\nm,a,h2o,0.1,0.25\nm,b,tova,0.2,nan\n"


class Silent(Exception):
    """Numbers have changed and nobody was told."""


def fuzz_manifest(bench: Bench, data: st.DataObject) -> None:
    """trace.json: fields changed, taken away, of other types, twice, or broken as text."""
    more = ("head_dim", "model_heads", "model_kv_heads", "generation", "provenance")
    (bench.trace / "trace.json").write_bytes(mutate(data, bench.manifest, more))
    bench.read()


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def fuzz_layer(bench: Bench, data: st.DataObject) -> None:
    """A layer's file: its header changed, or its numbers; with a digest that fits, or without."""
    name = "layer-000.safetensors"
    content = bench.whole[name]
    if data.draw(st.booleans()):
        header, body = split(content)
        text = mutate(data, header, ("__metadata__",))
        wrong = data.draw(st.sampled_from([0] * 9 + [1, -1, 2**40, 2**62]))
        content = struct.pack("<Q", max(0, len(text) + wrong)) + text + body
    else:
        content = flip(data, content)
    if data.draw(st.integers(0, 4)):
        bench.seal(name, content)
    else:
        (bench.trace / name).write_bytes(content)
    bench.read()


def fuzz_certificate(bench: Bench, data: st.DataObject) -> None:
    """A certificate: facts, header or numbers changed, under a checksum that fits, or without."""
    path = bench.folder / "mutant"
    path.write_bytes(bench.certificate)
    metadata, tensors = tensors_of(path)
    header, body = split(bench.certificate)
    kind = data.draw(st.integers(0, 3))
    if kind == 0:
        text = mutate(data, header)
        content = struct.pack("<Q", len(text)) + text + body
    elif kind == 1:
        content = flip(data, bench.certificate)
    else:
        changed = {name: tensor.copy() for name, tensor in tensors.items()}
        facts = metadata["facts"]
        if kind == 2:
            facts = mutate(data, json.loads(facts)).decode("utf-8", "replace")
        for _ in range(data.draw(st.integers(0, 2))):
            tensor = changed[data.draw(st.sampled_from(sorted(changed)))].reshape(-1)
            at = data.draw(st.integers(0, len(tensor) - 1))
            tensor[at] += data.draw(st.sampled_from([-1, 1, 2, -5, 2**20, -(2**20)]))
        header["__metadata__"] |= {"facts": facts, "sha256": digest(facts, changed)}
        order = sorted(tensors, key=lambda name: header[name]["data_offsets"])
        text = json.dumps(header).encode()
        body = b"".join(changed[name].tobytes() for name in order)
        content = struct.pack("<Q", len(text)) + text + body
    path.write_bytes(content)
    certify(path, h2osim.open_trace(bench.base))
    try:
        check_claims(path, bench.rows, bench.best)
    except Exception as error:
        raise Invalid(repr(error)) from error


def fuzz_store(bench: Bench, data: st.DataObject) -> None:
    """A store: any file of it changed; metadata also under a digest that fits."""
    store = bench.folder / "mutant.zarr"
    shutil.rmtree(store, ignore_errors=True)
    shutil.copytree(bench.folder / "store", store)
    names = sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())
    name = data.draw(st.sampled_from([n for n in names if "lock" not in n and "jsonl" not in n]))
    content = (store / name).read_bytes()
    sealed = False
    if name.endswith(".json") and data.draw(st.booleans()):
        changed = mutate(data, json.loads(content))
        sealed = data.draw(st.booleans())
    else:
        changed = flip(data, content)
    (store / name).write_bytes(changed)
    if sealed and not name.startswith(".h2osim"):
        layout = store / ".h2osim/layout.json"
        digests = json.loads(layout.read_text())
        layout.write_text(json.dumps(digests | {name: hashlib.sha256(changed).hexdigest()}))
    found = h2osim.open_sweep(store)
    if sealed or changed == content:  # whoever seals a store anew says what is in it
        return
    for variable in ("recall", "kept", "mass"):
        if not np.array_equal(found[variable], bench.expected[variable]):
            raise Silent(f"{name}: {variable}")


def fuzz_budgets(bench: Bench, data: st.DataObject) -> None:
    """A file of budgets by unit: what is let in is whole, and its parts agree."""
    valid: dict[str, Any] = {
        "h2osim_budgets": 2,
        "model": "",
        "share": "group",
        "layers": [0, 1],
        "made": "",
    }
    drawn: Any = data.draw(st.sampled_from([[[4, 9], [7, 20]], [[0.1, 0.5], [0.25, 1.0]]]))
    valid["splits"] = [
        {"budgets": drawn[:rows], "total": sum(map(sum, drawn[:rows]))}
        for rows in [len(drawn)] * data.draw(st.integers(1, 2))
    ]
    path = bench.folder / "budgets.json"
    path.write_bytes(mutate(data, valid))
    found = {one.mean: one.budgets.tolist() for one in read_budgets(path)}
    said = json.loads(path.read_bytes())["splits"]
    kinds = set()
    for split in said:
        numbers = [number for row in split["budgets"] for number in row]
        kinds |= {type(number) for number in numbers}
        good = min(numbers) >= 1 if kinds == {int} else min(numbers) > 0 and max(numbers) <= 1
        if not good or len(kinds) != 1 or abs(sum(numbers) - split["total"]) > 1e-9 * sum(numbers):
            raise Invalid(str(said))
        if split["budgets"] not in found.values():
            raise Silent(str(said))
    if len(found) != len(said):
        raise Silent(str(said))


def fuzz_prompts(bench: Bench, data: st.DataObject) -> None:
    """A file of prompts: each line that is let in is found as it stands there."""
    lines = [{"prompt": "a b", "answer": " c"}, {"prompt": "d", "answer": "e", "name": "f"},
             {"prompt": "g", "answer": "h", "question": "i\u2028j"}]  # fmt: skip
    texts = [mutate(data, line, ("question", "name")) for line in lines]
    if data.draw(st.booleans()):
        texts = [json.dumps(line, ensure_ascii=False).encode() for line in lines]
    content = data.draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", b" "])).join(texts)
    path = bench.folder / "prompts.jsonl"
    path.write_bytes(flip(data, content) if data.draw(st.booleans()) else content)
    found = list(read_questions(path).values())
    raw = path.read_bytes().decode().removeprefix("\ufeff")
    said = [json.loads(line) for line in raw.split("\n") if line.strip()]
    for one, line in zip(found, said, strict=True):
        parts = (line["prompt"], line["answer"], line.get("question", ""))
        if not all(isinstance(part, str) for part in parts) or "" in parts[:2]:
            raise Invalid(str(line))
        if parts != (one.context, one.answer, one.question):
            raise Silent(str(line))


def fuzz_arrays(bench: Bench, data: st.DataObject) -> None:
    """A pass of a study: damage is noticed, whichever byte it is in."""
    path = bench.folder / "pass.npz"
    values = {"kl": np.arange(9.0), "top1": np.ones((2, 3), bool)}
    write_arrays(path, values)
    path.write_bytes(flip(data, path.read_bytes()))
    found = read_arrays(path)
    if found is None:
        raise UserError("computed again")
    if any(not np.array_equal(found.get(name, 0), value) for name, value in values.items()):
        raise Silent(f"{sorted(found)}")


def fuzz_table(bench: Bench, data: st.DataObject) -> None:
    """The saved table of a study."""
    path = bench.folder / "table.csv"
    path.write_bytes(flip(data, TABLE) if data.draw(st.booleans()) else flip(data, TABLE) * 2)
    read_table(path, frozenset({"policy", "kl"}))


def fuzz_replay(bench: Bench, data: st.DataObject) -> None:
    """The same replay in two engines."""
    trace = data.draw(traces(max_n=12, max_heads=2, max_layers=1))
    policies = ["h2o", "tova", "streaming:sinks=1", "h2o:recent=1,scores=full", "recency"]
    policy = data.draw(st.sampled_from(policies))
    budget = data.draw(st.integers(1, trace.n))
    naive, numba = (
        h2osim.replay(trace, policy, budget, engine=engine) for engine in ("naive", "numba")
    )
    for variable in ("kept", "mass", "evicted_at"):
        if not np.array_equal(naive[variable], numba[variable]):
            raise Silent(f"{policy}, {budget}: {variable}")


def fuzz_disk(bench: Bench, data: st.DataObject) -> None:
    """A trace is saved over another one while the disk is full: whole, new or old, and alone."""
    place = bench.folder / "disk"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(bench.base, place / "t")
    left = data.draw(st.integers(0, 12))

    def full(call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*given: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return call(*given, **named)

        return instead

    names = ("pwrite", "fsync", "posix_fallocate", "mkdir")
    failing: dict[str, Any] = {name: full(getattr(os, name)) for name in names}
    with mock.patch.multiple(os, **failing):
        try:
            Trace.from_scores(np.ones((1, 1))).save(place / "t", overwrite=True)
        finally:
            check_trace(place / "t")
            if [path.name for path in place.iterdir()] != ["t"]:
                raise Silent(f"left behind: {list(place.iterdir())}")


def fuzz_kill(bench: Bench, data: st.DataObject) -> None:
    """A process that saves a trace is killed at some moment."""
    place = bench.folder / "kill"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    source = h2osim.open_trace(bench.base)
    child = os.fork()
    if child == 0:
        try:
            source.save(place / "t")
        finally:
            os._exit(0)
    time.sleep(data.draw(st.integers(0, 60)) / 10_000)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    if (place / "t").exists():
        check_trace(place / "t")


def fuzz_process(bench: Bench, data: st.DataObject) -> None:
    """A mutant through the command, in a process of its own."""
    (bench.trace / "trace.json").write_bytes(mutate(data, bench.manifest))
    ended = subprocess.run(
        [sys.executable, "-m", "h2osim", "info", str(bench.trace)], capture_output=True, timeout=60
    )
    if ended.returncode == 2 and ended.stderr.count(b"\n") == 1 and not ended.stdout:
        raise UserError("refused")
    if ended.returncode:
        raise AssertionError(ended.stderr.decode())
    check_trace(bench.trace)


#: Each with how many cases of a round are its.
FUZZERS: dict[Fuzzer, int] = {
    fuzz_manifest: 500, fuzz_layer: 500, fuzz_certificate: 400, fuzz_store: 40, fuzz_replay: 20,
    fuzz_disk: 20, fuzz_kill: 10, fuzz_process: 1, fuzz_budgets: 100, fuzz_prompts: 100,
    fuzz_arrays: 50, fuzz_table: 20,
}  # fmt: skip


def cases(fuzzer: Fuzzer, bench: Bench, count: int, start: int, tally: Counter[str]) -> None:
    """Draw and try so many cases of a fuzzer; what fails is counted and printed."""

    def one(data: st.DataObject) -> None:
        tally["tried"] += 1
        try:
            fuzzer(bench, data)
        except Exception as error:
            kinds = {Invalid: "accepted invalid", Silent: "silent"}
            outcome = kinds.get(type(error), "tracebacks")
            if isinstance(error, UserError) and "\n" not in str(error):
                outcome = "refused"
            else:
                print(f"{fuzzer.__name__}: {outcome}\n{traceback.format_exc()}", file=sys.stderr)
            tally[outcome] += 1
        finally:
            bench.reset()

    quiet = settings(
        max_examples=count, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    seed(start)(quiet(given(st.data())(one)))()


def worker(seconds: float, start: int) -> dict[str, Counter[str]]:
    """Rounds of all fuzzers until the time is over."""
    tallies: dict[str, Counter[str]] = {fuzzer.__name__: Counter() for fuzzer in FUZZERS}
    shared = Path("/dev/shm")
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        bench = Bench(Path(folder))
        while time.monotonic() < end:
            for fuzzer, count in FUZZERS.items():
                start += 1
                cases(fuzzer, bench, count, start, tallies[fuzzer.__name__])
    return tallies


def main() -> int:
    """The command: prints what was tried, by fuzzer and in all; 1 where something failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    print(f"seed {asked.seed}, {asked.jobs} processes, {asked.minutes:g} minutes")
    total: dict[str, Counter[str]] = {fuzzer.__name__: Counter() for fuzzer in FUZZERS}
    with ProcessPoolExecutor(asked.jobs) as pool:
        starts = [asked.seed + 10**7 * job for job in range(asked.jobs)]
        for tallies in pool.map(worker, [asked.minutes * 60] * asked.jobs, starts):
            for name, tally in tallies.items():
                total[name] += tally
    total["all"] = sum(total.values(), Counter())
    print(f"{'':18}", *(f"{name:>17}" for name in COUNTS))
    for name, tally in total.items():
        print(f"{name:18}", *(f"{tally[count]:17,}" for count in COUNTS))
    return int(any(total["all"][count] for count in COUNTS[2:]))


if __name__ == "__main__":
    sys.exit(main())
