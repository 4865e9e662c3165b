"""Searching for a policy and a split of its budget over layers and units, and proving both.

1. *Open loop*: settings of the policies asked for, proposed by Optuna in batches, are replayed on
   the uncompressed runs of the training texts; the losses of all units at all budgets
   (:mod:`h2osim.studies.open_loop`) are averaged over texts, each weighed by what equal budgets
   lose there, and the budget is split (:func:`h2osim.optima.sharing.split_budget`). A setting is
   worth what it then loses: the geometric mean over texts and totals.
2. *Closed loop*: the model runs on the training texts, or on training prompts with an answer, with
   each of the best settings and its split in force; the best of these is the winner.
3. *Held out*: the winner, its parts and the baselines on other texts, prompts with an answer, and,
   where asked for, other lengths.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import h2osim
from h2osim.closed_loop.evaluating import configure, text_ids
from h2osim.optima.sharing import lost, split_budget
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.support.archive import read_arrays, write_arrays
from h2osim.support.atomic import locked_file, replacing, sweep
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.support.reading import json_of
from h2osim.sweeps.evaluation import evaluate
from h2osim.sweeps.grid import axes, setting
from h2osim.sweeps.identity import check_same, policies_of

if TYPE_CHECKING:
    import pandas
    import xarray

    from h2osim.closed_loop.prompts import Task
    from h2osim.studies.open_loop import Measure

Numbers = NDArray[np.float64]

BASELINES = ("h2o", "tova", "streaming:sinks=4", "snapkv:window=16,when=always")
"""SnapKV in every step: as published it evicts once, and then holds more than the budget."""
SPACE = (
    "two-speed:gamma=0.95|0.98|0.985|0.99|0.995|1,fast=0|0.5|0.8|0.9|0.95,mix=0..0.75:0.125,"
    "join=sum|max,prior=0|4|16|64,value=0|0.5|1,recent=0.1|0.15|0.2|0.25|0.3|0.4,sinks=0|1|4,"
    "heads=sum|max"
)
OBJECTIVES = ("kl", "answers", "open-loop")
CHECKS = ("prompts", "cuts", "lengths", "writing")


@dataclass(frozen=True)
class Search:
    """What is searched and how.

    spaces: grids of policies. totals: mean budgets as shares of a text. by: the measure of the open
    loop, one of ``open_loop.MEASURES``. objective: what chooses among the ``finalists``: ``kl`` of
    the closed loop on the training texts, ``answers``: the log-probability that training prompts'
    answers lose, ``open-loop``: nothing but the first stage. batch: settings measured at a time.
    checks: what else is run of the held-out texts, some of CHECKS.
    """

    model: str
    spaces: tuple[str, ...] = (SPACE,)
    totals: tuple[float, ...] = (0.05, 0.1, 0.2)
    baselines: tuple[str, ...] = BASELINES
    by: str = "first-order"
    objective: str = "kl"
    trials: int = 100
    batch: int = 8
    finalists: int = 6
    tokens: int = 768
    prompt_len: int = 256
    seed: int = 0
    task_seeds: int = 2
    checks: tuple[str, ...] = ()
    device: str = "cpu"


@dataclass
class Trial:
    """A setting, what it loses at each total with its budget shared out, and the shares."""

    policy: str
    value: float
    predicted: list[float]
    splits: list[Numbers] = field(repr=False)


@dataclass
class Found:
    """The table of a search, and the winner's budgets, one for each total."""

    table: pandas.DataFrame
    budgets: list[UnitBudgets]


