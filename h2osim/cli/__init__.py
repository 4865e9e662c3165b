"""The ``h2osim`` command.

Every way a command can end passes through :func:`run`: a mistake of the user's is one line on
standard error and exit code 2, Ctrl-C is 130, success is 0. Anything else is a bug and keeps its
traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

USER_ERROR = 2
INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line of this process and exit."""
    sys.exit(run(sys.argv[1:]))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code; ``args`` are the words after ``h2osim``."""
    from h2osim.support.errors import UserError

    try:
        from h2osim.cli.app import app

        words = list(args)
        # The context's obj: commands that make a trace write their command line into it.
        code = app(args=words, prog_name="h2osim", standalone_mode=False, obj=words)
        # A closed pipe shows at the flush, not at the print: provoke it while it can be handled.
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _say("interrupted", INTERRUPTED)
    except UserError as error:
        return _say(str(error), USER_ERROR)
    except BrokenPipeError:
        # The reader (head, less) has seen enough. What is left in the buffer goes nowhere, and
        # the interpreter's own flush at exit must not complain about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"{where}{error.strerror or error}", USER_ERROR)
    except Exception as error:
        # Usage errors. Recent releases of typer bring their own copy of click, so the class has no
        # fixed home; this method is what makes one.
        if not hasattr(error, "format_message"):
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "h2osim")
        message = error.format_message().rstrip(".")
        return _say(f"{message} (see `{command} --help`)", USER_ERROR)
    if code == INTERRUPTED:  # typer turns Ctrl-C into an exit code, without a word
        return _say("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def _say(message: str, code: int) -> int:
    print("h2osim: error:", " ".join(message.split()), file=sys.stderr)
    return code
