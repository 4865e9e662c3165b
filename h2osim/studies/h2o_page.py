"""docs/h2o-findings.md and its figures, from the table of the study of the H2O paper's findings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from h2osim.report.h2o import Panel, bands_figure, scores_figure
from h2osim.report.statistics import Interval, can_tell, mean_interval
from h2osim.studies import markdown
from h2osim.studies import texts as sources
from h2osim.studies.h2o import GLOBAL, HEAVY, HINDSIGHT, KINDS, LOCAL, RECENT, SINKS
from h2osim.studies.h2o_numbers import Findings, Ratio, find
from h2osim.studies.scores import LEAST, WINDOW

if TYPE_CHECKING:
    import pandas

RULES = ("h2o", RECENT, HEAVY, SINKS)
STATISTICS = (LOCAL, HINDSIGHT, GLOBAL)
STRONG = 0.7
SPARSE = 0.95
PLAUSIBLE = 0.1


def write(frame: pandas.DataFrame, page: Path) -> None:
    """Write the page, and its figures into the folder of the page's name beside it."""
    found = find(frame)
    layers, budgets = found.layers, [100 * b for b in found.budgets]
    pooled = found.pooled()

    def over_texts(values: dict[str, np.ndarray], geometric: bool) -> dict[str, np.ndarray]:
        def curve(columns: np.ndarray) -> np.ndarray:
            means = [mean_interval(x, geometric=geometric) for x in columns.T]
            return np.array([[m.mean, m.low, m.high] for m in means]).T

        return {name: curve(columns) for name, columns in values.items()}

    measured = found.measured
    rules = {
        column: {name: numbers[name] for name in (*RULES, HINDSIGHT, GLOBAL)}
        for column, numbers in measured.items()
    }
    kl = "KL, nats a token"
    figures = {
        "layers": bands_figure([
            Panel("share of entries below 1 % of their row's largest", "layer", layers,
                  {"all rows": found.layer_means("sparsity"),
                   "second half": found.layer_means("late")}, level=SPARSE),
            Panel("Spearman's correlation, vocabulary items", "layer", layers, {
                "score and co-occurrence": found.layer_means("pairs"),
                "score an occurrence and co-occurrence": found.layer_means("each"),
            }),
        ]),
        "scores": scores_figure(
            pooled["score"].to_numpy(), found.pooled_tail(), pooled["pairs"].to_numpy(),
            f"pairs with other items within {WINDOW} tokens",
        ),
        "policies": bands_figure([
            Panel("recall", "budget, %", budgets, over_texts(rules["recall"], False)),
            Panel("output error", "budget, %", budgets,
                  over_texts(rules["output_error"], True), log=True),
            Panel(kl, "budget, %", budgets, over_texts(rules["kl"], True), log=True),
        ]),
        "removal": bands_figure([
            Panel(kl, "share of the prompt's tokens removed, %", [100 * s for s in found.shares],
                  over_texts({kind: found.removed[kind] for kind in KINDS}, True), log=True),
        ]),
    }  # fmt: skip
    markdown.write(page, text(frame, found, page.stem), figures)


