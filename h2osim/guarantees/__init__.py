"""What is proved about eviction, as code: each statement with its proof file and its check.

`GUARANTEES` (registry) names them; `checks` holds one function a statement; `history` follows what
a run kept and what it missed, in integers; `setfunctions` and `greedy` are the dynamic submodular
framework of the H2O paper (arXiv 2306.14048); `verify` applies everything to a trace.
"""

from h2osim.guarantees.checks import Result, Verdict
from h2osim.guarantees.registry import GUARANTEES, Guarantee

__all__ = ["GUARANTEES", "Guarantee", "Result", "Verdict"]
