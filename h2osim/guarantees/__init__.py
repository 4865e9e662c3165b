"""What is proved about eviction, as code: each statement with its proof file and its check.

`GUARANTEES` (registry) names them; `checks` holds one function a statement; `history` follows what
a run kept and what it missed, in integers; `setfunctions` and `choosing` are objectives of heads
that share a cache, and ways to choose k tokens for them; `verify` applies everything to a trace.
"""

from h2osim.guarantees.registry import GUARANTEES, Guarantee
from h2osim.guarantees.results import Result, Verdict

__all__ = ["GUARANTEES", "Guarantee", "Result", "Verdict"]
