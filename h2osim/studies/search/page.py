"""docs/which-policy.md and its figures, from the table of a search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from h2osim.report.statistics import Interval, holm, mean_interval, paired_p
from h2osim.report.which import memory_figure, split_figure
from h2osim.studies import markdown
from h2osim.support.errors import UserError
from h2osim.support.parameters import split_call

if TYPE_CHECKING:
    import pandas

Numbers = NDArray[np.float64]

GOALS = {0.05: 0.48, 0.1: 0.36, 0.2: 0.24}
"""KL as a share of h2o's at the same memory that was to be reached on SmolLM2."""
BASE = "h2o"
OTHERS = tuple(
    f"check {one}"
    for one in (
        "prompt 64", "prompt 512", "other cuts", "2048 tokens", "4096 tokens", "writing",
    )
)  # fmt: skip


class _Table:
    """A search's rows, by stage."""

    def __init__(self, frame: pandas.DataFrame):
        self.frame, self.winner = frame, str(frame["winner"].iloc[0])

    def stage(self, name: str) -> pandas.DataFrame:
        return self.frame[self.frame["stage"] == name]

    def values(
        self, stage: str, policy: str, split: str, budget: float, what: str = "kl"
    ) -> Numbers:
        """One number a text, in the order of their names."""
        rows = self.stage(stage)
        rows = rows[(rows["policy"] == policy) & (rows["split"] == split)]
        rows = rows[np.isclose(rows["budget"], budget)].sort_values("text")
        return rows[what].to_numpy(np.float64)


def write(frame: pandas.DataFrame, page: Path) -> None:
    """Write the page, and its figures into the folder of the page's name beside it."""
    table = _Table(frame)
    held = table.stage("held out")
    if held["text"].nunique() < 2:
        raise UserError(f"--page {page}: a table of fewer than two held-out texts has no interval")
    figures = {"memory": memory_figure(_lines(table)), "split": split_figure(_splits(table))}
    markdown.write(page, _page(table, page.stem), figures)


def _kinds(table: _Table) -> list[tuple[str, str, str]]:
    """Policy, split and what the page calls it; the winner first, in the order of the table."""
    rows = table.stage("held out")[["policy", "split"]].drop_duplicates()
    found = []
    for policy, split in rows.itertuples(index=False):
        word = "the winner" if policy == table.winner else f"`{policy}`"
        other = {("shared", True): "", ("equal", True): ", equal budgets",
                 ("shared", False): ", the winner's budgets", ("equal", False): ""}  # fmt: skip
        found.append((policy, split, word + other[split, policy == table.winner]))
    return sorted(found, key=lambda one: (one[0] != table.winner, one[1] == "equal"))


def _totals(table: _Table) -> list[float]:
    split = table.stage("held out")
    split = split[(split["policy"] == table.winner) & (split["split"] == "shared")]
    return [float(b) for b in sorted(split["budget"].unique())]


def _lines(table: _Table) -> dict[str, list[tuple[float, float, float, float]]]:
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for policy, split, name in _kinds(table):
        budgets = table.stage("held out")
        budgets = budgets[(budgets["policy"] == policy) & (budgets["split"] == split)]["budget"]
        for budget in sorted(budgets.unique()):
            one = mean_interval(table.values("held out", policy, split, budget), geometric=True)
            point = (float(budget), one.mean, one.low, one.high)
            found.setdefault(name.replace("`", ""), []).append(point)
    return found


def _splits(table: _Table) -> dict[float, Numbers]:
    rows = table.stage("split")
    return {
        float(total): part.pivot(index="layer", columns="unit", values="share").to_numpy()
        for total, part in rows.groupby("budget")
    }


def _percent(x: float) -> str:
    return f"{100 * x:g} %"


def _interval(one: Interval) -> str:
    return f"{one.mean:.3g} [{one.low:.3g}, {one.high:.3g}]"


def _ratio(table: _Table, stage: str, budget: float, other: float | None = None) -> Interval:
    """The winner's KL over h2o's on the same texts, h2o at another budget if given."""
    ours = table.values(stage, table.winner, "shared", budget)
    base = table.values(stage, BASE, "equal", budget if other is None else other)
    return mean_interval(ours / base, geometric=True)


def _held_out(table: _Table) -> str:
    totals, kinds = _totals(table), _kinds(table)
    rows = []
    for policy, split, name in kinds:
        cells = [name]
        for total in totals:
            values = table.values("held out", policy, split, total)
            cells.append(_interval(mean_interval(values, geometric=True)) if len(values) else "–")
        rows.append(cells)
    tests = []
    for total in totals:
        ours = table.values("held out", table.winner, "shared", total)
        p = {
            name: paired_p(ours, table.values("held out", policy, split, total))
            for policy, split, name in kinds if policy != table.winner and split == "equal"
        }  # fmt: skip
        corrected = holm(p)
        tests.append(f"at {_percent(total)} the largest p is {max(corrected.values()):.2g}")
    head = ["policy", *map(_percent, totals)]
    return (
        f"{markdown.table(head, rows)}\n\nThe winner against each policy with equal budgets, on "
        f"the same texts (sign-flip test, Holm's correction): {'; '.join(tests)}."
    )


