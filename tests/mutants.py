"""Checks that the tests can fail: one small change to the code at a time, each of which must break.

    python tests/mutants.py [-j 2] [--only WORD …] [--list]

`mutants.toml` beside this file lists the changes by hand: the places where the mathematics lives,
and those where a change once went unnoticed. A tool that makes all possible changes (mutmut,
cosmic-ray) does not fit: most of the code that matters here is not run as Python. It is compiled by
numba and kept in a cache, is text that is put together before it is compiled, or is CUDA C++; and
thousands of changes at some seconds each would take days.

For each change the tracked files are copied, the change is made in the copy, and the tests it names
are run there with ``-x``. The checkout is never touched. Nothing compiled outlives a change that
could have gone into it: numba recognises a stale result only by the file that a function stands in,
not by the files it calls into, so a change to a file that reaches compiled code starts with empty
caches.

A change is KILLED when a test fails, or when the tests hang or crash. One that names why it is
`equivalent` changes nothing that could be observed; it is run as well, must survive, and is not
counted. Before a change is made, its tests must pass on the unchanged copy. Verdicts are kept in
the user's cache folder until any file changes, so that an interrupted run goes on where it was.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).with_name("mutants.toml")
COPIED = (
    *("h2osim", "gpu", "proofs", "traces", "tests", "docs"),
    *("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md"),
)
TIMEOUT = 300.0
"""Seconds after which the tests of a change count as hanging; none takes a tenth of that."""

KILLED, SURVIVED = "KILLED", "SURVIVED"


@dataclass(frozen=True)
class Mutant:
    """One change: in `file`, the `nth` occurrence of `old` (0: the only one) becomes `new`.

    tests: what is given to pytest, at least one of which must fail. equivalent: why nothing can
    tell the change, "" where something can.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    nth: int = 0
    equivalent: str = ""

    @property
    def name(self) -> str:
        """For people, and for ``--only``."""
        which = f" (occurrence {self.nth})" if self.nth else ""
        return f"{self.file}: {self.old!r} -> {self.new!r}{which}"

    def apply(self, text: str) -> str:
        """The changed text of the file; ValueError where the change no longer fits it."""
        count = text.count(self.old)
        if count == 0:
            raise ValueError(f"{self.name}: the old text is not in the file")
        if count > 1 and not self.nth:
            raise ValueError(f"{self.name}: the old text is there {count} times; say which (nth)")
        if self.nth > count or (self.nth and count == 1):
            raise ValueError(f"{self.name}: the old text is there {count} times")
        at = -1
        for _ in range(max(1, self.nth)):
            at = text.index(self.old, at + 1)
        return text[:at] + self.new + text[at + len(self.old) :]


def read_list(path: Path = LIST) -> list[Mutant]:
    """The listed changes; ValueError for an entry that is not one."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def tracked(root: Path = ROOT) -> list[Path]:
    """The files that are copied: those git knows or would add, in the folders named above."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *COPIED]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    return [Path(name) for name in sorted(listed.stdout.splitlines()) if (root / name).is_file()]


def reaches_compiled_code(root: Path, file: str) -> bool:
    """Whether numba's cache could hold what this file's text says without noticing a change.

    True for modules that use numba's compiler themselves, and for all that they import. The texts
    of the engines' loops are no modules: what is made of them is cached under its own hash.
    """
    return file in _compiled(root)


def _compiled(root: Path) -> set[str]:
    imports = {}
    found: set[str] = set()
    for path in sorted((root / "h2osim").rglob("*.py")):
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
        own = str(path.relative_to(root))
        files = {f"{name.replace('.', '/')}.py" for name in names}
        imports[own] = {file for file in files if (root / file).is_file()}
        if names & {"numba", "numba.njit", "h2osim.support.compiling.njit"}:
            found.add(own)
    while True:
        more = set().union(*(imports[file] for file in found)) - found
        if not more:
            return found
        found |= more


