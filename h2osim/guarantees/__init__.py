"""What is proved about eviction: the statements, and the checks of those that speak about a run.

`GUARANTEES` (registry) names them all and their proof files; `checks` holds a function for each
statement about a run; `history` follows what a run kept and what it missed, in integers; `verify`
applies all of it to a trace.
"""

from h2osim.guarantees.registry import GUARANTEES, Guarantee
from h2osim.guarantees.results import Result, Verdict

__all__ = ["GUARANTEES", "Guarantee", "Result", "Verdict"]