def search(
    asked: Search,
    train: Mapping[str, str],
    held: Mapping[str, str],
    store: Path,
    *,
    jobs: int = 1,
    dask: str | None = None,
    command: str = "",
    progress: Progress | None = None,
) -> Found:
    """Run what the store does not hold yet; UserError, before any work, for what does not fit."""
    from h2osim.studies.open_loop import MEASURES, measuring

    _require_optuna()
    choices = [axes(space) for space in asked.spaces]
    known = {"by": (asked.by, MEASURES), "objective": (asked.objective, OBJECTIVES)}
    for word, (given, names) in known.items():
        if given not in names:
            raise UserError(f"--{word}: found {given!r}, expected one of {', '.join(names)}")
    plain = {one.text: one for one in (setting(name, p, {}) for name, p, _ in choices)}
    configure([*(one for one in asked.baselines if one not in plain), *plain.values()])
    if unknown := set(asked.checks) - set(CHECKS):
        raise UserError(f"--checks: {min(unknown)!r}, expected some of {', '.join(CHECKS)}")
    if both := set(train.values()) & set(held.values()):
        name = next(name for name, text in held.items() if text in both)
        raise UserError(f"text {name}: held out and trained on; expected other texts")
    if not train or not held:
        raise UserError(f"{len(train)} training and {len(held)} held-out texts: expected some")
    from h2osim.models import loading

    loading.require()
    loaded = loading.load(asked.model)
    ids = {
        name: tuple(text_ids(loaded, name, text, asked.tokens))
        for name, text in {**train, **held}.items()
    }
    for task in _tasks(asked, 0).values():
        task.question(lambda words: len(loaded.tokenizer(words)["input_ids"]))
    open_loop = ("spaces", "totals", "by", "batch", "seed", "tokens", "prompt_len")
    identity = {
        "h2osim": h2osim.__version__, "model": loaded.sha256 or asked.model,
        **{name: getattr(asked, name) for name in open_loop},
        "train": {name: list(ids[name]) for name in train},
        "rules": policies_of([setting(name, p, {}) for name, p, _ in choices]),
    }  # fmt: skip
    _open(store, identity)
    key = sha256(json.dumps(identity).encode()).hexdigest()
    with locked_file(store / "lock") as mine:
        if not mine:
            raise UserError(f"{store}: another search is running into it")
        sweep(store, below=True)
        texts = {name: ids[name] for name in train}
        with measuring(
            asked.model, asked.device, texts, asked.prompt_len, asked.by, jobs, dask
        ) as measure:
            trials = _open_loop(asked, choices, measure, store / "open", progress, key)
        best = sorted({t.policy: t for t in trials}.values(), key=lambda t: t.value)
        stages = _Stages(asked, store, jobs, dask, progress)
        rows = list(_trial_rows(asked, best))
        winner = best[0]
        if asked.objective != "open-loop":
            finalists = best[: asked.finalists]
            tasks = _tasks(asked, 1000) if asked.objective == "answers" else None
            closed = stages.run("train", tasks or dict(texts), finalists, tasks is not None)
            rows += closed
            winner = min(finalists, key=lambda t: _worth(closed, t.policy, asked.objective))
        rows += stages.run("held out", {name: ids[name] for name in held}, [winner], parts=True)
        rows += stages.run("answers", _tasks(asked, 0), [winner], True)
        if asked.checks:
            rows += stages.check(held, winner, loaded.tokenizer)
    rows += _split_rows(asked, winner)
    import pandas

    table = pandas.DataFrame(rows)
    table.insert(0, "model", loaded.name)
    table.insert(1, "winner", winner.policy)
    table.insert(2, "command", command)
    return Found(table, stages.budgets(winner, loaded.name))


def _require_optuna() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("h2osim search needs Optuna: run pip install 'h2osim[search]'") from None


def _open(store: Path, identity: Mapping[str, Any]) -> None:
    """Make the store, or check that it is of this search."""
    path = store / "search.json"
    try:
        store.mkdir(parents=True, exist_ok=True)
        sweep(store)
        if not path.exists():
            if any(entry.name[0] != "." for entry in store.iterdir()):
                raise UserError(f"--store {store}: found other files, expected an empty folder")
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(identity), encoding="utf-8")
    except OSError as error:
        raise UserError(f"--store {store}: {error.strerror}") from None
    found = json_of(path, dict[str, Any], 1 << 26)
    check_same(found, json.loads(json.dumps(identity)), store, "search", "--store")


# --- open loop ------------------------------------------------------------------------------


