"""The ``h2osim`` command.

Every way a command can end passes through :func:`run`: a mistake of the user's is one line on
standard error and exit code 2, Ctrl-C is 130, success is 0. Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import NoReturn

USER_ERROR = 2
INTERRUPTED = 130
#: Seconds that a command has, after Ctrl-C, to clean up by itself.
PATIENCE = 1.0


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    nothing = open(os.devnull, "w")  # noqa: SIM115  (for what was closed from the start)
    sys.stdout, sys.stderr = sys.stdout or nothing, sys.stderr or nothing
    for stream in (sys.stdout, sys.stderr):  # of any locale, and names that are no text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_end_soon, args=[reading], daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).signal(signal.SIGBUS, _CUT_SHORT)
    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, lambda *_: _end())  # an interpreter that shuts down tells more
    if code == INTERRUPTED:  # an orderly exit waits for threads, and for seconds on PyTorch
        _end()
    sys.exit(code)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _CUT_SHORT(_: int) -> None:
    """End where a file is cut short that is mapped into memory; Python's own handlers would let
    the process read there again and again.
    """
    os.write(2, b"h2osim: error: a file was cut short while it was read\n")
    os._exit(USER_ERROR)


def _end_soon(signals: int) -> None:
    """End the process soon after Ctrl-C, also from within a compiled loop.

    Python hears of a signal only between two of its own instructions, and threads that compute are
    waited for; this thread reads the signal at once.
    """
    while os.read(signals, 1)[0] != signal.SIGINT:
        pass
    time.sleep(PATIENCE)
    _end()


def _end() -> NoReturn:
    """End the process now, with its one line, and with nothing half written."""
    from h2osim.support.atomic import discard_all

    discard_all()
    if not _SAID.is_set():
        os.write(2, b"h2osim: error: interrupted\n")
    if "multiprocessing.util" in sys.modules:
        from h2osim.support.processes import release

        release()
    os._exit(INTERRUPTED)


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; ``args`` are the words after ``h2osim``."""
    from h2osim.support.errors import UserError

    try:
        from h2osim.cli.app import app

        words = list(args)
        # The context's obj: commands that make a trace write their command line into it.
        code = app(args=words, prog_name="h2osim", standalone_mode=False, obj=words)
        # A closed pipe raises at the flush, not at the print; flush while that can be handled.
        sys.stdout.flush()
    except SystemExit as end:
        # How rich ends where a pipe is closed, after it has turned the output away itself.
        return 0 if isinstance(end.__context__, BrokenPipeError) else _code(end.code)
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except UserError as error:
        return _say(str(error), USER_ERROR)
    except MemoryError as error:
        return _say(f"not enough memory: {error}".removesuffix(": "), USER_ERROR)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. The rest of the buffer is discarded, so that
        # the interpreter's own flush at exit raises nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", USER_ERROR)
    except Exception as error:
        # Usage errors. Recent releases of typer have their own copy of click, so the class cannot
        # be imported from one module; such an error is recognised by this method.
        if not hasattr(error, "format_message"):
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "h2osim")
        # Recent releases of typer also say which class their check of a choice raised.
        message = error.format_message().rstrip(".").replace(": Value error, ", ": ")
        return _say(f"{message} (see `{command} --help`)", USER_ERROR)
    if code == INTERRUPTED:  # typer turns Ctrl-C into an exit code and prints nothing
        return _say("interrupted", INTERRUPTED)
    return _code(code)


def _code(code: object) -> int:
    return code if isinstance(code, int) else 0


_SAID = threading.Event()


def _say(message: str, code: int) -> int:
    _SAID.set()
    print("h2osim: error:", " ".join(message.split()), file=sys.stderr, flush=True)
    return code
