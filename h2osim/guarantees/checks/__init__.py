"""One check a statement that speaks about a run: does it hold, and with what numbers?

Every check returns a `Result`. A verdict "violated" means a wrong theorem or a wrong program:
nothing else can cause it. By subject: `paper` (the paper's theorem), `setting_p` (accumulated
attention), `outputs` (attention outputs), `optimum` (the offline optimum) and `inclusion` (nested
caches). Statements about made instances, or about all policies, are checked by the tests.
"""

from h2osim.guarantees.checks.inclusion import inclusion
from h2osim.guarantees.checks.optimum import concave_in_budget, dual_certificate
from h2osim.guarantees.checks.outputs import output_error
from h2osim.guarantees.checks.paper import paper_theorem
from h2osim.guarantees.checks.setting_p import (
    OVER_BUDGET,
    cached_scores,
    drift_certificate,
    exactness,
    freezing,
    post_eviction_mass,
)

__all__ = [
    "OVER_BUDGET",
    "cached_scores",
    "concave_in_budget",
    "drift_certificate",
    "dual_certificate",
    "exactness",
    "freezing",
    "inclusion",
    "output_error",
    "paper_theorem",
    "post_eviction_mass",
]
