"""docs/fidelity.md and its figures, from the study's table."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from h2osim.closed_loop.measures import MEASURES
from h2osim.report.fidelity import correlation_figure, scatter_figure
from h2osim.studies import markdown
from h2osim.studies import texts as sources
from h2osim.studies.correlating import LAYERS, LOGS, Found, correlate, ordered, within

if TYPE_CHECKING:
    import pandas

GOAL = 0.95
GAPS = (1.0, 1.1, 1.3, np.inf)
SHOWN = ("recall", "attention_error", "output_error", "residual_error")


def write(frame: pandas.DataFrame, page: Path) -> None:
    """Write the page, and its figures into the folder of the page's name beside it."""
    found = correlate(frame)
    names = list(dict.fromkeys([*SHOWN, found.chosen]))
    middle = len(found.budgets) // 2
    good = [p for p, is_good in zip(found.policies, found.good, strict=True) if is_good]
    scatter = scatter_figure(
        found.kl[:, found.good, middle],
        {name: found.losses[name][:, found.good, middle] for name in names},
        good, f"{found.budgets[middle]:.0%}",
    )  # fmt: skip
    curves = {name: _curve(found, name) for name in dict.fromkeys([*names, LAYERS, LOGS])}
    correlation = correlation_figure(found.budgets, curves)
    markdown.write(
        page, text(frame, found, page.stem), {"scatter": scatter, "correlation": correlation}
    )


def _curve(found: Found, name: str) -> list[tuple[float, float, float]]:
    points = [found.interval(name, b, found.reported) for b in range(len(found.budgets))]
    return [(one.mean, one.low, one.high) for one in points]


def text(frame: pandas.DataFrame, found: Found, folder: str) -> str:
    """The page."""
    shares = [f"{100 * budget:g} %" for budget in found.budgets]
    middle, half, chosen = shares[_at_20(found)], found.reported, f"`{found.chosen}`"
    genres = Counter({one.name: one.genre for one in sources.listed()}[t] for t in found.texts)
    kinds = ", ".join(f"{number} {genre}" for genre, number in genres.items())
    model, tokens, prompt_len = frame[["model", "tokens", "prompt_len"]].iloc[0]
    numbers = found.correlations(found.chosen)[half].mean(axis=0)
    reached = "reaches" if (numbers >= GOAL).all() else "does not reach"
    results = f"docs/{folder}/results.csv.gz"
    return f"""# Fidelity: which measure predicts what a model loses

<!-- Written by `h2osim study fidelity --from {results} --page docs/{folder}.md`. -->

A replay decides on the attention of a model that loses nothing. This page says how well what it
measures there orders policies as the *closed loop* does, in which the model runs without the keys
that were evicted: KL of the next token's prediction, full cache against evicted cache, in nats a
token.

{model}, {len(found.texts)} texts ({kinds};
`h2osim/studies/texts.toml` names package, licence and sha256 of each), {tokens} tokens of which
{prompt_len} are the prompt, every layer and KV group evicting at the same budget. `tova@layer`
shares a cache among all heads of a layer. `future` is an oracle: the model runs without what it
evicted on the uncompressed run. *Good* policies are all but the oracle, `recency` and `random`.

```sh
h2osim study texts study-texts
h2osim study fidelity smollm2 --texts study-texts --jobs 16 --store study-store -o {results}
h2osim study fidelity --from {results} --page docs/{folder}.md
```

## What the closed loop loses

KL, geometric mean over texts; last column: recall of the uncompressed run at {middle}.

{_kl_table(found, shares)}

## How well each measure orders the good policies

Spearman's correlation with KL over the {int(found.good.sum())} good policies within one text, mean
over the {len(range(len(found.texts))[half])} texts of the reporting half, with bootstrap intervals
of level .95 over texts. The other half chose the measure ({chosen}, the largest mean correlation
there) and fitted the two that are fitted. *All*: over all policies at {middle}. *Of means*: the
correlation of geometric means over the texts, least over budgets. *Price*: how much more KL than
the best has the policy that the measure finds best.

{_correlation_table(found, shares)}

![Correlation with KL against budget, a line a measure, with intervals]({folder}/correlation.png)

![KL against each measure, a point a text and policy]({folder}/scatter.png)

The goal is a measure of the uncompressed run with a correlation of {GOAL} at every budget. The
measure chosen, {chosen}, {reached} it: {_by_budget(numbers, shares)}. Of all in the table,
`{ordered(found, half)[0]}` has the largest mean on the reporting half: what hindsight would choose.

What the measures are: `recall`, `output_error`, `output_error_abs` and `attention_error` as in
[output-error.md](output-error.md); {_meanings()}. `{LAYERS}` is a sum of the layers' squared
residual errors with weights of at least 0, `{LOGS}` a linear form in the logarithms of all the
measures.

## Where they mislead

The pair of good policies that a measure puts in the wrong order most often at {middle}, all texts;
the ratio is that of their KL, geometric mean over the texts where the order is wrong.

{_misled_table(found)}

## What stands in the way

Policies that hardly differ are hard to order. Share of pairs of good policies that {chosen}
orders as KL does, by how much their KL differs on that text (reporting half):

{_gap_table(found, shares)}

A text of this length does not settle the order by itself either: KL in half of its steps (every
other window of 32) orders the good policies as KL in the other half does with a correlation of
{_by_budget(found.reliability(), shares)}. Task accuracy was not part of this study.
"""


