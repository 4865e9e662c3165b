"""docs/fidelity.md and its figures, from the study's table."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from h2osim.closed_loop.measures import CARRIED, MEASURES
from h2osim.report.fidelity import correlation_figure, scatter_figure
from h2osim.studies import fidelity_tables as tables
from h2osim.studies import markdown
from h2osim.studies import texts as sources
from h2osim.studies.answering import Answers, answers
from h2osim.studies.correlating import CEILING, LAYERS, LOGS, ONE_RUN, Found, correlate, ordered
from h2osim.studies.fidelity import PROMPT_TOKENS
from h2osim.support.errors import UserError

if TYPE_CHECKING:
    import pandas

GOAL = 0.95
NO_TASKS = " Answers to prompts are not in this table yet."
SHOWN = ("recall", "output_error", "residual_error", ONE_RUN, "carried_kl")


def write(frame: pandas.DataFrame, page: Path) -> None:
    """Write the page, and its figures into the folder of the page's name beside it."""
    asked = frame["full_exact"].notna() if "full_exact" in frame else frame["kl"].isna()
    if frame[~asked]["text"].nunique() < 4:
        raise UserError(f"--page {page}: a table of fewer than four texts says nothing of measures")
    found = correlate(frame[~asked], carried="carried_kl" in frame)
    answered = answers(frame[asked], found.kl) if asked.any() else None
    shown = [*SHOWN, found.chosen, CEILING]
    names = [name for name in dict.fromkeys(shown) if name in found.losses]
    b = tables.at_20(found.budgets)
    good = [p for p, is_good in zip(found.policies, found.good, strict=True) if is_good]
    scatter = scatter_figure(
        found.kl[:, found.good, b],
        {name: found.losses[name][:, found.good, b] for name in names},
        good, f"{found.budgets[b]:.0%}",
    )  # fmt: skip
    curves = {name: _curve(found, name) for name in names}
    correlation = correlation_figure(found.budgets, curves)
    markdown.write(
        page, text(frame[~asked], found, answered, page.stem),
        {"scatter": scatter, "correlation": correlation},
    )  # fmt: skip


def _curve(found: Found, name: str) -> list[tuple[float, float, float]]:
    points = [found.interval(name, b, found.reported) for b in range(len(found.budgets))]
    return [(one.mean, one.low, one.high) for one in points]


def _by_budget(numbers: np.ndarray, found: Found) -> str:
    shares = tables.shares(found.budgets)
    return ", ".join(f"{x:.2f} at {share}" for x, share in zip(numbers, shares, strict=True))


def _meanings() -> str:
    known = {"output_error", "output_error_abs", "attention_error"}
    every = (MEASURES | CARRIED).items()
    return "\n".join(f"* `{name}`: {what}" for name, what in every if name not in known)


def _tasks(answered: Answers, texts: int) -> str:
    asked = ", ".join(
        f"{kind} {int((answered.kinds == kind).sum())} of {number}"
        for kind, number in answered.asked.items()
    )
    best = (1 - answered.wrong[:, answered.good].mean(axis=0)).max(axis=0)
    return f"""## Tasks

Prompts of {PROMPT_TOKENS} tokens with an answer, made by h2osim (`h2osim evaluate --task`): a
number in prose (`needle`), one of a list of keys and values (`pairs`), who lives where (`facts`),
at evenly spread depths. Counted are those that the full cache answers: {asked}. Every measure is
that of the prompt's own uncompressed run; `kl` is the closed loop's on the prompt, `kl on the
texts` the geometric mean of the {texts} texts.

Spearman's correlation over the good policies of a measure with the log-probability that the answer
loses, mean over prompts, with bootstrap intervals of level .95 over prompts; last column: of its
geometric mean with the share of wrong answers, at the largest budget.

{tables.answer_table(answered)}

By kind of prompt, at 20 %:

{tables.kind_table(answered, [*SHOWN, "kl", "kl on the texts"])}

The question comes after the prompt, when most of it is gone. No good policy answers more than
{best[0]:.0%} of these prompts at the least budget and {best[-1]:.0%} at the largest, so exact match
hardly orders them; what the answer's probability loses does. KL on the same prompt predicts that
best, KL on other texts next to nothing: what a policy loses of prose says little of whether it
keeps the one token that will be asked for.

Answered prompts in per cent, at {"/".join(tables.shares(answered.budgets))}:

{tables.accuracy_table(answered)}

"""