def _open_loop(
    asked: Search, choices: Sequence[Any], measure: Measure, folder: Path,
    progress: Progress | None, key: str = "",
) -> list[Trial]:  # fmt: skip
    """All trials: those of the store are told to Optuna again, then it proposes the others.

    key: of the search, so that another's files are not taken for its own.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=asked.seed, multivariate=True, group=True, constant_liar=True,
            n_startup_trials=16,
        )  # fmt: skip
    study = optuna.create_study(sampler=sampler)
    folder.mkdir(exist_ok=True)
    done: list[Trial] = []
    measured: dict[str, Trial] = {}
    while len(done) < asked.trials:
        count = min(asked.batch, asked.trials - len(done))
        waiting = [study.ask() for _ in range(count)]
        names = [_propose(one, choices) for one in waiting]
        new = list(dict.fromkeys(name for name in names if name not in measured))
        path = folder / f"{len(done):05d}.npz"
        kept = read_arrays(path, f"{key} {path.stem}")
        if new and (kept is None or kept["policies"].tolist() != new):
            kept = {"policies": np.array(new), "losses": measure(new)}
            write_arrays(path, kept, f"{key} {path.stem}")
        if new and kept is not None:
            for name, losses in zip(new, kept["losses"].astype(np.float64), strict=True):
                measured[name] = shared(name, losses, asked.totals)
        for one, name in zip(waiting, names, strict=True):
            study.tell(one, measured[name].value)
            done.append(measured[name])
        if progress:
            least = min(done, key=lambda t: t.value)
            progress(len(done), asked.trials, f"open loop, best so far {least.policy}")
    return done


def _propose(trial: Any, choices: Sequence[Any]) -> str:
    """A setting: of one of the policies, each parameter by its place among its values."""
    at = trial.suggest_int("policy", 0, len(choices) - 1) if len(choices) > 1 else 0
    name, policy, found = choices[at]
    chosen = {
        key: values[trial.suggest_int(f"{at} {key}", 0, len(values) - 1)]
        for key, values in found.items()
    }
    return setting(name, policy, chosen).text


def shared(policy: str, losses: Numbers, totals: Sequence[float]) -> Trial:
    """A trial from losses [texts, budgets, layers, units]: its splits and what they lose."""
    from h2osim.studies.open_loop import SHARES

    shares = np.array(SHARES)
    flat = losses.reshape(*losses.shape[:2], -1)
    predicted, splits = [], []
    for total in totals:
        equal = np.full(flat.shape[2], total)
        whole = np.array([lost(one, shares, equal) for one in flat])
        split = split_budget((flat / whole[:, None, None]).mean(axis=0), shares, total)
        predicted.append(float(np.exp(np.mean(np.log([lost(x, shares, split) for x in flat])))))
        splits.append(split.reshape(losses.shape[2:]))
    return Trial(policy, float(np.mean(np.log(predicted))), predicted, splits)


def _trial_rows(asked: Search, best: Sequence[Trial]) -> Iterator[dict[str, Any]]:
    for trial in best:
        for total, value in zip(asked.totals, trial.predicted, strict=True):
            yield {"stage": "open loop", "policy": trial.policy, "split": "shared",
                   "budget": total, "predicted": value}  # fmt: skip


def _split_rows(asked: Search, winner: Trial) -> Iterator[dict[str, Any]]:
    for total, split in zip(asked.totals, winner.splits, strict=True):
        for (layer, unit), share in np.ndenumerate(split):
            yield {"stage": "split", "policy": winner.policy, "budget": total,
                   "layer": layer, "unit": unit, "share": share}  # fmt: skip


# --- closed loop ----------------------------------------------------------------------------


def _tasks(asked: Search, first: int) -> dict[str, Task]:
    """Prompts with an answer, of the prompt's length; other seeds for training."""
    from h2osim.closed_loop.prompts import TASKS, Task

    tasks = [
        Task(kind, asked.prompt_len, depth, seed)
        for kind in TASKS
        for depth in (0.1, 0.5, 0.9)
        for seed in range(first, first + asked.task_seeds)
    ]
    return {task.name: task for task in tasks}


def _worth(rows: Sequence[Mapping[str, Any]], policy: str, objective: str) -> float:
    """What a finalist lost: the mean of log KL, or of the answers' -log p."""
    mine = [row for row in rows if row["policy"] == policy and row["split"] == "shared"]
    if objective == "kl":
        return float(np.mean(np.log([row["kl"] for row in mine])))
    return float(-np.mean([row["answer_logp"] for row in mine]))


