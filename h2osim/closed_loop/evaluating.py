"""What a study is asked for, checked, and what it found, as a Dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from h2osim.closed_loop.prompts import Question, Task
from h2osim.closed_loop.study import Arrays, Item, Masks, Place, Plan
from h2osim.policies.declaration import Configured
from h2osim.policies.text import parse, parse_all
from h2osim.replays import results
from h2osim.replays.budgets import Budget, budget_facts, budget_labels, budget_tokens
from h2osim.replays.facts import policy_facts
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.support.errors import UserError
from h2osim.support.given import utf8
from h2osim.traces.manifest import SHARES

if TYPE_CHECKING:
    import xarray

    from h2osim.models.loading import Model

#: A text to decode: words, token ids, a prompt with its answer, or a task that makes one.
Text = str | Sequence[int] | Question | Task


def configure(policies: Any) -> list[Configured]:
    """The policies, which a running model must be able to follow."""
    configured = parse_all(policies)
    names = [c.text for c in configured]
    if not configured:
        raise UserError("no policy given; expected at least one (`h2osim policies` lists them)")
    if len(set(names)) < len(names):
        raise UserError(f"policies: {', '.join(names)}: each may be given once")
    for one in configured:
        if one.policy.oracle or one.policy.readmits:
            what = "knows the future" if one.policy.oracle else "chooses its keys afresh each step"
            raise UserError(f"policy {one.text}: it {what}, so no running model can follow it")
    return configured


def text_ids(loaded: Any, name: str, text: str | Sequence[int], n_tokens: int | None) -> list[int]:
    """Return the first ``n_tokens`` token ids of a text; UserError where there are not so many."""
    if isinstance(text, str):
        if loaded.tokenizer is None:
            raise UserError(f"model {loaded.name}: has no tokenizer; give token ids, not texts")
        ids = [int(token) for token in loaded.tokenizer(text)["input_ids"]]
    else:
        ids = [int(token) for token in text]
    count = len(ids) if n_tokens is None else n_tokens
    if len(ids) < count or count < 3:
        raise UserError(f"text {name}: found {len(ids)} tokens, expected at least {max(3, count)}")
    if wrong := [token for token in ids[:count] if not 0 <= token < loaded.vocabulary]:
        raise UserError(
            f"text {name}: found token id {wrong[0]}, expected 0 ... {loaded.vocabulary - 1}"
        )
    if loaded.context is not None and count > loaded.context:
        raise UserError(
            f"text {name}: found {count} tokens to run, expected at most the context of "
            f"{loaded.name}, {loaded.context}"
        )
    return ids[:count]


def first_step(name: str, n: int, asked: int | None) -> int:
    """Tokens of the prompt of a text of n tokens: as asked, else a third; at least 1."""
    found = max(1, n // 3) if asked is None else asked
    if isinstance(found, bool) or not 1 <= found <= n - 2:
        raise UserError(
            f"prompt length {found}: expected 1 to {n - 2} for text {name} of {n} tokens, so that "
            f"a token is left to decode and one to predict"
        )
    return int(found)


def make_plan(
    loaded: Model,
    texts: Mapping[str, Text],
    configured: Sequence[Configured],
    budgets: Sequence[Budget | UnitBudgets],
    *,
    prompt_len: int | None,
    share: str,
    n_tokens: int | None,
    layers: Sequence[int] | None,
    generate: int,
    choice: Any,
    masks: Masks | None,
) -> Plan:
    """The study on a loaded model; UserError for whatever does not fit it, or each other."""
    if masks is not None:
        share, budgets = str(masks.facts["share"]), masks.facts["budget"]
        prompt_len = int(masks.facts["prompt_len"])
    items = tuple(
        make_item(loaded, name, text, n_tokens, prompt_len, generate)
        for name, text in texts.items()
    )
    plan = Plan(
        items, tuple(configured), tuple(budgets), share,
        None if layers is None else tuple(sorted(set(layers))), generate, choice, masks,
    )  # fmt: skip
    for i, item in enumerate(items):
        for budget in plan.budgets:
            if not isinstance(budget, UnitBudgets):
                budget_tokens(budget, plan.length(i), item.prompt_len)
        if masks is not None and len(item.ids) != masks.evicted_at.shape[-1]:
            raise UserError(
                f"{masks.source}: a replay of {masks.evicted_at.shape[-1]} tokens, but text "
                f"{item.name} has {len(item.ids)}"
            )
        if masks is not None and masks.text not in ("", item.sha256):
            raise UserError(
                f"{masks.source}: a replay of the text of sha256 {masks.text[:12]}…, but text "
                f"{item.name} has {item.sha256[:12]}…"
            )
    return plan


def check_asked(budgets: Sequence[Any], texts: Mapping[str, Text], share: str) -> None:
    """All that can be wrong about budgets, texts and sharing before a model is loaded."""
    if not budgets:
        raise UserError("no budget given; expected tokens (64) or fractions of n (0.05)")
    plain = [b for b in budgets if not isinstance(b, UnitBudgets)]
    if len(set(plain)) < len(plain):
        raise UserError(f"budgets: {plain}: each may be given once")
    for budget in plain:
        budget_tokens(budget, 2**31, 1)  # its form; whether it fits is each text's question
    budget_labels(plain)
    if not texts:
        raise UserError("no text given; expected at least one")
    if share not in SHARES:
        raise UserError(f"share: found {share!r}, expected one of {', '.join(SHARES)}")


def read_masks(path: Path) -> Masks:
    """The evictions of a saved replay; UserError where the file holds none that could be applied.

    A policy that attends again to what it evicted, or hides keys for a while, does more than
    ``evicted_at`` says, and is refused.
    """
    import xarray

    try:
        with xarray.open_dataset(path, engine="h5netcdf") as opened:
            found = opened.load()
        results.check(found)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if not isinstance(error, OSError) else "no NetCDF file"
        raise UserError(f"--mask-from {path}: {reason}") from None
    if found.attrs["form"] != "replay" or "evicted_at" not in found:
        raise UserError(
            f"--mask-from {path}: expected a replay with its evictions: h2osim compare … -o FILE.nc"
        )
    facts: dict[str, Any] = {name: found[name].values.tolist() for name in policy_facts(())}
    for text, rule, readmits in zip(facts["policy"], facts["rule"], facts["readmits"], strict=True):
        if readmits or _hides(rule):
            what = "attends again to what it evicted" if readmits else "hides keys for a while"
            raise UserError(f"--mask-from {path}: policy {text} {what}; no mask says that")
    facts |= {name: found.attrs[name] for name in ("share", "prompt_len")}
    facts["budget"] = [int(b) for b in found["budget"].values]
    return Masks(
        str(path), found["evicted_at"].values.astype(np.int32),
        tuple(int(layer) for layer in found["layer"].values), facts, found.attrs["text_sha256"],
    )  # fmt: skip


def _hides(rule: str) -> bool:
    try:
        return parse(rule).policy.visible is not None
    except UserError:  # a policy of the caller's own, which is not known here
        return False


def make_item(
    loaded: Model,
    name: str,
    text: Text,
    n_tokens: int | None,
    prompt_len: int | None,
    generate: int,
) -> Item:
    """A text as tokens of this model."""

    def count(words: str) -> int:
        return len(loaded.tokenizer(words)["input_ids"])

    if isinstance(text, Question | Task) and loaded.tokenizer is None:
        raise UserError(f"model {loaded.name}: has no tokenizer; give token ids, not texts")
    if isinstance(text, Task):
        if loaded.context is not None and text.length > loaded.context:
            raise UserError(
                f"task {text.kind}: length {text.length}, expected at most the context of "
                f"{loaded.name}, {loaded.context}"
            )
        text = text.question(count)
    if isinstance(text, Question):
        parts = "\0".join((text.context, text.question, text.answer))
        digest = hashlib.sha256(utf8(parts, f"prompt {name}"))
        read = text_ids(loaded, name, text.context + text.question, None)
        answer = loaded.tokenizer(text.answer, add_special_tokens=False)["input_ids"]
        ids = text_ids(loaded, name, [*read, *answer], None)
        # The last token that is read is a decode step, or the full cache would predict the answer.
        p = min(count(text.context), len(read) - 1) if prompt_len is None else prompt_len
        if not 1 <= p < len(read) or not answer:
            raise UserError(
                f"prompt length {p}: expected 1 to {len(read) - 1} for prompt {name} of "
                f"{len(read)} tokens and an answer of {len(answer)}"
            )
        return Item(name, tuple(ids), p, digest.hexdigest(), len(answer))
    digest = hashlib.sha256(
        utf8(text, f"text {name}") if isinstance(text, str) else repr(list(text)).encode()
    )
    ids = text_ids(loaded, name, text, n_tokens)
    if not generate:
        return Item(name, tuple(ids), first_step(name, len(ids), prompt_len), digest.hexdigest())
    if prompt_len is not None and not 1 <= prompt_len <= len(ids):
        raise UserError(f"prompt length {prompt_len}: text {name} has {len(ids)} tokens")
    if loaded.context is not None and len(ids) + generate > loaded.context:
        raise UserError(
            f"text {name}: {len(ids)} tokens and {generate} to write are more than the context of "
            f"{loaded.name}, {loaded.context}"
        )
    ids = ids[:prompt_len]
    return Item(name, tuple(ids), len(ids), digest.hexdigest())


def dataset(
    loaded: Model,
    plan: Plan,
    wholes: Sequence[Arrays],
    found: Mapping[Place, Arrays],
    steps: bool,
    command: str = "",
) -> xarray.Dataset:
    """All that a study found, in the form ``evaluation``."""
    shape, layers = plan.shape, wholes[0]["layers"]
    units = int(wholes[0]["units"].max())
    data: dict[str, Any] = {
        name: np.full(shape, np.nan)
        for name in ("kl", "nll", "top1", "recall", "cached", "cache_bytes")
    }
    for name in ("kept", "mass"):
        data[name] = np.zeros((*shape, len(layers), units), np.int64)
    for (i, j, b), one in found.items():
        at = i, j, b
        data["kl"][at], data["nll"][at] = one["kl"].mean(), np.nanmean(one["nll"])
        data["top1"][at] = one["top1"].mean()
        data["recall"][at] = int(one["kept"].sum()) / int(one["mass"].sum())
        data["cached"][at] = one["cached"].sum()
        data["cache_bytes"][at] = (one["cached"].sum(axis=1) * wholes[i]["key_bytes"]).sum()
        data["kept"][at], data["mass"][at] = one["kept"], one["mass"]
    data["perplexity"] = np.exp(data["nll"])
    data["full_nll"] = np.array([np.nanmean(one["nll"]) for one in wholes])
    length = max(len(one["nll"]) for one in wholes) if steps else 0
    if steps:
        data["kl_step"] = np.full((*shape, length), np.nan)
        for at, one in found.items():
            data["kl_step"][at][: len(one["kl"])] = one["kl"]
    split = ["equal" if not isinstance(b, UnitBudgets) else b.name for b in plan.budgets]
    data["slots"] = np.stack([one["slots"] for one in wholes])
    data |= _answers(plan, wholes, found) | _written(loaded, plan, wholes, found)
    plain = [b for b in plan.budgets if not isinstance(b, UnitBudgets)]
    numbers = iter(budget_labels(plain))
    labels = [b.mean if isinstance(b, UnitBudgets) else next(numbers) for b in plan.budgets]
    facts = policy_facts(plan.configured)
    if plan.masks is not None:
        facts = {name: plan.masks.facts[name] for name in facts}
    coords = {
        **facts,
        "text": [item.name for item in plan.items],
        "budget": labels,
        "split": split,
        "layer": layers,
        "unit": np.arange(units),
        "n": [plan.length(i) for i in range(shape[0])],
        "prompt_len": [item.prompt_len for item in plan.items],
        "text_sha256": [item.sha256 for item in plan.items],
        "tokens": [[round(slots.mean()) for slots in one["slots"]] for one in wholes],
        "decode_step": np.arange(length),
    }
    about = {"model": loaded.name, "model_sha256": loaded.sha256 or "", "share": plan.share}
    about |= budget_facts(plain, labels)
    return results.assemble("evaluation", data, coords, about | {"command": command})


def _answers(
    plan: Plan, wholes: Sequence[Arrays], found: Mapping[Place, Arrays]
) -> dict[str, NDArray[np.float64]]:
    """Log-probability and exact match of the answers; none where no text has one."""
    if not any(item.answer for item in plan.items):
        return {}

    def scores(item: Item, one: Arrays) -> tuple[float, float]:
        if not item.answer:
            return np.nan, np.nan
        rows = slice(-1 - item.answer, -1)  # each predicts the token after it
        return -float(one["nll"][rows].sum()), float(one["hits"][rows].all())

    full = np.array([scores(item, one) for item, one in zip(plan.items, wholes, strict=True)])
    evicted = np.full((*plan.shape, 2), np.nan)
    for at, one in found.items():
        evicted[at] = scores(plan.items[at[0]], one)
    return {
        "answer_logp": evicted[..., 0],
        "exact": evicted[..., 1],
        "full_answer_logp": full[:, 0],
        "full_exact": full[:, 1],
    }


def _written(
    loaded: Model, plan: Plan, wholes: Sequence[Arrays], found: Mapping[Place, Arrays]
) -> dict[str, Any]:
    """What the model wrote, and how long it agreed with what it wrote with the full cache."""
    if not plan.generate:
        return {}

    def words(ids: NDArray[np.int64]) -> str:
        plain = ids.tolist()
        if loaded.tokenizer is None:
            return " ".join(map(str, plain))
        return str(loaded.tokenizer.decode(plain))

    agreement = np.zeros(plan.shape, np.int64)
    texts = np.full(plan.shape, "", object)
    for at, one in found.items():
        same = one["written"] == wholes[at[0]]["written"]
        agreement[at] = len(same) if same.all() else int(same.argmin())
        texts[at] = words(one["written"])
    return {
        "agreement": agreement,
        "generated": texts.astype(str),
        "full_generated": np.array([words(one["written"]) for one in wholes], str),
    }
