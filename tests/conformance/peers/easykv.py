"""EasyKV: its generation loop, in which a made-up model attends as the case's rows say."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cases import CASES, Case
from peers.shown import Sets, cached, one_set, parts_of

SOURCE = "https://github.com/DRSY/EasyKV, easykv/easykv.py"

#: Its name of a policy, what it is here, and the budgets.
RULES = (
    ("h2o_head", lambda k: f"h2o:recent={int(0.3 * k)}", (8, 15, 45)),
    ("tova", lambda k: "tova", (8, 15, 45)),
    ("recency", lambda k: "recency", (8, 15, 45)),
    # Below a budget of 30 its 10 newest tokens are candidates too, all of the same deviation.
    ("roco", lambda k: "roco", (30, 40, 45)),
)


class Model:
    """A model of one layer: keys are the tokens' positions, and one word follows every text."""

    device = "cpu"

    def __init__(self, case: Case) -> None:
        self.case = case
        self.held: list[list[list[int]]] = []  # what each group holds after each step
        self.config = SimpleNamespace(
            num_hidden_layers=1, num_attention_heads=case.heads, num_key_value_heads=case.groups,
            architectures=["llama"],
        )  # fmt: skip
        self.tokenizer = SimpleNamespace(
            eos_token_id=-1, convert_ids_to_tokens=lambda _: ["word"], decode=lambda *_, **__: ""
        )

    def __call__(self, input_ids: torch.Tensor, past_key_values: Any = None, **_: Any) -> Any:
        """Attend with the next token; an empty prompt has no row."""
        steps = input_ids.shape[1]
        before = torch.zeros(1, self.case.groups, 0, 1) if not steps else past_key_values[0][0]
        attentions = None
        if steps:
            t = len(self.held)
            self.held.append([[*map(int, one)] for one in before[0, :, :, 0]])
            before = torch.cat([before, torch.full((1, self.case.groups, 1, 1), float(t))], dim=2)
            attentions = [cached(self.case, t, [[*map(int, one)] for one in before[0, :, :, 0]])]
        return SimpleNamespace(
            past_key_values=[(before, before)], logits=torch.zeros(1, 1, 1), attentions=attentions
        )


def generating(file: Path) -> Callable[..., Any]:
    """The source's ``generate``, and the functions of its file that it calls."""
    called = [
        "generate",
        "logits_adapter",
        "entropy",
        "truncate_kv_cache",
        "truncate_kv_cache_silo",
    ]
    left_out = ("modify_method_of_instance", "partial", "llama_forward", "mistral_forward")
    nothing = {name: lambda *_, **__: None for name in left_out}
    made: Callable[..., Any] = parts_of(file, called, **nothing)["generate"]
    return made


def sets(root: Path | None) -> Sets:
    """Its decoding mode, which never evicts a prompt, after an empty one."""
    assert root is not None
    generate = generating(root / "easykv/easykv.py")
    torch.set_default_dtype(torch.float64)
    for name in ("decode", "decode-long"):
        case = CASES[name]
        for mode, rule, budgets in RULES:
            for k in budgets:
                model = Model(case)
                wanted = {"kv_policy": mode, "budget": k, "max_new_tokens": case.n - 1}
                with contextlib.redirect_stdout(io.StringIO()):
                    generate(model, torch.zeros(1, 0, dtype=torch.long), wanted, "decoding")
                for after in (k - 1, k, k + 1, k + 10, case.n - 3):
                    if k - 1 <= after < case.n - 2:
                        yield one_set(
                            case, f"generate, {mode}", rule(k), k, model.held[after + 1],
                            after=after,
                        )  # fmt: skip
