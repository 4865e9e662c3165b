"""Keyformer: accumulated attention of noisy logits, evened out more and more while decoding."""

import numpy as np

from h2osim.policies.arithmetic import drawn, guarded_score, log, softmax
from h2osim.policies.declaration import INF, Array, Policy, Positions
from h2osim.policies.inputs import noise
from h2osim.policies.parameters import shared
from h2osim.support.parameters import Param


def update_cache(
    positions: Positions,
    head_row: Array,
    score: Array,
    noise: Array,
    noise_now: float,
    t: int,
    p: int,
    heads: int,
    tau_init: float,
    tau_delta: float,
) -> None:
    # Logits are the logarithms of a row, up to a number that they share and softmax ignores; minus
    # the logarithm of an exponential draw is Gumbel noise.
    tau = tau_init + tau_delta * max(0, t - p + 1)
    m = len(positions)
    for h in range(heads):
        noisy = np.full(m, -INF)
        for i in range(m):
            a = head_row[h][positions[i]]
            if a > 0.0:
                noisy[i] = (log(a) - log(drawn(noise[positions[i]], noise_now, h))) / tau
        if m > 0 and noisy.max() > -INF:
            softmax(noisy)
            for i in range(m):
                score[positions[i]] += noisy[i]


def rank_cache(
    positions: Positions, ranks: Array, score: Array, t: int, sinks: int, recent: int
) -> None:
    for i in range(len(positions)):
        j = positions[i]
        ranks[i] = guarded_score(score[j], j, t - j, sinks, recent)


POLICY = Policy(
    name="keyformer",
    summary="evict the least accumulated softmax of (logit + Gumbel noise) / tau outside the "
    "newest `recent` tokens; tau grows from step to step",
    source="arXiv 2403.09054; d-matrix-ai/keyformer-llm",
    params=(
        shared("recent", 0.3),
        Param("tau_init", 1.0, "the temperature of the prompt's rows", "float", 0.01, 100),
        Param("tau_delta", 0.01, "what each decode step adds to it", "float", 0, 100),
        shared("sinks", 0),
        shared("seed", 0),
    ),
    state=("score",),
    inputs={"noise": noise},
    update_cache=update_cache,
    rank_cache=rank_cache,
    notes="A row is recorded in float16: what rounds to 0 there has no logit and scores nothing. "
    "Noise is a hash of seed, token, step and head where the source draws it. The source has a "
    "cache for each head (share=head); here a unit's heads are added. Its code for MPT evicts in "
    "every eighth step (`when=every:8`), that for GPT-J in every one.",
)
