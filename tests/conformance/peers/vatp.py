"""VATP: H2O's masked attention, whose scores may be weighted by the size of the values."""

from __future__ import annotations

from pathlib import Path

from cases import CASES
from peers.shown import Sets, attention_layer, masked_layer, masked_steps, one_set

SOURCE = "https://github.com/guozhiyu/vatp, utils_hh/modify_llama.py"

LATER = "after the prompt rows count in full, while those of the prompt count 1/400"


def sets(root: Path | None) -> Sets:
    """H2O with and without values, and Scissorhands without: it sums the prompt's last rows."""
    assert root is not None
    names = ("LlamaLinearScalingRotaryEmbedding", "LlamaDynamicNTKScalingRotaryEmbedding")
    made = masked_layer(root / "utils_hh/modify_llama.py", **dict.fromkeys(names, object))
    rules = (
        ("vectors-mha", True, True, "vatp:recent={recent},sinks={sinks}"),
        ("rows-mha", True, False, "h2o:recent={recent}"),
        ("rows-mha", False, False, "scissorhands:count=mass,drop=one,recent=10"),
    )
    for name, all_rows, values, rule in rules:
        case = CASES[name]
        for heavy, recent, sinks in ((6, 4, 2), (15, 15, 4), (25, 10, 0)):
            module = attention_layer(
                made, case, cache_budget_records=[], input_length=[], applyval=values,
                h2o=all_rows, sink_len=sinks, heavy_budget_ratio=(heavy + 0.5) / case.p,
                recent_budget_ratio=(recent + 0.5) / case.p,
            )  # fmt: skip
            k = heavy + recent if all_rows else 2 * heavy
            for t, left in masked_steps(module, case.p, case.n - 2):
                if t - case.p in (-1, 0, 3, 9, 15):
                    yield one_set(
                        case, f"h2o={all_rows}, applyval={values}",
                        rule.format(recent=recent, sinks=sinks), k, left, after=t,
                        differs=None if all_rows or t < case.p else LATER,
                    )  # fmt: skip