def text(frame: pandas.DataFrame, found: Findings, folder: str) -> str:
    """The page."""
    genres = Counter({one.name: one.genre for one in sources.listed()}[t] for t in found.texts)
    kinds = ", ".join(f"{number} {genre}" for genre, number in genres.items())
    model, tokens, prompt_len = frame[["model", "tokens", "prompt_len"]].iloc[0]
    shares = [f"{100 * budget:g} %" for budget in found.budgets]
    draws = int(frame["draw"].max()) + 1
    results = f"docs/{folder}/results.csv.gz"
    every = len(found.texts) == len(sources.listed())
    only = "" if every else " --only " + ",".join(found.texts)
    pooled, possible = found.pooled_tail(), int((found.plausible > PLAUSIBLE).sum())
    future = found.against(LOCAL, (HINDSIGHT, GLOBAL))
    rules = found.against("h2o", (RECENT, HEAVY, SINKS))
    removed = found.heavy_against_random()
    return f"""# What the H2O paper found, measured on one model

<!-- Written by `h2osim study h2o --from {results} --page docs/{folder}.md`. -->

The paper (*H2O: Heavy-Hitter Oracle*, arXiv 2306.14048) rests on observations about the attention
of OPT, LLaMA and GPT-NeoX models. This page makes the same observations on {model}, on
{len(found.texts)} texts ({kinds}) of {tokens} tokens each, of which {prompt_len} are the prompt;
`h2osim/studies/texts.toml` names each text's package, licence and sha256. It says nothing of models
that were not run, larger ones and longer texts among them.

```sh
h2osim study texts study-texts
h2osim study h2o smollm2 --texts study-texts{only} \\
    --jobs 16 --store study-store -o {results}
h2osim study h2o --from {results} --page docs/{folder}.md
```

{markdown.made(frame)}A mean is over texts, with a bootstrap interval of level .95 in brackets. KL
and output error are averaged as logarithms. Two runs are compared on the same texts (sign-flip
test, Holm's correction within a table); where p is .05 or more they are called a *tie*. Where the
paper measures the accuracy of answers, this page measures KL of the next token's prediction, full
cache against evicted cache, which also sees changes that leave an answer as it was: a *no* there
does not say that answers get worse.

{_claims(found, future, rules, removed)}

## Sparsity

A layer's sparsity is the share of all its entries A[t, j], j ≤ t, below 1 % of the largest entry of
their row (the paper's threshold). Short rows count as well and are the less sparse ones: mean over
layers {_within(found.overall("sparsity"))}, in the rows of the text's second half
{_within(found.overall("late"))}.

{_sparsity_table(found)}

![Sparsity by layer; correlation with co-occurrence by layer]({folder}/layers.png)

## How accumulated scores are distributed

The accumulated score of a token is the attention it receives from all rows and heads, that of a
vocabulary item the sum over its places in the text. A power law is fitted to the tail of the scores
from xmin on, which brings it nearest to the data (at least {LEAST} values), and a log-normal to
the same tail, both by maximum likelihood (Clauset, Shalizi and Newman, arXiv 0706.1062). Vuong's
test asks which is nearer. The power law is the limit of log-normals cut off at xmin, so the
log-normal is never the farther one, and the best that a power law can reach is that neither is
nearer; the test of nested models asks whether the data want the limit. Shares of layers in which a
test finds the log-normal nearer (p < .05, not corrected: chance alone would make it about .05):

{_tail_table(found)}

The scores of one text over all layers: exponent {_within(found.overall("item_alpha"))} for items,
{_within(found.overall("token_alpha"))} for tokens; the tail holds
{_within(found.overall("item_tail"))} of the items and {_within(found.overall("token_tail"))} of the
tokens. A power law could have given the tail of the items' scores (p above .1 by made data sets,
section 4 of the same paper) in {possible} of {len(found.texts)} texts. Items of all texts together:
exponent {pooled["alpha"]:.2f}, tail {pooled["tail"]:.2f}, p of the nested test
{pooled["nested"]:.2g}. The heaviest fifth of the tokens holds
{_within(found.overall("top20"))} of the score, the first token of the text alone
{_within(found.overall("first"))}.

![Scores of vocabulary items with both fits; score against co-occurrence]({folder}/scores.png)

## Co-occurrence

The paper does not say how it counts. Here an item's co-occurrence is the number of pairs of places
in the text, at most {WINDOW} tokens apart, with the item at one of them and another item at the
other. That number is nearly the item's frequency times {2 * WINDOW}, and a score added over places
grows with their number as well. So the table has the frequency beside it, how many different items
an item has near it, and the score of one occurrence, from which the frequency is gone.

{_cooccurrence_table(found)}

Items of all texts together, scores and pairs added, with a jackknife interval over texts:
{_within(found.pooled_correlation())}. A token's own score depends on its age, since later tokens
are seen by fewer rows: correlation with the place in the text {_within(found.overall("age"))}.

## Local and global statistic

`{LOCAL}` scores by the attention received so far. `{HINDSIGHT}` follows the same rule with
the attention of the whole text, rows to come included. `{GLOBAL}` is the paper's code for that: it
chooses its columns once, before the first step. Both are oracles; in the closed loop the model runs
without what they evict on the uncompressed run. KL as a multiple of that of `{LOCAL}`:

{_ratio_table(future, shares, "statistic")}

## Heavy hitters and recent tokens

`h2o` gives half of its budget to the newest tokens, `{RECENT}` all of it, `{HEAVY}` none;
`{SINKS}` is `{RECENT}` with the first four tokens kept. In `{HEAVY}` a new token, which has had no
rows to gather attention from, is the first to go.

{_policy_table(found, shares)}

KL as a multiple of that of `h2o`:

{_ratio_table(rules, shares, "rule")}

![Recall, output error and KL against budget]({folder}/policies.png)

## Without the heavy hitters

At the prompt's end every KV group loses a share of the prompt's tokens, those of the largest
accumulated score or as many drawn at random ({draws} draws, each group its own), and nothing else
is evicted. The first token of a text takes much of most heads' attention and is a heavy hitter in
most of them, so everything is done once more with that token spared on both sides.

{_removal_table(found)}

KL without heavy hitters as a multiple of that without random tokens:

{_ratio_table(removed, [f"{100 * s:g} %" for s in found.shares], "tokens")}

![KL against the share removed]({folder}/removal.png)
"""