def text(frame: pandas.DataFrame, found: Found, answered: Answers | None, folder: str) -> str:
    """The page."""
    genres = Counter({one.name: one.genre for one in sources.listed()}[t] for t in found.texts)
    kinds = ", ".join(f"{number} {genre}" for genre, number in genres.items())
    model, digest, tokens, prompt_len = frame[
        ["model", "model_sha256", "tokens", "prompt_len"]
    ].iloc[0]
    half, chosen = found.reported, f"`{found.chosen}`"
    mean = found.correlations(found.chosen)[half].mean(axis=0)
    means = np.array([one.mean for one in found.of_means(found.chosen, half)])
    reached = "reaches" if (mean >= GOAL).all() else "does not reach"
    best = ordered(found, half)[0]
    results = f"docs/{folder}/results.csv.gz"
    short = [
        "recall",
        "output_error",
        "residual_error",
        ONE_RUN,
        "carried_kl",
        found.chosen,
        CEILING,
    ]
    shown = list(dict.fromkeys([found.chosen, *SHOWN[::-1], CEILING]))
    return f"""# Fidelity: which measure predicts what a model loses

<!-- Written by `h2osim study fidelity --from {results} --page docs/{folder}.md`. -->

A replay decides on the attention of a model that loses nothing. This page says how well what it
measures there orders policies as the *closed loop* does, in which the model runs without the keys
that were evicted: KL of the next token's prediction, full cache against evicted cache, in nats a
token.

The model is {model} (sha256 `{digest}`). {len(found.texts)} texts ({kinds}; listed at the end),
{tokens} tokens of which {prompt_len} are the prompt, every layer and KV group evicting at the same
budget. `tova@layer` shares a cache among all heads of a layer. `future` is an oracle: the model
runs without what it evicted on the uncompressed run. *Good* policies are all but the oracle,
`recency` and `random`.

```sh
h2osim study texts study-texts
h2osim study fidelity smollm2 --texts study-texts -j 32 --device cuda --store study -o {results}
h2osim study fidelity --from {results} --page docs/{folder}.md
```

The first two lines make the table (`--device cpu` does it without a GPU, in some hours), the third
this page from it.

{markdown.made(frame)}## In short

Correlation with KL over the good policies, mean over texts on which nothing was chosen or fitted:

{tables.short_table(found, short)}

The measure that the other texts chose, {chosen}, {reached} {GOAL} at every budget. Of geometric
means over the texts it orders the policies with a correlation of {_by_budget(means, found)}.
`{CEILING}` is no measure: the model itself runs with what the policies evict on the uncompressed
run. What knows only those evictions can hardly be expected to do much better text by text.
{"" if answered else NO_TASKS}

## What the closed loop loses

KL, geometric mean over texts; last column: recall of the uncompressed run at 20 %.

{tables.kl_table(found)}

## How well each measure orders the good policies

Spearman's correlation with KL over the {int(found.good.sum())} good policies within one text (tied
policies share a rank), mean over the {len(found.texts[half])} texts of the reporting half, with
bootstrap intervals of level .95 over texts. The other half chose the measure ({chosen}, the largest
mean correlation there) and fitted those that are fitted. *All*: over all policies at 20 %. *Price*:
how much more KL than the best has the policy that the measure finds best.

{tables.correlation_table(found)}

![Correlation with KL against budget, a line a measure, with intervals]({folder}/correlation.png)

![KL against each measure, a point a text and policy]({folder}/scatter.png)

With hindsight, `{best}` has the largest mean on the reporting half. `recall`, `output_error`,
`output_error_abs` and `attention_error` are those of [output-error.md](output-error.md). The
others:

{_meanings()}
* `{LAYERS}`: a sum of the layers' squared residual errors with weights of at least 0, fitted to KL
* `{ONE_RUN}`, `{LOGS}`: linear forms in the logarithms of the measures that need one run, and of
  all, fitted to the logarithm of KL
* `{CEILING}`: no measure of the uncompressed run: KL of the model that runs with what the policies
  evict there

`{"`, `".join(CARRIED)}` and `{CEILING}` need a pass of the model for each policy and budget, about
as long as the closed loop's own or longer, and were measured of the good policies. Those before
need one run for all policies and budgets.

### Means over the texts

The same correlation of geometric means over the reporting half, with intervals over texts. After
it: of the pairs of good policies whose KL differs beyond doubt on these texts (sign-flip test,
corrected for their number), how many the measure orders as KL does.

{tables.means_table(found, shown)}

{_tasks(answered, len(found.texts)) if answered else ""}## Where they mislead

The pair of good policies that a measure puts in the wrong order most often at 20 %, on all texts;
the ratios are those of the measure and of KL, geometric mean over texts where the order is wrong.

{tables.misled_table(found)}

The same seen from the policies: KL over what a measure lets expect (a power of the measure, fitted
to all texts) at 20 %, geometric mean over texts. Above 1 the model loses more than it says.

{tables.factor_table(found)}

Why, in numbers at 20 %. *First order* is `gradient_token`; *layers together / apart* its ratio to
`gradient_alone`, in which the layers' errors are independent.

{tables.cause_table(found)}

* `recall` and `value_recall` add up mass, so that many tiny losses count like one large one of the
  same sum: `tova` loses less mass than `h2o` and more of the output, `streaming` loses by far the
  most mass and not the most KL.
* `output_error_abs` counts every head's error by its own length, large in the lowest layers, where
  it hardly matters: the residual error leaves the lowest two out, and divides by the stream.
* `attention_error`, `output_error` and `residual_error` count the errors of all layers alike and as
  if they had nothing to do with each other. Those of `streaming` fall on layers where they matter
  little and hardly add up over layers; those of the other policies reinforce each other.
* First-order measures follow errors upwards but stop at the second order. What is missing differs
  between policies: see the last column.
* `gradient_window` and `gradient_joint` estimate sums over many tokens from eight random
  directions: chance alone moves them, which means over texts (above) show.

## What stands in the way

**Policies that hardly differ.** Share of pairs of good policies that {chosen} orders as KL does, by
how much their KL differs on that text (reporting half):

{tables.gap_table(found)}

Were a measure KL itself with log-normal noise of this standard deviation, its correlation would be

{tables.noise_table(found)}

so {GOAL} asks for KL within some five per cent, text by text. This far log KL strays from a power
of a measure (standard deviation over policies and texts). `{CEILING}` strays because the running
policies decide by other rows; what `carried_kl` strays more is beyond the first order:

{tables.spread_table(found, shown)}

**A text of this length does not settle the order by itself.** KL in half of its steps (every other
window of 32) orders the good policies as KL in the other half does with a correlation of
{_by_budget(found.reliability(), found)}.

## The texts

{tables.sources_table(found.texts)}
"""
