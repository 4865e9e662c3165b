"""The callback by which long work reports its progress."""

from __future__ import annotations

from collections.abc import Callable

#: Called with the work done so far, the whole work (in the same unit) and a short description.
#: It may raise an exception, which stops the work.
Progress = Callable[[float, float, str], None]