# --- the paper's claims -----------------------------------------------------------------------


def _claims(
    found: Findings,
    future: dict[str, list[Ratio]],
    rules: dict[str, list[Ratio]],
    removed: dict[str, list[Ratio]],
) -> str:
    sparsity = found.layer_means("sparsity")[0]
    late = found.layer_means("late")[0]
    tail_ln, whole_ln = (found.favoured("item", kind)[0] for kind in ("nested", "whole"))
    possible = (found.plausible > PLAUSIBLE).mean()
    power = "in the tail at most" if whole_ln.mean > 0.5 else "yes"
    pairs, each = found.overall("pairs"), found.overall("each")
    at = found.at_20
    share = f"{100 * found.budgets[at]:g} %"
    rows = [
        [
            "more than 95 % of the entries are below 1 % of their row's largest, in almost all "
            "layers", "3.1",
            f"{(sparsity > SPARSE).sum()} of {len(sparsity)} layers, {(late > SPARSE).sum()}"
            f" in the rows of the text's second half; mean {_within(found.overall('sparsity'))}, "
            f"least {sparsity.min():.2f}",
            _grade(float((late > SPARSE).mean()), 0.9, 0.5),
        ],
        [
            "accumulated scores follow a power law", "3.2",
            f"log-normal nearer in {_within(whole_ln)} of the layers over all items, in "
            f"{_within(tail_ln)} in the tail (nested test); over all layers a power law is "
            f"plausible in {100 * possible:.0f} % of the texts",
            "no" if tail_ln.mean > 0.5 or possible < 0.5 else power,
        ],
        [
            f"they correlate strongly (here: {STRONG} or more) with co-occurrence in the text",
            "3.2",
            f"Spearman {_within(pairs)}; with mere frequency {_within(found.overall('count'))}; an "
            f"occurrence's score {_within(each)}",
            _grade(pairs.mean, STRONG, STRONG / 2),
        ],
        [
            f"the local statistic is as good as the global one (budget {share})", "4.1",
            "; ".join(f"KL of `{name}` is {_times(future[name][at])}" for name in future),
            _agrees(found, [future[name][at] for name in future], "more tie"),
        ],
        [
            "recent tokens alone are far worse than H2O", "5.1 (Tables 1, 2)",
            f"KL {_range(rules[RECENT])}", _agrees(found, rules[RECENT]),
        ],
        [
            "heavy hitters alone are worse than H2O", "5.3 (Table 9)",
            f"KL {_range(rules[HEAVY])}", _agrees(found, rules[HEAVY]),
        ],
        [
            "without the heavy hitters the model breaks down", "3.2 (Fig. 2c)",
            f"KL {_range(removed['all'])} as without random tokens; the first token spared, "
            f"{_range(removed['but the first'])}",
            _agrees(found, [x for ratios in removed.values() for x in ratios]),
        ],
    ]  # fmt: skip
    return markdown.table(["the paper's claim", "section", "here", "agrees"], rows)


