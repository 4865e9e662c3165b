"""KVzip's scores: the largest attention while the context is repeated."""

from __future__ import annotations

from pathlib import Path

from cases import CASES
from peers.shown import BUDGETS, Sets, identity_keys, one_set, parts_of

SOURCE = "https://github.com/snu-mllab/KVzip, attention/score.py"


def sets(root: Path | None) -> Sets:
    """The prompt is the context, all that follows it the second pass; each head has its budget."""
    assert root is not None
    made = parts_of(root / "attention/score.py", ["KVScore"])["KVScore"]
    for name in ("rows-mha", "rows-gqa", "rows-mqa"):
        case = CASES[name]
        queries, keys = identity_keys(case, case.n)
        for k in (b for b in BUDGETS if b < case.p):
            scores = made()
            scores.n_layers, scores.n_heads_kv = 1, case.groups
            scores.sink, scores.start_idx, scores.end_idx = 0, 0, case.p
            scores.init_score()
            scores._get_score(queries[:, :, case.p :].contiguous(), keys, 0)
            valid, _ = scores._threshold_uniform(scores.score, (k + 0.5) / case.p)
            left = [one.nonzero()[:, 0].tolist() for one in valid[0, 0]]
            yield one_set(case, "KVScore", "kvzip", k, left, n=case.n)
