"""Evaluate policies by what a model loses that decodes with them in force."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from h2osim.policies.declaration import Configured, Policy
from h2osim.policies.text import parse
from h2osim.replays import results
from h2osim.replays.budgets import budget_tokens
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.traces.manifest import SHARES

if TYPE_CHECKING:
    import xarray

    from h2osim.closed_loop.decoding import Comparison


def evaluate(
    model: Any,
    texts: Mapping[str, str | Sequence[int]],
    policies: str | Policy | Configured | Sequence[str | Policy | Configured],
    budgets: float | Sequence[float],
    *,
    prompt_len: int | None = None,
    share: str = "group",
    n_tokens: int | None = None,
    layers: Iterable[int] | None = None,
    steps: bool = False,
    tokenizer: Any = None,
    progress: Progress | None = None,
) -> xarray.Dataset:
    """Run a model over texts with each policy in force at each budget.

    The first ``prompt_len`` tokens of a text are read densely, once a text; then each policy and
    budget is one pass over the rest, in which every layer evicts (see
    :mod:`h2osim.closed_loop.attention`) on the input that the evicted layers below it produced.

    Parameters
    ----------
    model
        As for :func:`h2osim.record`: ``smollm2``, a folder, a .gguf file, a hub id, or a loaded
        transformers model (bring ``tokenizer``, or token ids as texts).
    texts
        Name → text, or token ids.
    policies
        Online policies, as text or objects. One that knows the future or chooses its keys afresh
        in every step cannot run inside a model and is refused. What a policy sees with
        ``scores=full`` is the softmax over all tokens, those it evicted included, which a real
        cache could not show it; ``scores=cached`` is what a deployed policy sees.
    budgets
        As for :func:`h2osim.replay`, for each text's own length.
    prompt_len
        Tokens of the prompt; default: a third of each text's tokens.
    share
        Which heads decide together: ``group``, ``head`` or ``layer``.
    n_tokens
        How many tokens of each text to take; default all.
    layers
        Evict in these layers only; default in every layer.
    steps
        Return KL of every step too.
    progress
        Called with passes done, passes in all and a word.

    Returns
    -------
    xarray.Dataset
        Over text, policy and budget (as asked; ``tokens[text, budget]`` beside it):

        * ``kl``: mean over decode steps of KL(full cache || evicted), nats a token;
        * ``nll``, ``perplexity``: mean -log p of the text's next tokens, and its exponential;
        * ``top1``: share of steps in which both have the same likeliest next token;
        * ``recall``: sum of attended over whole mass of the closed loop's rows, all units;
        * ``kept``, ``mass``: int64 fixed point, also over layer and unit;
        * ``cached``: keys cached besides the step's own, mean over decode steps, all units added
          up;
        * ``full_nll[text]``; ``kl_step[..., decode_step]`` where asked for (texts of one length).

    Raises
    ------
    UserError
        Unknown policy, budget above n, an oracle or a bound; a text too short for its prompt; a
        model that cannot be run; all before the first evicted pass.
    """
    if isinstance(policies, (str, Policy, Configured)):
        policies = [policies]
    configured = configure(policies)
    asked = np.atleast_1d(np.asarray(budgets, object)).tolist()
    _check(asked, texts, share)

    from h2osim.models import loading

    loading.require()
    if isinstance(model, str):
        if progress:
            progress(0, 0, f"loading {model}")
        loaded = loading.load(model)
    else:
        loaded = loading.given(model, tokenizer)
    ids = {name: text_ids(loaded, name, text, n_tokens) for name, text in texts.items()}
    prompts = {name: first_step(name, len(some), prompt_len) for name, some in ids.items()}
    tokens = {name: [budget_tokens(b, len(some)) for b in asked] for name, some in ids.items()}
    only = None if layers is None else sorted(set(layers))

    from h2osim.closed_loop.decoding import Decoder

    shape = (len(ids), len(configured), len(asked))
    numbers = {name: np.full(shape, np.nan) for name in ("kl", "nll", "top1", "recall", "cached")}
    full_nll = np.full(len(ids), np.nan)
    by_unit: dict[tuple[int, int, int], tuple[Any, Any]] = {}
    kl_steps: dict[tuple[int, int, int], Any] = {}
    found_layers: tuple[int, ...] = ()
    total = int(np.prod(shape))
    for i, (name, some) in enumerate(ids.items()):
        decoder = Decoder(loaded, some, prompts[name], share)
        found_layers = decoder.layers if only is None else tuple(only)
        if only is not None and (unknown := [x for x in only if x not in decoder.layers]):
            raise UserError(
                f"layers: found {unknown[0]}, expected attention layers of {loaded.name}: "
                f"{', '.join(map(str, decoder.layers))}"
            )
        full_nll[i] = np.nanmean(decoder.full_nll)
        for j, one in enumerate(configured):
            for b, budget in enumerate(tokens[name]):
                if progress:
                    done = (i * shape[1] + j) * shape[2] + b
                    progress(done, total, f"{name}, {one.text}, {budget} tokens")
                seen = decoder.evict(one, budget, only)
                at = (i, j, b)
                numbers["kl"][at] = seen.kl.mean()
                numbers["nll"][at] = np.nanmean(seen.nll)
                numbers["top1"][at] = seen.top1.mean()
                kept, mass, cached = _units(seen, found_layers, prompts[name], len(some))
                numbers["recall"][at] = int(kept.sum()) / int(mass.sum())
                numbers["cached"][at] = cached
                by_unit[at] = kept, mass
                kl_steps[at] = seen.kl
    if progress:
        progress(total, total, "done")
    return _dataset(
        loaded, ids, texts, prompts, configured, asked, tokens, numbers, full_nll, by_unit,
        kl_steps if steps else {}, found_layers, share,
    )  # fmt: skip


def configure(policies: Sequence[str | Policy | Configured]) -> list[Configured]:
    """The policies, which a running model must be able to follow."""
    configured = [parse(p) for p in policies]
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


def _check(budgets: Sequence[Any], texts: Mapping[str, Any], share: str) -> None:
    """All else that can be wrong before a model is loaded."""
    if not budgets:
        raise UserError("no budget given; expected tokens (64) or fractions of n (0.05)")
    if len(set(budgets)) < len(budgets):
        raise UserError(f"budgets: {budgets}: each may be given once")
    for budget in budgets:
        budget_tokens(budget, 2**31)  # its form; whether it fits is each text's question
    if not texts:
        raise UserError("no text given; expected at least one")
    if share not in SHARES:
        raise UserError(f"share: found {share!r}, expected one of {', '.join(SHARES)}")


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


def _units(
    seen: Comparison, layers: Sequence[int], p: int, n: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Kept and whole mass int64 [layers, units], and keys held: mean over steps, all units."""
    kept, mass, held = [], [], 0
    born = np.arange(n)
    for layer in layers:
        found = seen.layers[layer]
        kept.append(found.kept.sum(axis=1))
        mass.append(found.masses.sum(axis=1))
        # token j is a cached key of steps max(p, j + 1) … min(n - 1, evicted_at[j])
        last = np.minimum(found.evicted_at, n - 1)
        held += int(np.maximum(0, last - np.maximum(p, born + 1) + 1).sum())
    return np.array(kept, np.int64), np.array(mass, np.int64), held / (n - p)


