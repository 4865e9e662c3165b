"""Running command lines: in the tests' process (the fixtures `run` and `folder`), on a terminal."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


def fails(ended: Ended, *parts: str) -> None:
    """One clear line on standard error, exit code 2, nothing on standard output."""
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("h2osim: error: ")
    assert ended.err.count("\n") == 1
    for part in parts:
        assert part in ended.err


def on_terminal(words: Sequence[str]) -> tuple[int, bytes]:
    """The exit code of a command that runs on a terminal, and all that it shows there."""
    ours, theirs = os.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        words, stdout=theirs, stderr=theirs, env=environment | {"TERM": "xterm-256color"}
    )
    os.close(theirs)
    shown = b""
    with open(ours, "rb", buffering=0) as terminal:
        while True:
            try:
                part = terminal.read(4096)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            shown += part
    return process.wait(timeout=60), shown
