"""The statements by name: what each says, and where its proof is.

A guarantee without its proof file, or a proof file without its guarantee, fails the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from h2osim.support.bundled import proofs


class Guarantee(NamedTuple):
    """A proved statement.

    name: as in proofs/README.md. says: one line. proof: file name in proofs/.
    """

    name: str
    says: str
    proof: str

    @property
    def proof_file(self) -> Path:
        """Where the proof lies: in the checkout, or beside the installed package."""
        return proofs() / self.proof


_ALL = (
    (
        "paper-theorem", "Theorem 4.4 / D.32 of the paper, as its induction proves it",
        "01-paper-theorem.md",
    ),
    (
        "C1", "the algorithm as printed keeps the first k tokens for ever",
        "02-printed-algorithm-freezes.md",
    ),
    ("C2", "accumulated attention can be trapped", "03-trap.md"),
    (
        "C3", "one-swap greedy ends at k/(2k-1) on a fixed coverage function",
        "04-swap-greedy-below-1-minus-1-over-e.md",
    ),
    ("C4", "no online policy can find a needle", "05-needle.md"),
    (
        "T1", "the cache is the top k at every step iff no token returns to the top k",
        "06-exact-iff-no-token-returns.md",
    ),
    (
        "T2", "lost is at most what missed tokens received after their eviction",
        "07-post-eviction-mass.md",
    ),
    ("T3", "with cached scores, at most the missed mass more", "08-cached-scores.md"),
    (
        "T4", "the ratio falls at most by the drift of value against optimum",
        "09-drift-certificate.md",
    ),
    (
        "T5", "the attention output moves by at most (1 - recall) times a distance",
        "10-output-error.md",
    ),
    (
        "T6", "the offline optimum is an assignment problem",
        "11-offline-optimum-is-an-assignment.md",
    ),
    ("T6b", "the optimum is concave in the budget", "12-optimum-concave-in-budget.md"),
    ("T6c", "prices of slots bound the optimum from above", "13-dual-certificate.md"),
    ("T7", "smaller caches lie inside larger ones", "14-inclusion.md"),
    ("T8", "no online policy has a competitive ratio", "15-no-free-lunch.md"),
    ("T9", "several heads on one cache are truly submodular", "16-shared-caches-are-submodular.md"),
    ("M1", "a swap rule with a threshold keeps a quarter", "17-threshold-swap-keeps-a-quarter.md"),
    ("M2", "a random rank has the best worst-case ratio, k/(n-1)", "18-random-rank-is-minimax.md"),
    ("M3", "recall is a distance, and the worst output error", "19-what-recall-is.md"),
    ("M4", "evicting the least future mass has no constant ratio", "20-no-belady-rule.md"),
    (
        "M5", "a schedule for a predicted matrix loses at most the prediction's error",
        "21-prediction-error.md",
    ),
    ("M6", "deleting one at a time from a prompt keeps k/p", "22-deletion-from-a-prompt.md"),
    ("M7", "residents with more than R + 1 rows of mass never leave", "23-freezing.md"),
    (
        "M8", "with concave utilities the offline optimum is NP-hard",
        "24-concave-utilities-are-np-hard.md",
    ),
    (
        "T10", "how an output error in one layer moves the logits, and the predictions",
        "25-an-output-error-in-the-logits.md",
    ),
)  # fmt: skip

GUARANTEES: dict[str, Guarantee] = {one[0]: Guarantee(*one) for one in _ALL}
"""Every statement by its name, in the order of the proof files."""
