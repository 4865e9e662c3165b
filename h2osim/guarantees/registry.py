"""The statements by name: what each says, where its proof is, which function checks it.

A guarantee without its proof file, or a proof file without its guarantee, fails the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from h2osim.guarantees import checks
from h2osim.guarantees.checks import Result
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
        "the printed algorithms keep the first k tokens for ever",
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
        ("test_t2_holds", "test_t2_can_fail", "test_t2_is_tight"),
    ),
    Guarantee(
        "T3",
        "with cached scores, at most the missed mass more",
        "08-cached-scores.md",
        checks.cached_scores,
        ("test_t3_holds", "test_t3_can_fail", "test_t3_is_tight"),
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
        ("test_t6_holds", "test_t6_can_fail"),
    ),
    Guarantee(
        "T6b",
        "the optimum is concave in the budget",
        "12-optimum-concave-in-budget.md",
        checks.concave_in_budget,
        ("test_t6b_holds", "test_t6b_can_fail"),
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
        ("test_t7_holds", "test_t7_can_fail", "test_t7_counterexamples"),
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
)

GUARANTEES: dict[str, Guarantee] = {g.name: g for g in _ALL}
"""Every statement by its name, in the order of the proof files."""
