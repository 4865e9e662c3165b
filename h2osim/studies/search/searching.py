"""Searching for a policy and a split of its budget over layers and units, and proving both.

1. *Open loop* (:mod:`h2osim.studies.search.trials`): settings of the policies asked for, replayed
   on the uncompressed runs of the training texts, their budget shared out over units.
2. *Closed loop* (:mod:`h2osim.studies.search.closed_loop`): the model runs on the training texts,
   or on training prompts with an answer, with each of the best settings and its split in force; the
   best of these is the winner, and its split is tuned there (:mod:`h2osim.studies.search.tuning`).
3. *Held out*: the winner, its parts and the baselines on other texts, prompts with an answer, and,
   where asked for, other lengths, and what is left to win (:mod:`h2osim.studies.search.left`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h2osim
from h2osim.closed_loop.evaluating import make_item, text_ids
from h2osim.closed_loop.prompts import Task
from h2osim.replays.unit_budgets import UnitBudgets
from h2osim.studies.search.asked import Search
from h2osim.studies.search.closed_loop import ASKED, TRAIN, Stages, worth
from h2osim.studies.search.left import what_is_left
from h2osim.studies.search.losses import measuring
from h2osim.studies.search.trials import open_loop, require_optuna, split_rows, trial_rows
from h2osim.studies.search.tuning import tuned
from h2osim.support.atomic import locked_file, replacing, sweep
from h2osim.support.errors import UserError
from h2osim.support.identity import check_same
from h2osim.support.progress import Progress
from h2osim.support.reading import json_of
from h2osim.sweeps.identity import policies_of

if TYPE_CHECKING:
    import pandas


LEARNT = 1000
"""The first seed of the prompts with an answer that a search learns from."""


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
    require_optuna()
    asked.check(train, held)
    from h2osim.models import loading

    loading.require()
    loaded = loading.load(asked.model)
    ids = {
        name: tuple(text_ids(loaded, name, text, asked.tokens))
        for name, text in {**train, **held}.items()
    }
    for task in asked.tasks(0).values():
        task.question(lambda words: len(loaded.tokenizer(words)["input_ids"]))
    learnt = asked.tasks(LEARNT) if asked.answers else {}
    questions = {name: _question(loaded, task) for name, task in learnt.items()}
    identity = _identity(asked, loaded.sha256, {name: ids[name] for name in train}, list(learnt))
    _open(store, identity)
    key = sha256(json.dumps(identity).encode()).hexdigest()
    with locked_file(store / "lock") as mine:
        if not mine:
            raise UserError(f"{store}: another search is running into it")
        sweep(store, below=True)
        pieces = {name: (ids[name], asked.prompt_len) for name in train} | questions
        weights = _weights(asked, train, questions)
        with measuring(asked.model, asked.device, pieces, asked.by, jobs, dask) as measure:
            trials = open_loop(asked, weights, measure, store / "open", key, progress)
        best = sorted({t.policy: t for t in trials}.values(), key=lambda t: t.value)
        stages = Stages(asked, store, jobs, dask, progress)
        rows = list(trial_rows(asked, best))
        winner = best[0]
        training, held_ids = ({name: ids[name] for name in part} for part in (train, held))
        if asked.objective != "open-loop":
            finalists, closed = best[: asked.finalists], []
            if asked.objective != "answers":
                closed += stages.run(TRAIN, training, finalists)
            if asked.objective != "kl":
                closed += stages.run(ASKED, asked.tasks(LEARNT), finalists, tasks=True)
            rows += closed
            first = asked.baselines[0]
            winner = min(finalists, key=lambda t: worth(closed, t.policy, asked.objective, first))
        if asked.tune:
            winner, tried = tuned(asked, winner, weights, training, stages)
            rows += tried
        rows += stages.run("held out", held_ids, [winner], parts=True)
        rows += stages.run("answers", asked.tasks(0), [winner], tasks=True)
        if asked.checks:
            rows += stages.check(held, winner, loaded.tokenizer)
        if asked.left:
            some = dict(list(held_ids.items())[: asked.left])
            online = {winner.policy: stages.budgets(winner), asked.baselines[0]: asked.totals}
            rows += what_is_left(
                asked.model, asked.device, some, asked.prompt_len, asked.totals, online,
                store / "left", jobs, progress,
            )  # fmt: skip
    rows += split_rows(asked, winner)
    import pandas

    table = pandas.DataFrame(rows)
    table.insert(0, "model", loaded.name)
    table.insert(1, "winner", winner.policy)
    table.insert(2, "command", command)
    table.insert(3, "trained", ", ".join(sorted(train)))
    return Found(table, stages.budgets(winner, loaded.name))


def _question(loaded: Any, task: Task) -> tuple[tuple[int, ...], int]:
    """A prompt with its question and answer as tokens, and how many of them are the prompt."""
    item = make_item(loaded, task.name, task, None, None, 0)
    return item.ids, item.prompt_len


def _weights(asked: Search, texts: Collection[str], questions: Collection[str]) -> dict[str, float]:
    """What each training text and prompt counts in the open loop."""
    of_texts = dict.fromkeys(texts, (1 - asked.answers) / len(texts))
    return of_texts | {name: asked.answers / len(questions) for name in questions}


def _identity(
    asked: Search, model: str | None, train: Mapping[str, Any], questions: Sequence[str]
) -> dict[str, Any]:
    """What the losses of the open loop follow from."""
    names = ("spaces", "totals", "by", "batch", "seed", "tokens", "prompt_len")
    return {
        "h2osim": h2osim.__version__, "model": model or asked.model,
        **{name: getattr(asked, name) for name in names},
        "train": {name: list(ids) for name, ids in train.items()},
        "answers": asked.answers, "questions": list(questions),
        "rules": policies_of(asked.plain()),
    }  # fmt: skip


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