def _grade(value: float, yes: float, part: float) -> str:
    return "yes" if value >= yes else "in part" if value >= part else "no"


def _agrees(found: Findings, each: Sequence[Ratio], wanted: str = "more") -> str:
    """Whether all comparisons come out as a claim says, or some, or none."""
    if not can_tell(len(found.texts), 2 * len(found.budgets) + 1):
        return "too few texts"
    verdicts = [one.verdict for one in each]
    if all(one in wanted for one in verdicts):
        return "yes"
    if set(verdicts) == {"tie"}:
        return "tie"
    return "in part" if any(one in wanted for one in verdicts) else "no"


def _range(found: Sequence[Ratio]) -> str:
    means = [one.interval.mean for one in found]
    return f"{min(means):.3g} to {max(means):.3g} times as much"


# --- tables -----------------------------------------------------------------------------------


def _within(interval: Interval, digits: int = 2) -> str:
    """A mean with its interval; without one where there is one text."""
    if np.isnan(interval.low):
        return f"{interval.mean:.{digits}f}"
    return f"{interval.mean:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def _times(ratio: Ratio) -> str:
    x = ratio.interval
    within = f"{x.mean:.3g}×" if np.isnan(x.low) else f"{x.mean:.3g}× [{x.low:.3g}, {x.high:.3g}]"
    return f"{within}, tie" if ratio.verdict == "tie" else within


def _geometric(values: np.ndarray) -> str:
    x = mean_interval(values, geometric=True)
    return f"{x.mean:.3g}" if np.isnan(x.low) else f"{x.mean:.3g} [{x.low:.3g}, {x.high:.3g}]"


def _sparsity_table(found: Findings) -> str:
    mean, low, high = found.layer_means("sparsity")
    order = np.argsort(mean)
    rows = [
        [str(found.layers[i]), _within(Interval(mean[i], low[i], high[i]), 3)]
        for i in (*order[:3], order[len(order) // 2], *order[-3:])
    ]
    return markdown.table(["layer (three least, median, three most)", "sparsity"], rows)


def _tail_table(found: Findings) -> str:
    kinds = {"all values": "whole", "tail, Vuong": "tail", "tail, nested": "nested"}
    rows = [
        [f"{of}s", *(_within(found.favoured(of, kind)[0]) for kind in kinds.values())]
        for of in ("token", "item")
    ]
    return markdown.table(["scores of", *kinds], rows)


def _cooccurrence_table(found: Findings) -> str:
    words = {
        "pairs": "item's score and co-occurrence", "count": "item's score and frequency",
        "neighbours": "item's score and different items near it",
        "each": "score of an occurrence and co-occurrence",
    }  # fmt: skip
    rows = []
    for name, what in words.items():
        layers = found.layer_means(name)[0]
        reach = f"{layers.min():.2f} to {layers.max():.2f}"
        rows.append([what, _within(found.overall(name)), reach])
    return markdown.table(["Spearman's correlation", "all layers", "layer by layer"], rows)


def _policy_table(found: Findings, shares: Sequence[str]) -> str:
    rows = []
    for policy in (*RULES, *STATISTICS):
        for column, name in (("recall", "recall"), ("output_error", "output error"), ("kl", "KL")):
            numbers = found.measured[column][policy].T
            plain = column == "recall"
            cells = [_within(mean_interval(x), 3) if plain else _geometric(x) for x in numbers]
            rows.append([f"`{policy}`" if plain else "", name, *cells])
    return markdown.table(["policy", "", *shares], rows)


def _removal_table(found: Findings) -> str:
    rows = [[kind, *(_geometric(x) for x in found.removed[kind].T)] for kind in KINDS]
    return markdown.table(["KL without", *(f"{100 * s:g} %" for s in found.shares)], rows)


def _ratio_table(found: dict[str, list[Ratio]], columns: Sequence[str], head: str) -> str:
    rows = [[f"`{name}`", *(_times(one) for one in line)] for name, line in found.items()]
    return markdown.table([head, *columns], rows)