def _by_budget(numbers: np.ndarray, shares: Sequence[str]) -> str:
    return ", ".join(f"{x:.2f} at {share}" for x, share in zip(numbers, shares, strict=True))


def _at_20(found: Found) -> int:
    return int(np.argmin(np.abs(np.array(found.budgets) - 0.2)))


def _kl_table(found: Found, shares: Sequence[str]) -> str:
    kl = np.exp(np.log(found.kl).mean(axis=0))
    recall = 1 - found.losses["recall"].mean(axis=0)[:, _at_20(found)]
    order = sorted(range(len(kl)), key=lambda i: kl[i, _at_20(found)])
    rows = [
        [f"`{found.policies[i]}`", *(f"{x:.3g}" for x in kl[i]), f"{recall[i]:.3f}"] for i in order
    ]
    return markdown.table(["policy", *shares, "recall"], rows)


def _correlation_table(found: Found, shares: Sequence[str]) -> str:
    rows, half = [], found.reported
    for name in ordered(found, half):
        at = range(len(shares))
        rows.append(
            [
                f"**`{name}`**" if name == found.chosen else f"`{name}`",
                *(within(found.interval(name, b, half)) for b in at),
                f"{found.interval(name, _at_20(found), half, good=False).mean:.2f}",
                f"{found.of_means(name, half).min():.2f}",
                f"{100 * found.price(name, half):.1f} %",
            ]
        )
    return markdown.table(["measure", *shares, "all", "of means", "price"], rows)


def _meanings() -> str:
    known = {"output_error", "output_error_abs", "attention_error"}
    return "; ".join(f"`{name}`: {what}" for name, what in MEASURES.items() if name not in known)


def _misled_table(found: Found) -> str:
    b, rows = _at_20(found), []
    good = [int(i) for i in np.flatnonzero(found.good)]
    for name in dict.fromkeys([*SHOWN, found.chosen]):
        loss, kl = found.losses[name][..., b], found.kl[..., b]

        def wrong(
            pair: tuple[int, int], loss: np.ndarray = loss, kl: np.ndarray = kl
        ) -> np.ndarray:
            i, j = pair
            return (loss[:, i] < loss[:, j]) & (kl[:, i] > kl[:, j])

        pair = max(itertools.permutations(good, 2), key=lambda pair: int(wrong(pair).sum()))
        i, j = pair
        where = wrong(pair)
        ratio = np.exp(np.log(kl[where, i] / kl[where, j]).mean()) if where.any() else 1.0
        rows.append(
            [
                f"`{name}`", f"`{found.policies[i]}`", f"`{found.policies[j]}`",
                f"{int(where.sum())} of {len(where)}", f"{ratio:.2f}",
            ]
        )  # fmt: skip
    return markdown.table(["measure", "prefers", "to", "texts", "KL ratio"], rows)


def _gap_table(found: Found, shares: Sequence[str]) -> str:
    half = found.reported
    log_kl = np.log(found.kl[half][:, found.good])
    loss = found.losses[found.chosen][half][:, found.good]
    i, j = np.triu_indices(log_kl.shape[1], 1)
    gap = np.exp(np.abs(log_kl[:, i] - log_kl[:, j]))
    right = (log_kl[:, i] < log_kl[:, j]) == (loss[:, i] < loss[:, j])
    rows = []
    for low, high in itertools.pairwise(GAPS):
        word = f"above {low:g}" if high == np.inf else f"{low:g} to {high:g}"
        cells = []
        for b in range(len(shares)):
            here = (gap[..., b] >= low) & (gap[..., b] < high)
            share = f"{right[..., b][here].mean():.2f}" if here.any() else "–"
            cells.append(f"{share} of {int(here.sum())}")
        rows.append([word, *cells])
    return markdown.table(["ratio of KL", *shares], rows)
