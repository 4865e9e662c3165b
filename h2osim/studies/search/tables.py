"""The tables of a search's page, from the search's table."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from h2osim.report.statistics import Interval, holm, mean_interval, paired_p
from h2osim.studies import markdown

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


class Table:
    """A search's rows, by stage."""

    def __init__(self, frame: pandas.DataFrame):
        self.frame, self.winner = frame, str(frame["winner"].iloc[0])

    def stage(self, name: str) -> pandas.DataFrame:
        """The rows of a stage."""
        return self.frame[self.frame["stage"] == name]

    def values(
        self, stage: str, policy: str, split: str, budget: float, what: str = "kl"
    ) -> Numbers:
        """One number a text, in the order of their names."""
        rows = self.stage(stage)
        rows = rows[(rows["policy"] == policy) & (rows["split"] == split)]
        rows = rows[np.isclose(rows["budget"], budget)].sort_values("text")
        return rows[what].to_numpy(np.float64)


def kinds_of(table: Table) -> list[tuple[str, str, str]]:
    """Policy, split and what the page calls it; the winner first, in the order of the table."""
    rows = table.stage("held out")[["policy", "split"]].drop_duplicates()
    found = []
    for policy, split in rows.itertuples(index=False):
        word = "the winner" if policy == table.winner else f"`{policy}`"
        other = {("shared", True): "", ("equal", True): ", equal budgets",
                 ("shared", False): ", the winner's budgets", ("equal", False): ""}  # fmt: skip
        found.append((policy, split, word + other[split, policy == table.winner]))
    return sorted(found, key=lambda one: (one[0] != table.winner, one[1] == "equal"))


def totals_of(table: Table) -> list[float]:
    """The mean budgets that the winner has a split for."""
    split = table.stage("held out")
    split = split[(split["policy"] == table.winner) & (split["split"] == "shared")]
    return [float(b) for b in sorted(split["budget"].unique())]


def percent(x: float) -> str:
    """A share in words."""
    return f"{100 * x:g} %"


def interval(one: Interval) -> str:
    """A mean and its interval in words."""
    return f"{one.mean:.3g} [{one.low:.3g}, {one.high:.3g}]"


def ratio(table: Table, stage: str, budget: float, other: float | None = None) -> Interval:
    """The winner's KL over h2o's on the same texts, h2o at another budget if given."""
    ours = table.values(stage, table.winner, "shared", budget)
    base = table.values(stage, BASE, "equal", budget if other is None else other)
    return mean_interval(ours / base, geometric=True)


def held_out(table: Table) -> str:
    """KL of every policy on held-out texts, and the paired tests."""
    totals, kinds = totals_of(table), kinds_of(table)
    rows = []
    for policy, split, name in kinds:
        cells = [name]
        for total in totals:
            values = table.values("held out", policy, split, total)
            cells.append(interval(mean_interval(values, geometric=True)) if len(values) else "–")
        rows.append(cells)
    tests = []
    for total in totals:
        ours = table.values("held out", table.winner, "shared", total)
        p = {
            name: paired_p(ours, table.values("held out", policy, split, total))
            for policy, split, name in kinds if policy != table.winner and split == "equal"
        }  # fmt: skip
        corrected = holm(p)
        tests.append(f"at {percent(total)} the largest p is {max(corrected.values()):.2g}")
    head = ["policy", *map(percent, totals)]
    return (
        f"{markdown.table(head, rows)}\n\nThe winner against each policy with equal budgets, on "
        f"the same texts (sign-flip test, Holm's correction): {'; '.join(tests)}."
    )


def goals(table: Table) -> str:
    """The winner's KL over h2o's, at the same memory and at half of it."""
    rows = []
    for total in totals_of(table):
        one = ratio(table, "held out", total)
        goal = GOALS.get(round(total, 6))
        said = "–" if goal is None else f"{goal:g}, {'reached' if one.mean <= goal else 'missed'}"
        rows.append([percent(total), interval(one), said])
    half = []
    for total in totals_of(table):
        base = table.values("held out", BASE, "equal", 2 * total)
        if len(base):
            one = ratio(table, "held out", total, 2 * total)
            half.append([percent(2 * total), percent(total), interval(one)])
    return (
        markdown.table(["memory", "KL over `h2o`'s at the same memory", "goal"], rows)
        + "\n\nWith half of the memory:\n\n"
        + markdown.table(["`h2o` at", "the winner at", "the winner's KL over `h2o`'s"], half)
    )


def answers(table: Table) -> str:
    """How many prompts are answered, and whether the winner falls behind."""
    rows, totals = [], totals_of(table)
    shares: dict[tuple[str, str], list[float]] = {}
    asked = table.stage("answers")
    known = set(asked[asked["full_exact"] == 1]["text"])
    for policy, split, name in kinds_of(table):
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
    worse = [percent(total) for total, our, base in both if our < base]
    said = f"\n\nThe winner answers fewer than `{BASE}` at {', '.join(worse)}." if worse else ""
    leads = [
        f"{100 * one.mean:+.0f} [{100 * one.low:.0f}, {100 * one.high:.0f}] at {percent(total)}"
        for total in totals
        for one in [_lead(table, known, total)]
    ]
    said += (
        f"\n\nThe winner's share less `{BASE}`'s, in points of a hundred, with 95 % bootstrap "
        f"intervals over prompts: {', '.join(leads)}."
    )
    return (
        "Prompts with an answer (`h2osim evaluate --task`: needle, pairs and facts, three depths): "
        f"{len(known)} of {asked['text'].nunique()} are answered with the full cache. Of these, "
        "the share still answered, and the answer's log-probability in nats. The question comes "
        "when most of the prompt is gone.\n\n"
        + markdown.table(["policy", *map(percent, totals)], rows)
        + said
    )


