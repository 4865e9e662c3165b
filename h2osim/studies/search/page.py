"""docs/which-policy.md and its figures, from the table of a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2osim.report.statistics import mean_interval
from h2osim.report.which import memory_figure, split_figure
from h2osim.studies import markdown
from h2osim.studies.search import tables
from h2osim.studies.search.tables import BASE, Numbers, Table
from h2osim.support.errors import UserError
from h2osim.support.parameters import split_call

if TYPE_CHECKING:
    import pandas


def write(frame: pandas.DataFrame, page: Path) -> None:
    """Write the page, and its figures into the folder of the page's name beside it."""
    table = Table(frame)
    held = table.stage("held out")
    if held["text"].nunique() < 2:
        raise UserError(f"--page {page}: a table of fewer than two held-out texts has no interval")
    figures = {"memory": memory_figure(_lines(table)), "split": split_figure(_splits(table))}
    markdown.write(page, _page(table, page.stem), figures)


def _lines(table: Table) -> dict[str, list[tuple[float, float, float, float]]]:
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for policy, split, name in tables.kinds_of(table):
        budgets = table.stage("held out")
        budgets = budgets[(budgets["policy"] == policy) & (budgets["split"] == split)]["budget"]
        for budget in sorted(budgets.unique()):
            one = mean_interval(table.values("held out", policy, split, budget), geometric=True)
            point = (float(budget), one.mean, one.low, one.high)
            found.setdefault(name.replace("`", ""), []).append(point)
    return found


def _splits(table: Table) -> dict[float, Numbers]:
    rows = table.stage("split")
    return {
        float(total): part.pivot(index="layer", columns="unit", values="share").to_numpy()
        for total, part in rows.groupby("budget")
    }


def _rule(table: Table) -> str:
    """The winner's rule in plain Python."""
    name, _ = split_call(table.winner, "policy")
    if name != "two-speed":
        return f"`h2osim policies {name}` shows the rule."
    from h2osim.policies.text import parse

    v: dict[str, Any] = dict(parse(table.winner).values)
    join = "max(lasting[j], current[j])" if v["join"] == "max" else "(lasting[j] + current[j])"
    value = f" * l1_norm(value[j]) ** {v['value']:g}" if v["value"] else ""
    heads = "max" if v.get("heads") == "max" else "sum"
    power = " ** 2" if v["power"] == 2 else ""
    return f"""```python
for j in cache:  # after each row; one cache and one budget k for each KV group
    a = {heads}(row[h][j] for h in group_heads){power}  # rows renormalised over the cache
    slow[j] = {v["gamma"]:g} * slow[j] + a  # all three start at 0
    seen[j] = {v["gamma"]:g} * seen[j] + 1
    quick[j] = {v["fast"]:g} * quick[j] + a
while len(cache) > k:
    recent = floor({float(v["recent"]):g} * k)  # the newest tokens are safe
    old = [j for j in cache if t - j >= recent and j >= {v["sinks"]}]
    lasting = {{j: {1 - v["mix"]:g} * slow[j] / (seen[j] + {v["prior"]:g}) for j in old}}
    current = {{j: {v["mix"] * (1 - v["fast"]):g} * quick[j] for j in old}}
    evict(min(old, key=lambda j: {join}{value}))
```"""


def _page(table: Table, folder: str) -> str:
    held = table.stage("held out")
    genres = sorted(set(held["genre"].dropna()) - {""})
    first = table.frame.iloc[0]
    trained = first.get("trained") or ", ".join(sorted(table.stage("train")["text"].unique()))
    n, p = int(held["tokens"].max()), int(held["prompt_len"].iloc[0])
    totals = ",".join(f"{100 * total:g}%" for total in tables.totals_of(table))
    words = f"h2osim evaluate {first['command'].split()[2]} --text A.txt B.txt"
    return f"""# Which policy

<!-- Written by `h2osim search --from docs/{folder}/results.csv.gz --page docs/{folder}.md`. -->

What should a cache keep, and how much of it in which layer? This page is the answer of a search on
{first["model"]}: one rule, and one budget for each KV group. All numbers but those of the search
itself are the *closed loop*'s: the model runs without what was evicted, and loses KL against
itself with the full cache, in nats a token ([closed-loop.md](closed-loop.md)).

{_made(table, folder)}

The winner is `{table.winner}`
with its budget shared out over layers and KV groups by first-order KL
([below](#where-the-memory-goes)). On texts of your own:

```sh
{words} -p '{table.winner}' -b @docs/{folder}/budgets.json
{words} -p {BASE} -b {totals}
```

## On texts it has not seen

{held["text"].nunique()} texts of {len(genres)} genres ({", ".join(genres)}), {n} tokens,
prompt {p}; searched and shared out on {len(trained.split(", "))} others ({trained}). KL,
geometric mean over texts with 95 % bootstrap intervals; the total memory of a column is the same
in every row.

{tables.held_out(table)}

{tables.goals(table)}

![KL against memory, a line a policy]({folder}/memory.png)

## Answers

{tables.answers(table)}

## Other lengths and texts

{tables.checks(table)}

## The rule

{_rule(table)}

Its state is three numbers a cached token where `h2o` has one (`seen` depends on the age alone, so
two would do), 12 bytes against 4 in float32 beside the 256 of a key and a value of 64 float16
numbers each; its step is some ten operations a cached token and KV group against one addition,
beside the 256 and more that attending it takes.

## Where the memory goes

![Budgets over their mean, by layer and KV group]({folder}/split.png)

Each unit's loss at each budget is its *first-order KL*: what the model's prediction loses to second
order in the error of that unit's output alone, from four backward passes of the uncompressed run
(`h2osim/closed_loop/first_order.py`). These losses have one unit in all layers, so they can be
weighed against each other; the errors of outputs, which other splits go by, cannot. Each text
counts by its loss over what it loses with equal budgets. The slots go to the steepest descents of
the convex hulls.{tables.tuning(table)}

## What is left to win

{tables.left(table)}

## The search

{tables.settings(table)}

## Limits

One model of 135 million parameters; the budgets are its own, and another model needs its own search
(the commands above with another name). Texts of at most a few thousand tokens. What only a later
question makes important is lost by every policy here. The budgets are fixed before the prompt is
known.

## To repeat at scale

All of it, on one GPU and 16 cores; it goes on where it is stopped:

```sh
{_at_scale(first["command"], folder)}
```
"""


def _at_scale(command: str, folder: str) -> str:
    """The search with 500 settings, a tuned split, every check and what is left."""
    model = command.split()[2]
    return (
        f"h2osim study texts study-texts\nh2osim search {model} --texts study-texts --trials 500 "
        "--at-once 16 --finalists 8 --objective both --answers 0.2 --tune 60 --prompts 6 "
        "--checks prompts,cuts,lengths,writing --left 16 --device cuda -j 16 --store search-scale "
        f"-o docs/{folder}/results.csv.gz --split docs/{folder}/budgets.json "
        f"--page docs/{folder}.md"
    )


def _made(table: Table, folder: str) -> str:
    return f"""```sh
h2osim study texts study-texts
{table.frame["command"].iloc[0]}
h2osim search --from docs/{folder}/results.csv.gz --page docs/{folder}.md
```

{markdown.made(table.frame)}""".rstrip()
