"""How long work tells its caller how far it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called now and then with the work done so far, the work in all (in any one unit) and a word.
#: It may raise to stop the work.
Progress = Callable[[float, float, str], None]
