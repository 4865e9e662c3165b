"""A pool of new processes that end with this one, however that comes to its end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, util
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any


@contextmanager
def processes(count: int, threads: int) -> Iterator[ProcessPoolExecutor]:
    """So many new processes of so many threads each; where the body raises they end at once."""
    context = get_context("spawn")
    theirs, mine = context.Pipe(duplex=False)
    pool = _Pool(count, context, _begin, (threads, theirs))
    try:
        yield pool
    except BaseException:
        mine.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        mine.close()
        theirs.close()


class _Pool(ProcessPoolExecutor):
    def submit(self, /, *given: Any, **named: Any) -> Future[Any]:
        """Processes are started here: they inherit that Ctrl-C, which reaches all, is held back."""
        if not hasattr(signal, "pthread_sigmask"):
            return super().submit(*given, **named)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*given, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(threads: int, theirs: Connection) -> None:
    """In a new process: its cores, which libraries read when they are imported, and its end."""
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = str(threads)
    Thread(target=_end, args=[theirs], daemon=True).start()


def _end(theirs: Connection) -> None:
    """End once the other end of a pipe is closed, as it is when the process that has it ends."""
    wait([theirs])
    release()
    os._exit(1)


def release() -> None:
    """Give semaphores back, before a process ends at once; else multiprocessing tells of them."""
    util._run_finalizers(0)  # type: ignore[attr-defined]
