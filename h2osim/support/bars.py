"""Bars that show the progress of long calls: by themselves in a notebook, elsewhere on request."""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from h2osim.support.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console

P = ParamSpec("P")
R = TypeVar("R")

_wanted: bool | None = None
_one_at_a_time = threading.Lock()


def progress_bars(show: bool | None) -> None:
    """Say whether long calls show a bar: True always, False never, None in notebooks only.

    None is what holds until this is called. A call that is given a ``progress`` of its own shows no
    bar.
    """
    global _wanted
    _wanted = show


def with_bar(call: Callable[P, R]) -> Callable[P, R]:
    """A function that takes ``progress``, by name, and shows a bar where it is given none.

    One bar is shown at a time: that of the outermost call.
    """

    @functools.wraps(call)
    def shown(*args: P.args, **kwargs: P.kwargs) -> R:
        wanted = in_notebook() if _wanted is None else _wanted
        if kwargs.get("progress") is not None or not wanted:
            return call(*args, **kwargs)
        if not _one_at_a_time.acquire(blocking=False):
            return call(*args, **kwargs)
        try:
            with bar(_console()) as update:
                kwargs["progress"] = update
                return call(*args, **kwargs)
        finally:
            _one_at_a_time.release()

    return shown


def in_notebook() -> bool:
    """Whether this process runs the cells of a notebook."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _console() -> Console:
    """Where a bar is drawn: in a notebook as a widget if it has widgets, else as text."""
    from rich.console import Console

    if in_notebook() and find_spec("ipywidgets") is not None:
        return Console()
    return Console(stderr=True, force_jupyter=False, force_terminal=True if in_notebook() else None)


@contextmanager
def bar(console: Console, rate: str = "") -> Iterator[Progress]:
    """Show a bar with an estimate on a console while the body runs.

    rate: the unit of the work, to show how many of it are done a second (a minute where these are
    fewer than one), from where this began.
    """
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True) as shown:
        task: Any = shown.add_task("", total=None, rate="")
        begun: tuple[float, float] | None = None

        def update(done: float, total: float, what: str) -> None:
            # No total yet: the bar shows only that work is going on.
            nonlocal begun
            shown.update(task, completed=done, total=total or None, description=what)
            if rate and total:
                begun = begun or (time.monotonic(), done)
                seconds = time.monotonic() - begun[0]
                if seconds and done > begun[1]:
                    shown.update(task, rate=_rate((done - begun[1]) / seconds, rate))

        yield update


def _rate(each_second: float, unit: str) -> str:
    """So much work a second, or a minute where that is less than one a second, in words."""
    number, time_ = (each_second, "s") if each_second >= 1 else (60 * each_second, "min")
    return f"{number:,.0f} {unit}/{time_}" if number >= 100 else f"{number:.3g} {unit}/{time_}"