@dataclass
class _Stages:
    """Runs the model with policies and their splits in force; each stage has its own store."""

    asked: Search
    store: Path
    jobs: int
    dask: str | None
    progress: Progress | None

    def budgets(self, trial: Trial, model: str = "") -> list[UnitBudgets]:
        """A trial's splits, one for each total."""
        made = f"h2osim search: {trial.policy}, by {self.asked.by}"
        return [
            UnitBudgets(f"{total:g} of {trial.policy}", split, (), model, "group", made)
            for total, split in zip(self.asked.totals, trial.splits, strict=True)
        ]

    def run(
        self, stage: str, texts: Mapping[str, Any], trials: Sequence[Trial], tasks: bool = False,
        parts: bool = False, prompt_len: int | None = None, generate: int = 0,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Rows of a stage: trials with their splits, baselines with equal budgets.

        parts: also each trial with equal budgets, and the first baseline with each split and at
        twice the totals.
        """
        asked, totals = self.asked, list(self.asked.totals)
        more = [2 * t for t in totals if 2 * t not in totals and 2 * t < 1] if parts else []
        baselines = asked.baselines if parts or stage != "train" else asked.baselines[:1]
        if stage.startswith("check"):
            baselines = baselines[:1]
        policies = list(dict.fromkeys([*baselines, *(t.policy for t in trials)]))
        budgets: list[Any] = [*totals, *more]
        only = {(j, b) for j in range(len(baselines)) for b in range(len(totals))}
        only |= {(0, b) for b in range(len(budgets))}
        for trial in trials:
            at = policies.index(trial.policy)
            for i, split in enumerate(self.budgets(trial)):
                only |= {(at, len(budgets))} | ({(at, i), (0, len(budgets))} if parts else set())
                budgets.append(split)
        about = json.dumps([list(texts), policies, sorted(only), totals, more, asked.device])
        splits = b"".join(split.tobytes() for trial in trials for split in trial.splits)
        digest = sha256(about.encode() + splits).hexdigest()[:8]
        found = evaluate(
            asked.model, texts, policies, budgets, only=only, device=asked.device,
            prompt_len=None if tasks else prompt_len or asked.prompt_len, generate=generate,
            store=self.store / f"{stage.replace(' ', '-')}-{digest}", jobs=self.jobs,
            dask=self.dask, progress=self.progress,
        )  # fmt: skip
        return list(_rows(stage, found))

    def check(self, held: Mapping[str, str], winner: Trial, tokenizer: Any) -> Iterator[Any]:
        """Other prompts, lengths and cuts of the held-out texts, and what the model writes."""
        chain = [int(x) for text in held.values() for x in tokenizer(text)["input_ids"]]
        n, p = self.asked.tokens, self.asked.prompt_len

        def pieces(length: int, most: int, first: int = 0) -> dict[str, list[int]]:
            starts = range(first, len(chain) - length + 1, length)[:most]
            return {f"tokens {i} on": chain[i : i + length] for i in starts}

        for check, stage, texts, prompt_len, generate in (
            ("prompts", "check prompt 64", pieces(n, 8), 64, 0),
            ("prompts", "check prompt 512", pieces(n + 256, 8), 512, 0),
            ("cuts", "check other cuts", pieces(n, 12, n // 2), p, 0),
            ("lengths", "check 2048 tokens", pieces(2048, 4), p, 0),
            ("lengths", "check 4096 tokens", pieces(4096, 2), p, 0),
            ("writing", "check writing", pieces(p, 4), p, 64),
        ):
            if check not in self.asked.checks:
                continue
            yield from self.run(stage, texts, [winner], prompt_len=prompt_len, generate=generate)


def _rows(stage: str, found: xarray.Dataset) -> Iterator[dict[str, Any]]:
    from h2osim.studies.texts import listed

    genres = {one.name: one.genre for one in listed()}
    names = [name for name in ("kl", "top1", "recall", "exact", "answer_logp", "agreement")
             if name in found]  # fmt: skip
    for i, text in enumerate(found.text.values.tolist()):
        for j, policy in enumerate(found.policy.values.tolist()):
            for b, split in enumerate(found.split.values.tolist()):
                values = {name: float(found[name].values[i, j, b]) for name in names}
                if np.isnan(values["kl"]):
                    continue
                full = {name: float(found[name].values[i]) for name in ("full_exact",)
                        if name in found}  # fmt: skip
                yield {
                    "stage": stage, "text": text, "genre": genres.get(text, ""),
                    "tokens": int(found.n.values[i]), "prompt_len": int(found.prompt_len.values[i]),
                    "policy": policy, "split": "equal" if split == "equal" else "shared",
                    "budget": round(float(found.budget.values[b]), 6), **values, **full,
                }  # fmt: skip
