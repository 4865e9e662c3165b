"""The proved statements as functions that look for a violation, one for each proof file.

Those that speak about a run come from `h2osim.guarantees.checks`, where `h2osim verify` uses them.
The others are about made instances, or about all policies, and stand here.
"""

from collections.abc import Callable

from h2osim.guarantees import Result, checks
from statements import logits, online, optimum, paper, recall, shared

CHECKS: dict[str, Callable[..., Result]] = {
    "paper-theorem": checks.paper_theorem,
    "C1": paper.literal_freeze,
    "C2": paper.trap,
    "C3": shared.swap_ratio,
    "C4": online.needle,
    "T1": checks.exactness,
    "T2": checks.post_eviction_mass,
    "T3": checks.cached_scores,
    "T4": checks.drift_certificate,
    "T5": checks.output_error,
    "T6": optimum.offline_optimum,
    "T6b": checks.concave_in_budget,
    "T6c": checks.dual_certificate,
    "T7": checks.inclusion,
    "T8": online.no_free_lunch,
    "T9": shared.shared_caches,
    "M1": shared.threshold_swap,
    "M2": online.random_rank,
    "M3": recall.what_recall_is,
    "M4": optimum.no_belady_rule,
    "M5": optimum.prediction_error,
    "M6": shared.prompt_deletion,
    "M7": checks.freezing,
    "M8": shared.concave_utilities,
    "T10": logits.logit_movement,
}
"""The function that looks for a violation of each statement, by the statement's name."""