class Copy:
    """A copy of the tracked files, used by one change at a time.

    Copies share their caches: numba keeps what it compiled of a file under the file's path, which
    is another in each copy, and loops that are generated for policies under their text's hash.
    """

    def __init__(self, folder: Path, files: Iterable[Path], caches: Path):
        self.tree, self.caches = folder, caches
        for file in files:
            target = self.tree / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, target)

    @cached_property
    def compiled(self) -> set[str]:
        """The files whose text may be part of cached machine code."""
        return _compiled(self.tree)

    def run(self, mutant: Mutant, timeout: float) -> tuple[str, str]:
        """The verdict on a change, and what pytest said."""
        file = self.tree / mutant.file
        text, times = file.read_text(encoding="utf-8"), file.stat()
        caches = self.caches
        if mutant.file in self.compiled:
            caches = Path(tempfile.mkdtemp(dir=self.tree.parent))
        file.write_text(mutant.apply(text), encoding="utf-8")
        try:
            return self.verdict(mutant.tests, timeout, caches)
        finally:
            file.write_text(text, encoding="utf-8")
            # numba tells by its time and size whether a file is still the one it compiled
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            if caches != self.caches:
                shutil.rmtree(caches, ignore_errors=True)

    def verdict(
        self, tests: Sequence[str], timeout: float, caches: Path | None = None
    ) -> tuple[str, str]:
        """Run these tests in the copy as it stands."""
        caches = caches or self.caches
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(
                [str(self.tree), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NUMBA_CACHE_DIR": str(caches / "numba"),
            "XDG_CACHE_HOME": str(caches / "home"),
        }
        options = ["-x", "-q", "-n0", "-m", "", "--no-header", "-p", "no:cacheprovider"]
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=self.tree, env=environment, text=True, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return KILLED, f"the tests hang: stopped after {timeout:.0f} s"
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if process.returncode == 0:
            return SURVIVED, said
        if process.returncode == 1 or process.returncode < 0:  # a test failed, or all crashed
            return KILLED, said
        return f"ERROR (pytest ended with {process.returncode})", said


class Verdicts:
    """What is known already, one JSON line a verdict; good for as long as no file changes."""

    def __init__(self, files: Sequence[Path]):
        from platformdirs import user_cache_path

        state = hashlib.sha256()
        for file in files:
            if str(file) != str(LIST.relative_to(ROOT)):  # an entry's own text is in its key
                state.update(f"{file}\0".encode() + (ROOT / file).read_bytes())
        self._state = state.hexdigest()
        self._path = user_cache_path("h2osim") / "mutants.jsonl"
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                self._known[entry["key"]] = entry["verdict"]

    def get(self, what: object) -> str | None:
        """The verdict on a change, or None."""
        return self._known.get(self._key(what))

    def add(self, what: object, verdict: str) -> None:
        """Keep a verdict."""
        key = self._key(what)
        line = json.dumps({"key": key, "verdict": verdict})
        with self._lock:
            self._known[key] = verdict
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def forget(self) -> None:
        """Start anew."""
        self._known.clear()

    def _key(self, what: object) -> str:
        return hashlib.sha256(f"{self._state} {what!r}".encode()).hexdigest()


def _tail(said: str) -> str:
    return "\n".join(f"    {line}" for line in said.splitlines()[-15:])


def _killer(said: str) -> str:
    failed = [line for line in said.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return failed[0].removeprefix("FAILED ").split(" - ")[0] if failed else said.strip()[-80:]


def apart(mutants: Sequence[Mutant]) -> list[Mutant]:
    """The changes in an order in which neighbours name different tests: only the first of those
    that name the same runs them unchanged, and the others wait for it.
    """
    seen: Counter[tuple[str, ...]] = Counter()
    turns = []
    for one in mutants:
        turns.append(seen[one.tests])
        seen[one.tests] += 1
    return [one for _, one in sorted(zip(turns, mutants, strict=True), key=lambda pair: pair[0])]


def run_all(mutants: Sequence[Mutant], jobs: int, timeout: float, fresh: bool) -> int:
    """Run the changes, print a line for each and the count; the exit code."""
    files = tracked()
    verdicts = Verdicts(files)
    if fresh:
        verdicts.forget()
    found: dict[Mutant, str] = {}
    with tempfile.TemporaryDirectory(prefix="h2osim-mutants-") as folder:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        waiting = apart([one for one in mutants if verdicts.get(one) is None])
        for one in mutants:
            if (known := verdicts.get(one)) is not None:
                found[one] = known
                print(f"{known:8} (known) {one.name}", flush=True)
        for i in range(min(jobs, len(waiting))):
            copies.put(Copy(Path(folder) / str(i), files, Path(folder) / "caches"))
        first = {one.tests: threading.Lock() for one in waiting}

        def work(one: Mutant) -> tuple[str, str, float]:
            began, copy = time.monotonic(), copies.get()
            try:
                with first[one.tests]:
                    if verdicts.get(one.tests) is None:
                        verdict, said = copy.verdict(one.tests, timeout)
                        if verdict != SURVIVED:
                            return "ERROR (its tests fail unchanged)", said, 0.0
                        verdicts.add(one.tests, verdict)
                verdict, said = copy.run(one, timeout)
            finally:
                copies.put(copy)
            if verdict in (KILLED, SURVIVED):
                verdicts.add(one, verdict)
            return verdict, said, time.monotonic() - began

        with ThreadPoolExecutor(max(1, jobs)) as pool:
            futures = {pool.submit(work, one): one for one in waiting}
            for future in as_completed(futures):
                one = futures[future]
                found[one], said, seconds = future.result()
                by = f"\n    by {_killer(said)}" if found[one] == KILLED else ""
                print(f"{found[one]:8} {seconds:3.0f} s  {one.name}{by}", flush=True)
                if found[one].startswith("ERROR"):
                    print(_tail(said), flush=True)
    return report(found)


def report(found: dict[Mutant, str]) -> int:
    """What is left to say once all are done: survivors, equivalent ones, and the count."""
    wrong = 0
    counted = [one for one in found if not one.equivalent]
    for one, verdict in found.items():
        if verdict == SURVIVED and one.equivalent:
            print(f"equivalent: {one.name}\n    {' '.join(one.equivalent.split())}")
        elif verdict == KILLED and one.equivalent:
            print(f"NOT EQUIVALENT, a test tells it: {one.name}")
            wrong += 1
        elif verdict != KILLED:
            print(f"{verdict}: {one.name}\n    tests: {' '.join(one.tests)}")
            wrong += 1
    killed = sum(found[one] == KILLED for one in counted)
    print(f"{killed} of {len(counted)} killed")
    return 1 if wrong else 0


def main(words: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser.add_argument("-j", "--jobs", type=int, default=cores or 1, help="changes at a time")
    parser.add_argument("--only", action="append", default=[], help="part of a change's name")
    parser.add_argument("--list", action="store_true", help="print the changes and run nothing")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs found")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one change")
    asked = parser.parse_args(words)
    chosen = [one for one in read_list() if all(word in one.name for word in asked.only)]
    for one in chosen:
        one.apply((ROOT / one.file).read_text(encoding="utf-8"))
    if not chosen:
        parser.error("no change has such a name (--list shows them)")
    if asked.list:
        for one in chosen:
            print(f"{one.name}{' (equivalent)' if one.equivalent else ''}")
        print(f"{len(chosen)} changes")
        return 0
    return run_all(chosen, max(1, asked.jobs), asked.timeout, asked.fresh)


if __name__ == "__main__":
    sys.exit(main())
