"""The study of the H2O paper's findings (arXiv 2306.14048) on a model's own attention.

The tasks of a text are its uncompressed run, the closed loop under online policies, and the closed
loop after some of the prompt's tokens were removed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from h2osim.studies.scores import (
    TAIL,
    accumulated,
    by_item,
    correlation,
    late_sparsity,
    plausible,
    tail,
    together,
)
from h2osim.studies.tasks import Study, is_oracle, loaded

if TYPE_CHECKING:
    from h2osim.closed_loop.decoding import Decoder

LOCAL, HINDSIGHT, GLOBAL = "h2o:scores=full", "h2o-hindsight", "h2o-global"
HEAVY, RECENT, SINKS = "h2o:recent=0", "recency", "streaming:sinks=4"
POLICIES = ("h2o", LOCAL, HINDSIGHT, GLOBAL, HEAVY, RECENT, SINKS)
BUDGETS = (0.05, 0.1, 0.2, 0.4)
SHARES = (0.01, 0.05, 0.1, 0.2)
KINDS = ("heavy", "random", "heavy but the first", "random but the first")
PARTS = 2
COUNTS = ("count", "pairs", "neighbours")
FACTS = (
    "sparsity", "late", "first", "top20", "age", *COUNTS, "each",
    *(f"{of}_{name}" for of in ("token", "item") for name in (*TAIL, "whole")),
)  # fmt: skip
"""What is measured of a layer; see :class:`H2OFindings`."""


@dataclass(frozen=True)
class H2OFindings(Study):
    """Rows of four kinds, told apart by ``finding``.

    * ``layer`` (``layer`` -1: of scores added over all layers): ``sparsity``, the share of entries
      below 1 % of their row's largest, and ``late``, that of the second half of rows; of the
      accumulated scores ``first`` and ``top20``, the share of the first token and of the fifth of
      the tokens that has most; Spearman's correlations ``age`` (token's score and place in the
      text), ``count``, ``pairs``, ``neighbours`` (item's score and how often it occurs, how often
      with others, with how many) and ``each`` (item's score an occurrence and ``pairs``); and
      ``token_…``, ``item_…`` of :func:`h2osim.studies.scores.tail`, its ratio over all values as
      ``…_whole``; of the items' scores over all layers ``plausible``, see
      :func:`h2osim.studies.scores.plausible`.
    * ``item``: a vocabulary item of the text, its counts, and its ``score`` over all layers.
    * ``policy``: ``recall`` and ``output_error`` of the uncompressed run, ``kl`` of the closed loop
      (nats a token), by ``policy`` and ``budget``.
    * ``removal``: ``kl`` after a share of the prompt's tokens was removed from every cache at the
      prompt's end, by ``removed`` (see KINDS), ``share`` and ``draw``.

    draws: how often tokens are drawn at random. seed: of those draws.
    """

    policies: tuple[str, ...] = POLICIES
    budgets: tuple[float, ...] = BUDGETS
    shares: tuple[float, ...] = SHARES
    draws: int = 3

    columns: ClassVar[frozenset[str]] = frozenset({"finding", "layer", "policy", "removed", "kl"})
    measure: ClassVar[str] = "error"

    def parts(self) -> Sequence[str]:
        """The uncompressed run, and the two kinds of closed loops in parts."""
        return ["open", *(f"{what}-{i}" for i in range(PARTS) for what in ("policies", "removal"))]

    def work(self, part: str, decoder: Decoder, ids: Sequence[int]) -> dict[str, Any]:
        """Do one part of one text."""
        what, _, place = part.partition("-")
        if what == "open":
            return _open_loop(self, decoder, ids)
        mine = slice(int(place), None, PARTS)
        if what == "policies":
            online = [name for name in self.policies if not is_oracle(name)]
            return {
                f"kl/{policy}/{b}": _kl(decoder, policy, self.budgets[b])
                for policy, b in list(itertools.product(online, range(len(self.budgets))))[mine]
            }
        return {
            f"removal/{removed}/{s}/{draw}": _kl(
                decoder, None, 1.0,
                removal(decoder, removed, self.shares[s], [self.seed, draw, *ids[:8]]),
            )
            for removed, s, draw in self._removals()[mine]
        }  # fmt: skip

    def _removals(self) -> list[tuple[str, int, int]]:
        """What is removed, the place of the share, and the draw."""
        return [
            (removed, s, draw)
            for removed, s in itertools.product(KINDS, range(len(self.shares)))
            for draw in range(self.draws if removed.startswith("random") else 1)
        ]

    def rows(self, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The rows of a text."""
        layers = [*found["layers"], -1]
        for place, layer in enumerate(layers):
            facts = {name: float(found[f"fact/{name}"][place]) for name in FACTS}
            if layer < 0:
                facts["plausible"] = plausible(found["items/score"])
            yield {"finding": "layer", "layer": int(layer), **facts}
        tokenizer = loaded(self.model).tokenizer
        for place, item in enumerate(found["items"]):
            named = {"item": int(item), "word": tokenizer.decode([int(item)])}
            numbers = {c: float(found[f"items/{c}"][place]) for c in (*COUNTS, "score")}
            yield {"finding": "item", **named, **numbers}
        for policy, (b, budget) in itertools.product(self.policies, enumerate(self.budgets)):
            columns = ("recall", "output_error", "kl")
            measured = {name: float(found[f"{name}/{policy}/{b}"]) for name in columns}
            yield {"finding": "policy", "policy": policy, "budget": budget, **measured}
        for removed, s, draw in self._removals():
            kl = float(found[f"removal/{removed}/{s}/{draw}"])
            which = {"removed": removed, "share": self.shares[s], "draw": draw}
            yield {"finding": "removal", **which, "kl": kl}


def removal(
    decoder: Decoder, removed: str, share: float, seed: Sequence[int]
) -> dict[int, NDArray[np.int32]]:
    """Which prompt tokens no step attends, as evictions after the prompt, int32 [units, n] a layer.

    Each unit loses max(1, round(share * p)) tokens: those of most attention from the prompt's rows
    (the older among equals), or as many drawn for the unit. "but the first" spares token 0.
    """
    p, draws = decoder.prompt_len, np.random.default_rng(seed)
    found = {}
    for layer in decoder.prompt.layers:
        columns = prompt_scores(decoder, layer)
        lost = np.full((len(columns), decoder.n), decoder.n, np.int32)
        for unit, scores in enumerate(columns):
            order = np.lexsort((np.arange(p), -scores))
            if removed.startswith("random"):
                order = draws.permutation(p)
            if removed.endswith("but the first"):
                order = order[order != 0]
            lost[unit, order[: max(1, round(share * p))]] = p - 1
        found[layer] = lost
    return found


def prompt_scores(decoder: Decoder, layer: int) -> NDArray[np.int64]:
    """The attention each prompt token of a layer receives from the prompt, [units, p]."""
    from h2osim.attention.row_loops import add_columns

    p, units = decoder.prompt_len, decoder.prompt.units(layer)
    found = np.zeros((units, p), np.int64)
    by_unit = np.split(decoder.prompt.rows(layer), units)
    for columns, bits in zip(found, by_unit, strict=True):
        add_columns(bits, 0, 0, p, columns, np.zeros(p, np.int64))
    return found


def _kl(decoder: Decoder, policy: str | None, budget: float, masks: Any = None) -> float:
    """Mean KL of the closed loop, nats a token; masks: evictions instead of the policy's own."""
    from h2osim.closed_loop.caches import Eviction
    from h2osim.policies.text import parse
    from h2osim.replays.budgets import budget_tokens

    configured = None if policy is None else parse(policy)
    slots = budget_tokens(budget, decoder.n, decoder.prompt_len)
    seen = decoder.evict(Eviction(configured, slots, masks))
    return float(seen.kl.mean())


def _open_loop(study: H2OFindings, decoder: Decoder, ids: Sequence[int]) -> dict[str, Any]:
    """What the uncompressed run shows, and the closed loop of what oracles evict on it."""
    from h2osim.closed_loop import uncompressed
    from h2osim.replays.replaying import replay
    from h2osim.traces.description import describe

    trace = uncompressed.run(decoder.prompt, ids[study.prompt_len :], probes=0).trace
    assert trace is not None
    facts = [
        {"sparsity": layer.sparsity, "late": late}
        for layer, late in zip(describe(trace).layers, late_sparsity(trace), strict=True)
    ]
    facts.append({name: float(np.mean([one[name] for one in facts])) for name in facts[0]})
    tokens = accumulated(trace)
    tokens = np.concatenate([tokens, tokens.sum(axis=0, keepdims=True)])
    items, count = np.unique(ids, return_counts=True)
    counts = dict(zip(COUNTS, (count, *together(ids)), strict=True))
    scores = by_item(ids, tokens)
    for fact, token, item in zip(facts, tokens, scores, strict=True):
        heaviest = np.sort(token)[::-1][: round(0.2 * len(token))]
        fact |= {"first": token[0] / token.sum(), "top20": heaviest.sum() / token.sum()}
        fact |= {"age": correlation(token, np.arange(len(token)))}
        fact |= {name: correlation(item, numbers) for name, numbers in counts.items()}
        fact |= {"each": correlation(item / count, counts["pairs"])}
        for of, values in (("token", token), ("item", item)):
            fact |= {f"{of}_{name}": x for name, x in tail(values).items()}
            fact |= {f"{of}_whole": tail(values, whole=True)["ratio"]}
    found: dict[str, Any] = {"layers": trace.layers, "items": items, "items/score": scores[-1]}
    found |= {f"items/{name}": numbers for name, numbers in counts.items()}
    found |= {f"fact/{name}": [fact[name] for fact in facts] for name in FACTS}
    replayed = replay(
        trace, list(study.policies), list(study.budgets), engine="numba", measure=study.measure
    )
    for (i, policy), (b, budget) in itertools.product(
        enumerate(study.policies), enumerate(study.budgets)
    ):
        one = replayed.isel(policy=i, budget=b)
        for name in ("recall", "output_error"):
            found[f"{name}/{policy}/{b}"] = float(one[name].mean())
        if is_oracle(policy):
            gone = one["evicted_at"].transpose("layer", "unit", "token").values
            masks = dict(zip(decoder.prompt.layers, gone, strict=True))
            found[f"kl/{policy}/{b}"] = _kl(decoder, policy, budget, masks)
    return found