def _lead(table: Table, known: Collection[str], total: float) -> Interval:
    """The share of prompts that the winner answers, less what h2o answers."""
    some = table.frame["text"].isin(known)
    only = Table(table.frame[some | (table.frame["stage"] != "answers")])
    ours = only.values("answers", table.winner, "shared", total, "exact")
    return mean_interval(ours - only.values("answers", BASE, "equal", total, "exact"))


def checks(table: Table) -> str:
    """The winner's KL over h2o's on other texts, lengths and prompts."""
    rows, totals = [], totals_of(table)
    for stage in [s for s in table.frame["stage"].unique() if str(s).startswith("check")]:
        some = table.stage(stage)
        n, p = int(some["tokens"].max()), int(some["prompt_len"].iloc[0])
        cells = [f"{stage.removeprefix('check ')} ({some['text'].nunique()} of {n}, prompt {p})"]
        for total in totals:
            cell = interval(ratio(table, stage, total))
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
        f"{markdown.table(['pieces', *map(percent, totals)], rows)}{missing}"
    )


def settings(table: Table) -> str:
    """The best settings of the open loop."""
    rows = table.stage("open loop")
    wide = rows.pivot_table(index="policy", columns="budget", values="predicted")
    wide = wide.loc[np.log(wide).mean(axis=1).sort_values().index]
    best = [[f"`{name}`", *(f"{x:.3g}" for x in row)] for name, *row in wide.head(5).itertuples()]
    return (
        f"{len(wide)} settings were measured open loop. The best five, and the KL to first order "
        "that their shared budgets would lose on the training texts:\n\n"
        + markdown.table(["setting", *map(percent, wide.columns)], best)
    )


def tuning(table: Table) -> str:
    """What tuning the split in the closed loop tried and gained; empty where it was not."""
    rows = table.stage("tune")
    if rows.empty:
        return ""
    words = ["power", "late", "equal"]
    cells = []
    for total in sorted(rows["budget"].unique()):
        some = rows[np.isclose(rows["budget"], total)]
        best = some.loc[some["kl"].idxmin()]
        kl = (f"{x:.3g}" for x in (some["kl"].iloc[0], best["kl"]))
        cells.append([percent(total), *kl, *(f"{best[word]:.2g}" for word in words)])
    tried = len(rows) // len(cells)
    return (
        f"\n\nThese losses are added up as if errors were small and independent. {tried} ways to "
        "depart from that were tried in the closed loop of the training texts, each half with the "
        "split that the other half makes. Losses to the power `power` are added up, the last "
        "layer's count e^`late` times as much as the first one's, and the share `equal` of the "
        "budget is split equally:\n\n"
        + markdown.table(["memory", "KL as it stands", "KL of the best", *words], cells)
    )


def left(table: Table) -> str:
    """What no online policy can keep, and what oracles lose in the running model."""
    rows = table.stage("left")
    totals = sorted(rows["budget"].unique())
    if rows.empty:
        return "Not run for this page (`--left`)."
    texts = sorted(rows["text"].unique())
    held = table.stage("held out")
    held = Table(held[held["text"].isin(texts)])
    cells = []
    for policy, split in rows[["policy", "split"]].drop_duplicates().itertuples(index=False):
        some = rows[(rows["policy"] == policy) & (rows["split"] == split)]
        name = "the winner" if policy == table.winner else f"`{policy}`"
        name = f"{policy}" if policy.startswith("optimum") else name
        for what, word in (("mass_lost", "mass"), ("value_lost", "value"), ("kl", "KL")):
            line = [f"{name}, {split} budgets" if split != "best" else f"{name}, best split", word]
            for total in totals:
                values = some[np.isclose(some["budget"], total)][what].to_numpy(np.float64)
                if what == "kl" and np.isnan(values).all():
                    values = held.values("held out", policy, split, total)
                mean = np.exp(np.log(values).mean()) if what == "kl" else values.mean()
                line.append(f"{mean:.3g}")
            cells.append(line)
    return (
        f"On {len(texts)} of the held-out texts ({', '.join(texts)}): the share of the attention "
        "mass of the decode steps, and of the value-weighted mass "
        "([optimum.md](optimum.md)), that is lost on the uncompressed run, and KL of the running "
        "model. *Optimum, best split*: exact; no schedules under any split of this memory lose "
        "less of the mass that it is the optimum of. `future` evicts what will be attended least; "
        "*its own budgets* are shared out by this very text's first-order KL. Oracles' schedules "
        "are in force in the model as they are.\n\n"
        + markdown.table(["schedules", "", *map(percent, totals)], cells)
    )
