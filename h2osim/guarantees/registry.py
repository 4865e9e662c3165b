"""The statements by name: what each says, where its proof is, which function checks it.

A guarantee without its proof file, or a proof file without its guarantee, fails the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from h2osim.guarantees import checks
from h2osim.guarantees.results import Result
from h2osim.support.bundled import proofs


@dataclass(frozen=True)
class Guarantee:
    """A proved statement.

    name: as in proofs/README.md. says: one line. proof: file name in proofs/. check: the function
    that looks for a violation. tests: the tests of tests/test_guarantees.py that try to break it.
    """

    name: str
    says: str
    proof: str
    check: Callable[..., Result]
    tests: tuple[str, ...]

    @property
    def proof_file(self) -> Path:
        """Where the proof lies: in the checkout, or beside the installed package."""
        return proofs() / self.proof


_ALL = (
    Guarantee(
        "paper-theorem",
        "Theorem 4.4 / D.32 of the paper, as its induction proves it",
        "01-paper-theorem.md",
        checks.paper_theorem,
        (
            "test_paper_theorem_holds",
            "test_paper_theorem_can_fail",
            "test_printed_udc2_is_refuted_by_the_trap",
            "test_first_k_meets_the_same_lemma",
            "test_concave_h_never_changes_a_decision",
        ),
    ),
    Guarantee(
        "C1",
        "the algorithm as printed keeps the first k tokens for ever",
        "02-printed-algorithm-freezes.md",
        checks.literal_freeze,
        ("test_c1_holds", "test_c1_can_fail"),
    ),
    Guarantee(
        "C2",
        "accumulated attention can be trapped",
        "03-trap.md",
        checks.trap,
        ("test_c2_numbers", "test_c2_can_fail"),
    ),
    Guarantee(
        "C3",
        "one-swap greedy ends at k/(2k-1) on a fixed coverage function",
        "04-swap-greedy-below-1-minus-1-over-e.md",
        checks.swap_ratio,
        ("test_c3_numbers", "test_c3_can_fail"),
    ),
    Guarantee(
        "C4",
        "no online policy can find a needle",
        "05-needle.md",
        checks.needle,
        ("test_c4_numbers", "test_c4_can_fail"),
    ),
    Guarantee(
        "T1",
        "the cache is the top k at every step iff no token returns to the top k",
        "06-exact-iff-no-token-returns.md",
        checks.exactness,
        ("test_t1_holds", "test_t1_can_fail"),
    ),
    Guarantee(
        "T2",
        "lost is at most what missed tokens received after their eviction",
        "07-post-eviction-mass.md",
        checks.post_eviction_mass,
        ("test_t2_holds", "test_t2_of_any_set", "test_t2_can_fail", "test_t2_is_tight"),
    ),
    Guarantee(
        "T3",
        "with cached scores, at most the missed mass more",
        "08-cached-scores.md",
        checks.cached_scores,
        ("test_t3_holds", "test_t3_of_any_set", "test_t3_can_fail", "test_t3_is_tight"),
    ),
    Guarantee(
        "T4",
        "the ratio falls at most by the drift of value against optimum",
        "09-drift-certificate.md",
        checks.drift_certificate,
        ("test_t4_holds", "test_t4_can_fail"),
    ),
    Guarantee(
        "T5",
        "the attention output moves by at most (1 - recall) times a distance",
        "10-output-error.md",
        checks.output_error,
        ("test_t5_holds", "test_t5_can_fail"),
    ),
    Guarantee(
        "T6",
        "the offline optimum is an assignment problem",
        "11-offline-optimum-is-an-assignment.md",
        checks.offline_optimum,
        ("test_t6_holds", "test_t6_formulations_of_any_size", "test_t6_can_fail"),
    ),
    Guarantee(
        "T6b",
        "the optimum is concave in the budget",
        "12-optimum-concave-in-budget.md",
        checks.concave_in_budget,
        ("test_t6b_holds", "test_t6b_allocation", "test_t6b_can_fail"),
    ),
    Guarantee(
        "T6c",
        "prices of slots bound the optimum from above",
        "13-dual-certificate.md",
        checks.dual_certificate,
        ("test_t6c_holds", "test_t6c_can_fail"),
    ),
    Guarantee(
        "T7",
        "smaller caches lie inside larger ones",
        "14-inclusion.md",
        checks.inclusion,
        ("test_t7_holds", "test_t7_now_and_then", "test_t7_can_fail", "test_t7_counterexamples"),
    ),
    Guarantee(
        "T8",
        "no online policy has a competitive ratio",
        "15-no-free-lunch.md",
        checks.no_free_lunch,
        ("test_t8_holds", "test_t8_can_fail"),
    ),
    Guarantee(
        "T9",
        "several heads on one cache are truly submodular",
        "16-shared-caches-are-submodular.md",
        checks.shared_caches,
        (
            "test_t9_holds",
            "test_t9_can_fail",
            "test_t9_drift_instance",
            "test_t9_greedy_differs_from_optimum",
        ),
    ),
    Guarantee(
        "M1",
        "a swap rule with a threshold keeps a quarter",
        "17-threshold-swap-keeps-a-quarter.md",
        checks.threshold_swap,
        (
            "test_m1_holds",
            "test_m1_can_fail",
            "test_m1_nearly_tight",
            "test_m1_where_the_plain_swap_fails",
        ),
    ),
    Guarantee(
        "M2",
        "a random rank has the best worst-case ratio, k/(n-1)",
        "18-random-rank-is-minimax.md",
        checks.random_rank,
        ("test_m2_holds", "test_m2_expectation_over_all_orders", "test_m2_can_fail"),
    ),
    Guarantee(
        "M3",
        "recall is a distance, and the worst output error",
        "19-what-recall-is.md",
        checks.what_recall_is,
        ("test_m3_holds", "test_m3_can_fail", "test_m3_zero_error_is_partition"),
    ),
    Guarantee(
        "M4",
        "evicting the least future mass has no constant ratio",
        "20-no-belady-rule.md",
        checks.no_belady_rule,
        ("test_m4_numbers", "test_m4_can_fail"),
    ),
    Guarantee(
        "M5",
        "a schedule for a predicted matrix loses at most the prediction's error",
        "21-prediction-error.md",
        checks.prediction_error,
        ("test_m5_holds", "test_m5_can_fail", "test_m5_is_tight"),
    ),
    Guarantee(
        "M6",
        "deleting one at a time from a prompt keeps k/p",
        "22-deletion-from-a-prompt.md",
        checks.prompt_deletion,
        ("test_m6_holds", "test_m6_can_fail", "test_m6_instance"),
    ),
    Guarantee(
        "M7",
        "residents with more than R + 1 rows of mass never leave",
        "23-freezing.md",
        checks.freezing,
        ("test_m7_holds", "test_m7_can_fail", "test_m7_is_tight"),
    ),
    Guarantee(
        "M8",
        "with concave utilities the offline optimum is NP-hard",
        "24-concave-utilities-are-np-hard.md",
        checks.concave_utilities,
        ("test_m8_holds", "test_m8_can_fail", "test_m8_graphs"),
    ),
    Guarantee(
        "T10",
        "how an output error in one layer moves the logits, and the predictions",
        "25-an-output-error-in-the-logits.md",
        checks.logit_movement,
        (
            "test_t10_holds",
            "test_t10_relative_entropy",
            "test_t10_remainder_is_quadratic",
            "test_t10_is_tight",
            "test_t10_can_fail",
        ),
    ),
)

GUARANTEES: dict[str, Guarantee] = {g.name: g for g in _ALL}
"""Every statement by its name, in the order of the proof files."""
