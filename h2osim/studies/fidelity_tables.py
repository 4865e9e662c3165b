"""The tables of docs/fidelity.md: of the closed loop, of measures, and of where they mislead."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from h2osim.report.statistics import Interval
from h2osim.studies import markdown
from h2osim.studies import texts as sources
from h2osim.studies.answering import Answers
from h2osim.studies.correlating import CEILING, Found, logs, ordered, spearman

GAPS = (1.0, 1.1, 1.3, np.inf)
NOISE = (0.02, 0.05, 0.1, 0.2)
FACTORS = ("recall", "output_error", "residual_error", "gradient_token")


def shares(budgets: Iterable[float]) -> list[str]:
    """Budgets as percentages."""
    return [f"{100 * budget:g} %" for budget in budgets]


def at_20(budgets: Sequence[float]) -> int:
    """Where the budget nearest to 20 % stands."""
    return int(np.argmin(np.abs(np.array(budgets) - 0.2)))


def within(interval: Interval) -> str:
    """A correlation with its interval."""
    if np.isnan(interval.low):
        return f"{interval.mean:.2f}"
    return f"{interval.mean:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def _there(found: Found | Answers, names: Iterable[str]) -> list[str]:
    """Those of the names that the table has."""
    return [name for name in names if name in found.losses]


def sources_table(names: Sequence[str]) -> str:
    """Where each text comes from; on which half it stands."""
    listed = {one.name: one for one in sources.listed()}
    rows = [
        [
            f"`{name}`", (one := listed[name]).genre, one.licence,
            f"`{one.package or 'this repository'}` {one.path}", "reports" if i % 2 else "chooses",
            f"`{one.sha256}`",
        ]
        for i, name in enumerate(names)
    ]  # fmt: skip
    return markdown.table(["text", "genre", "licence", "from", "half", "sha256"], rows)


def short_table(found: Found, names: Iterable[str]) -> str:
    """Mean correlations on the reporting half, without intervals."""
    half = found.reported
    rows = [
        [f"`{name}`", *(f"{x:.2f}" for x in found.correlations(name)[half].mean(axis=0))]
        for name in _there(found, dict.fromkeys(names))
    ]
    return markdown.table(["measure", *shares(found.budgets)], rows)


def kl_table(found: Found) -> str:
    """KL of every policy, and recall at 20 %."""
    b = at_20(found.budgets)
    kl = np.exp(np.log(found.kl).mean(axis=0))
    recall = 1 - found.losses["recall"].mean(axis=0)[:, b]
    rows = [
        [f"`{found.policies[i]}`", *(f"{x:.3g}" for x in kl[i]), f"{recall[i]:.3f}"]
        for i in np.argsort(kl[:, b])
    ]
    return markdown.table(["policy", *shares(found.budgets), "recall"], rows)


def correlation_table(found: Found) -> str:
    """Correlations on the reporting half, measure by measure, the best first."""
    half, b = found.reported, at_20(found.budgets)
    rows = []
    for name in [*ordered(found, half), *_there(found, [CEILING])]:
        known = bool(np.isfinite(found.losses[name]).all())  # some are measured of the good only
        everything = f"{found.interval(name, b, half, good=False).mean:.2f}" if known else "–"
        rows.append(
            [
                f"**`{name}`**" if name == found.chosen else f"`{name}`",
                *(within(found.interval(name, at, half)) for at in range(len(found.budgets))),
                everything, f"{100 * found.price(name, half):.1f} %",
            ]
        )  # fmt: skip
    return markdown.table(["measure", *shares(found.budgets), "all", "price"], rows)


def means_table(found: Found, names: Sequence[str]) -> str:
    """Correlations of means over the reporting half, and pairs that differ beyond doubt."""
    half = found.reported
    pairs, rows = found.decided(half), []
    for name in _there(found, names):
        cells = []
        low = logs(found.losses[name][half]).mean(axis=0)
        for b, one in enumerate(found.of_means(name, half)):
            right = sum(low[i, b] < low[j, b] for i, j in pairs[b])
            cells.append(f"{within(one)}; {right} of {len(pairs[b])}")
        rows.append([f"`{name}`", *cells])
    return markdown.table(["measure", *shares(found.budgets)], rows)


def misled_table(found: Found) -> str:
    """The pair that each measure puts in the wrong order most often, at 20 %."""
    b, rows = at_20(found.budgets), []
    good = [int(i) for i in np.flatnonzero(found.good)]
    kl = found.kl[..., b]
    for name in ordered(found, found.reported):
        loss = found.losses[name][..., b]
        wrong = {
            (i, j): (loss[:, i] < loss[:, j]) & (kl[:, i] > kl[:, j])
            for i, j in itertools.permutations(good, 2)
        }
        (i, j), where = max(wrong.items(), key=lambda item: int(item[1].sum()))
        ratios = [
            np.exp((logs(x[where, i]) - logs(x[where, j])).mean()) if where.any() else 1.0
            for x in (loss, kl)
        ]
        rows.append(
            [
                f"`{name}`", f"`{found.policies[i]}`", f"`{found.policies[j]}`",
                f"{int(where.sum())} of {len(where)}", *(f"{ratio:.2f}" for ratio in ratios),
            ]
        )  # fmt: skip
    head = ["measure", "prefers", "to", "texts", "its ratio", "ratio of KL"]
    return markdown.table(head, rows)


def factor_table(found: Found) -> str:
    """KL over what a measure lets expect, by policy at 20 %, geometric mean over all texts."""
    b = at_20(found.budgets)
    y = logs(found.kl[:, found.good, b])
    y = y - y.mean(axis=1, keepdims=True)
    columns = []
    factors = _there(found, FACTORS)
    for name in factors:
        x = logs(found.losses[name][:, found.good, b])
        x = x - x.mean(axis=1, keepdims=True)
        columns.append(np.exp((y - (x * y).sum() / (x * x).sum() * x).mean(axis=0)))
    names = [p for p, good in zip(found.policies, found.good, strict=True) if good]
    rows = [[f"`{p}`", *(f"{c[i]:.2f}" for c in columns)] for i, p in enumerate(names)]
    return markdown.table(["policy", *(f"`{name}`" for name in factors)], rows)


def cause_table(found: Found) -> str:
    """What policies do to the uncompressed run at 20 %, geometric means over all texts."""
    b = at_20(found.budgets)
    means = {name: np.exp(logs(x[..., b]).mean(axis=0)) for name, x in found.losses.items()}
    means["kl"] = np.exp(np.log(found.kl[..., b]).mean(axis=0))
    columns = {
        "1 - recall": means["recall"],
        "output error": means["output_error"],
        "residual error": means["residual_error"],
        "first order": means["gradient_token"],
        "layers together / apart": means["gradient_token"] / means["gradient_alone"],
        "KL / first order": means["kl"] / means["gradient_token"],
    }
    rows = [
        [f"`{found.policies[i]}`", *(f"{x[i]:.3g}" for x in columns.values())]
        for i in np.flatnonzero(found.good)
    ]
    return markdown.table(["policy", *columns], rows)


def gap_table(found: Found) -> str:
    """Pairs that the chosen measure orders as KL does, by how much their KL differs."""
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
        for b in range(len(found.budgets)):
            here = (gap[..., b] >= low) & (gap[..., b] < high)
            share = f"{right[..., b][here].mean():.2f}" if here.any() else "–"
            cells.append(f"{share} of {int(here.sum())}")
        rows.append([word, *cells])
    return markdown.table(["ratio of KL", *shares(found.budgets)], rows)


def noise_table(found: Found) -> str:
    """How exact a measure has to be: correlations of KL times log-normal noise with KL."""
    draw, kl = np.random.default_rng(0), found.kl[found.reported][:, found.good]
    rows = []
    for sd in NOISE:
        noisy = [kl * np.exp(sd * draw.standard_normal(kl.shape)) for _ in range(50)]
        mean = np.mean([spearman(x, kl).mean(axis=0) for x in noisy], axis=0)
        rows.append([f"noise of {sd:g}", *(f"{x:.2f}" for x in mean)])
    return markdown.table(["", *shares(found.budgets)], rows)


def spread_table(found: Found, names: Sequence[str]) -> str:
    """How far log KL strays from a power of each measure, within a text."""
    rows = [
        [f"`{name}`", *(f"{x:.2f}" for x in found.spread(name, found.reported))]
        for name in _there(found, names)
    ]
    return markdown.table(["measure", *shares(found.budgets)], rows)


def answer_table(found: Answers) -> str:
    """Correlations with what answers lose, all prompts; and with wrong answers."""
    rows = []
    for name in found.ordered():
        cells = [within(found.interval(name, b)) for b in range(len(found.budgets))]
        exact = found.with_accuracy(name, len(found.budgets) - 1)
        rows.append([f"`{name}`", *cells, within(exact)])
    return markdown.table(
        ["measure", *shares(found.budgets), f"exact match at {shares(found.budgets)[-1]}"], rows
    )


def kind_table(found: Answers, names: Sequence[str]) -> str:
    """Correlations with what answers lose at 20 %, by kind of prompt."""
    b, kinds = at_20(found.budgets), list(found.asked)
    rows = [
        [f"`{name}`", *(within(found.interval(name, b, k)) for k in kinds)]
        for name in _there(found, names)
    ]
    return markdown.table(["measure", *kinds], rows)


def accuracy_table(found: Answers) -> str:
    """Share of prompts answered, by policy, kind and budget."""
    kinds = list(found.asked)
    by_kind = [found.accuracy(kind) for kind in kinds]
    order = np.argsort(-np.mean([x.mean(axis=1) for x in by_kind], axis=0), kind="stable")
    rows = [
        [f"`{found.policies[i]}`", *("/".join(f"{100 * x:.0f}" for x in a[i]) for a in by_kind)]
        for i in order
    ]
    return markdown.table(["policy", *kinds], rows)