def _goals(table: _Table) -> str:
    rows = []
    for total in _totals(table):
        one = _ratio(table, "held out", total)
        goal = GOALS.get(round(total, 6))
        said = "–" if goal is None else f"{goal:g}, {'reached' if one.mean <= goal else 'missed'}"
        rows.append([_percent(total), _interval(one), said])
    half = []
    for total in _totals(table):
        base = table.values("held out", BASE, "equal", 2 * total)
        if len(base):
            one = _ratio(table, "held out", total, 2 * total)
            half.append([_percent(2 * total), _percent(total), _interval(one)])
    return (
        markdown.table(["memory", "KL over `h2o`'s at the same memory", "goal"], rows)
        + "\n\nWith half of the memory:\n\n"
        + markdown.table(["`h2o` at", "the winner at", "the winner's KL over `h2o`'s"], half)
    )


def _answers(table: _Table) -> str:
    rows, totals = [], _totals(table)
    shares: dict[tuple[str, str], list[float]] = {}
    asked = table.stage("answers")
    known = set(asked[asked["full_exact"] == 1]["text"])
    for policy, split, name in _kinds(table):
        if not len(table.values("answers", policy, split, totals[0])):
            continue
        cells = [name]
        for total in totals:
            some = asked[(asked["policy"] == policy) & (asked["split"] == split)]
            some = some[np.isclose(some["budget"], total) & some["text"].isin(known)]
            shares.setdefault((policy, split), []).append(some["exact"].mean())
            cells.append(f"{100 * some['exact'].mean():.0f} %, {some['answer_logp'].mean():.1f}")
        rows.append(cells)
    ours, theirs = shares[table.winner, "shared"], shares[BASE, "equal"]
    both = zip(totals, ours, theirs, strict=True)
    worse = [_percent(total) for total, our, base in both if our < base]
    said = f"\n\nThe winner answers fewer than `{BASE}` at {', '.join(worse)}." if worse else ""
    return (
        "Prompts with an answer (`h2osim evaluate --task`: needle, pairs and facts, three depths): "
        f"{len(known)} of {asked['text'].nunique()} are answered with the full cache. Of these, "
        "the share still answered, and the answer's log-probability in nats. The question comes "
        "when most of the prompt is gone.\n\n"
        + markdown.table(["policy", *map(_percent, totals)], rows)
        + said
    )


def _checks(table: _Table) -> str:
    rows, totals = [], _totals(table)
    for stage in [s for s in table.frame["stage"].unique() if str(s).startswith("check")]:
        some = table.stage(stage)
        n, p = int(some["tokens"].max()), int(some["prompt_len"].iloc[0])
        cells = [f"{stage.removeprefix('check ')} ({some['text'].nunique()} of {n}, prompt {p})"]
        for total in totals:
            cell = _interval(_ratio(table, stage, total))
            if stage.endswith("writing"):
                ours, base = (
                    table.values(stage, *one, total, "agreement").mean()
                    for one in ((table.winner, "shared"), (BASE, "equal"))
                )
                cell += f"; agrees for {ours:.0f} tokens ({base:.0f})"
            cells.append(cell)
        rows.append(cells)
    if not rows:
        return "No other lengths were run (`--checks`)."
    left = [one for one in OTHERS if one not in set(table.frame["stage"])]
    words = ", ".join(one.removeprefix("check ") for one in left)
    missing = f"\n\nNot run for this page: {words}." if left else ""
    return (
        "The winner's KL over `h2o`'s at the same memory on pieces of the held-out texts joined, "
        "with the same budgets as shares; of writing also the tokens before the first that the "
        f"full cache would not have written (`h2o`'s).\n\n"
        f"{markdown.table(['pieces', *map(_percent, totals)], rows)}{missing}"
    )


def _search(table: _Table) -> str:
    rows = table.stage("open loop")
    wide = rows.pivot_table(index="policy", columns="budget", values="predicted")
    wide = wide.loc[np.log(wide).mean(axis=1).sort_values().index]
    best = [[f"`{name}`", *(f"{x:.3g}" for x in row)] for name, *row in wide.head(5).itertuples()]
    return (
        f"{len(wide)} settings were measured open loop. The best five, and the KL to first order "
        "that their shared budgets would lose on the training texts:\n\n"
        + markdown.table(["setting", *map(_percent, wide.columns)], best)
    )


def _rule(table: _Table) -> str:
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


def _page(table: _Table, folder: str) -> str:
    held = table.stage("held out")
    genres = sorted(set(held["genre"].dropna()) - {""})
    trained = sorted(table.stage("train")["text"].dropna().unique())
    n, p = int(held["tokens"].max()), int(held["prompt_len"].iloc[0])
    first = table.frame.iloc[0]
    totals = ",".join(f"{100 * total:g}%" for total in _totals(table))
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
prompt {p}; searched and shared out on {len(trained) or "other"} others ({", ".join(trained)}). KL,
geometric mean over texts with 95 % bootstrap intervals; the total memory of a column is the same
in every row.

{_held_out(table)}

{_goals(table)}

![KL against memory, a line a policy]({folder}/memory.png)

## Answers

{_answers(table)}

## Other lengths and texts

{_checks(table)}

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
the convex hulls.

## The search

{_search(table)}

## Limits

One model of 135 million parameters; the budgets are its own, and another model needs its own search
(the commands above with another name). Texts of at most a few thousand tokens. What only a later
question makes important is lost by every policy here. The budgets are fixed before the prompt is
known. What an oracle loses with equal budgets is in [fidelity.md](fidelity.md) (`future`); how much
an oracle with a split of its own would win was not measured.
"""


def _made(table: _Table, folder: str) -> str:
    return f"""```sh
h2osim study texts study-texts
{table.frame["command"].iloc[0]}
h2osim search --from docs/{folder}/results.csv.gz --page docs/{folder}.md
```

{markdown.made(table.frame)}""".rstrip()
