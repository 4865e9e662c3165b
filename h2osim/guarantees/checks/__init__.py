"""One check a statement: does it hold on this run, matrix or function, and with what numbers?

Every check returns a `Result`. A verdict "violated" means a wrong theorem or a wrong program:
nothing else can cause it. By subject: `paper` (the paper's theorem and its algorithm to the
letter), `setting_p` (accumulated attention), `outputs` (attention outputs), `logits` (a whole
decoder), `optimum` (the offline optimum), `inclusion` (nested caches), `online` (what no online
policy can promise) and `shared` (heads that share a cache).
"""

from h2osim.guarantees.checks.inclusion import inclusion
from h2osim.guarantees.checks.logits import logit_movement
from h2osim.guarantees.checks.online import needle, no_free_lunch, random_rank
from h2osim.guarantees.checks.optimum import (
    best_allocation,
    concave_in_budget,
    dual_certificate,
    no_belady_rule,
    offline_optimum,
    prediction_error,
)
from h2osim.guarantees.checks.outputs import output_error, what_recall_is
from h2osim.guarantees.checks.paper import literal_freeze, paper_theorem, trap
from h2osim.guarantees.checks.setting_p import (
    OVER_BUDGET,
    cached_scores,
    drift_certificate,
    exactness,
    freezing,
    post_eviction_mass,
)
from h2osim.guarantees.checks.shared import (
    concave_utilities,
    prompt_deletion,
    shared_caches,
    swap_ratio,
    threshold_swap,
)

__all__ = [
    "OVER_BUDGET",
    "best_allocation",
    "cached_scores",
    "concave_in_budget",
    "concave_utilities",
    "drift_certificate",
    "dual_certificate",
    "exactness",
    "freezing",
    "inclusion",
    "literal_freeze",
    "logit_movement",
    "needle",
    "no_belady_rule",
    "no_free_lunch",
    "offline_optimum",
    "output_error",
    "paper_theorem",
    "post_eviction_mass",
    "prediction_error",
    "prompt_deletion",
    "random_rank",
    "shared_caches",
    "swap_ratio",
    "threshold_swap",
    "trap",
    "what_recall_is",
]