def _dataset(
    loaded: Any,
    ids: Mapping[str, Sequence[int]],
    texts: Mapping[str, str | Sequence[int]],
    prompts: Mapping[str, int],
    configured: Sequence[Configured],
    budgets: Sequence[Any],
    tokens: Mapping[str, Sequence[int]],
    numbers: Mapping[str, np.ndarray],
    full_nll: np.ndarray,
    by_unit: Mapping[tuple[int, int, int], tuple[np.ndarray, np.ndarray]],
    kl_steps: Mapping[tuple[int, int, int], np.ndarray],
    layers: Sequence[int],
    share: str,
) -> xarray.Dataset:
    data: dict[str, Any] = {**numbers, "perplexity": np.exp(numbers["nll"]), "full_nll": full_nll}
    shape = numbers["kl"].shape
    units = next(iter(by_unit.values()))[0].shape[1]
    for place, name in enumerate(("kept", "mass")):
        data[name] = np.zeros((*shape, len(layers), units), np.int64)
        for at, pair in by_unit.items():
            data[name][at] = pair[place]
    length = max((len(x) for x in kl_steps.values()), default=0)
    if kl_steps:
        data["kl_step"] = np.full((*shape, length), np.nan)
        for at, x in kl_steps.items():
            data["kl_step"][at][: len(x)] = x
    digests = [
        hashlib.sha256(text.encode() if isinstance(text, str) else repr(list(text)).encode())
        for text in texts.values()
    ]
    coords = {
        **results.policy_facts(configured),
        "text": list(ids),
        "budget": [float(b) for b in budgets],
        "layer": list(layers),
        "unit": np.arange(units),
        "n": [len(some) for some in ids.values()],
        "prompt_len": [prompts[name] for name in ids],
        "text_sha256": [digest.hexdigest() for digest in digests],
        "tokens": [tokens[name] for name in ids],
        "decode_step": np.arange(length),
    }
    facts = {"model": loaded.name, "model_sha256": loaded.sha256 or "", "share": share}
    return results.assemble("evaluation", data, coords, facts)
