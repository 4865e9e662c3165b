"""The fidelity study's runs: KL of the closed loop, and every measure of the uncompressed run.

A task is a part of one text: its uncompressed run with all measures, or the closed loop under some
of the policies. Tasks are spread over processes and each leaves one file in the study's folder, so
a killed study loses the tasks in flight:

    study.json          what the numbers depend on
    TEXT-PART.npz       what a task found
"""

from __future__ import annotations

import itertools
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import h2osim
from h2osim.support.atomic import LEFTOVERS, locked_file, replacing
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.sweeps.identity import check_same

if TYPE_CHECKING:
    import pandas

GOOD = (
    "h2o", "h2o:recent=0.25", "h2o-mean:recent=0.25", "decay:gamma=0.98,recent=0.5",
    "decay:gamma=0.95,recent=0.25", "tova", "tova@layer", "streaming:sinks=4", "scissorhands",
    "vatp", "roco",
)  # fmt: skip
"""Online policies one would run; ``@layer``: all heads of a layer share a cache."""
POLICIES = (*GOOD, "recency", "random", "future")
BUDGETS = (0.05, 0.1, 0.2, 0.3, 0.4)
CLOSED_PARTS = 2


@dataclass(frozen=True)
class Setting:
    """What is run on each text: tokens of it and of its prompt, policies, budgets, probes.

    probes: backward passes of the first-order measures. seed: of their random signs.
    """

    model: str
    tokens: int = 768
    prompt_len: int = 256
    policies: tuple[str, ...] = POLICIES
    budgets: tuple[float, ...] = BUDGETS
    probes: int = 8
    seed: int = 0

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The tasks of a text and the policies whose closed loop each of them runs.

        An oracle's evictions come from the uncompressed run, so it goes with that one.
        """
        online = [name for name in self.policies if not _is_oracle(name)]
        oracles = tuple(name for name in self.policies if _is_oracle(name))
        closed = {f"closed-{i}": tuple(online[i::CLOSED_PARTS]) for i in range(CLOSED_PARTS)}
        return {"open": oracles, **{part: names for part, names in closed.items() if names}}


def _split(name: str) -> tuple[str, str]:
    """A policy's text and what shares a cache."""
    text, _, share = name.partition("@")
    return text, share or "group"


def _is_oracle(name: str) -> bool:
    from h2osim.policies.text import parse

    return parse(_split(name)[0]).policy.oracle


def study(
    setting: Setting, texts: Mapping[str, str], store: Path, jobs: int, progress: Progress | None
) -> pandas.DataFrame:
    """Run what is not in the store yet; one row a text, policy and budget.

    Columns: ``kl`` of the closed loop (nats a token), ``kl_even`` and ``kl_odd`` (of the steps in
    every other window of 32), ``top1``, ``recall`` and the measures of
    :data:`h2osim.closed_loop.measures.MEASURES` on the uncompressed run, and by layer
    ``layer_residual_L`` and ``layer_gradient_L``.
    """
    identity = {
        "h2osim": h2osim.__version__,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(setting).items()},
        "model": _loaded(setting.model).sha256 or setting.model,
        "texts": {name: sha256(text.encode()).hexdigest() for name, text in texts.items()},
    }
    _check_texts(setting, texts)
    _open_store(store, identity)
    tasks = [(name, part) for part in setting.parts() for name in texts]
    with locked_file(store / "lock") as mine:
        if not mine:
            raise UserError(f"{store}: another study is running into it")
        for leftover in store.glob(LEFTOVERS):
            leftover.unlink()
        todo = [task for task in tasks if not _sound(store / f"{'-'.join(task)}.npz")]
        context = get_context("spawn")
        with ProcessPoolExecutor(jobs, context, _one_thread) as pool:
            if todo:
                list(pool.map(_compile, setting.policies))
            waiting = {
                pool.submit(_task, setting, name, texts[name], part, store) for name, part in todo
            }
            try:
                while waiting:
                    if progress:
                        done = len(tasks) - len(waiting)
                        progress(done, len(tasks), f"{done} of {len(tasks)} parts of texts")
                    ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in ended:
                        future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return _table(setting, list(texts), store)


def _open_store(store: Path, identity: dict[str, Any]) -> None:
    path = store / "study.json"
    try:
        store.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(store.iterdir()):
                raise UserError(f"--store {store}: found other files, expected an empty folder")
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(identity, indent=1), encoding="utf-8")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--store {store}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path}: found something else than the record of a study") from None
    check_same(found, json.loads(json.dumps(identity)), store, "study", "--store")


def _check_texts(setting: Setting, texts: Mapping[str, str]) -> None:
    from h2osim.closed_loop.evaluating import text_ids

    for name, text in texts.items():
        text_ids(_loaded(setting.model), name, text, setting.tokens)


def _one_thread() -> None:
    """In a new process: one core; PyTorch and numba read this when they are imported."""
    os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = "1"


@lru_cache(maxsize=1)
def _loaded(model: str) -> Any:
    from h2osim.models import loading

    return loading.load(model)


def _sound(path: Path) -> bool:
    """Whether a task's file is there and whole."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile):
        return False


def _compile(policy: str) -> None:
    """Have numba compile a policy's loops and keep them, once instead of in every process."""
    from h2osim.engines.stepper import Stepper
    from h2osim.policies.text import parse
    from h2osim.replays.replaying import replay
    from h2osim.traces.trace import Trace

    text, share = _split(policy)
    rows = np.tril(np.ones((2, 8, 8))) / np.arange(1, 9)[:, None]
    trace = Trace.from_scores(rows, group_size=2, v_norm1=np.ones((1, 8)))
    replay(trace, text, [2, 4], prompt_len=4, share=share, engine="numba")
    declared = parse(text).policy
    if not declared.oracle:
        inputs = {name: np.ones(8) for name in declared.inputs}
        Stepper(text, 4, heads=2, prompt_len=4, inputs=inputs).step(rows)


def _task(setting: Setting, name: str, text: str, part: str, store: Path) -> None:
    """Do one part of one text and keep what it found."""
    from h2osim.closed_loop.decoding import Decoder

    loaded = _loaded(setting.model)
    ids = [int(token) for token in loaded.tokenizer(text)["input_ids"][: setting.tokens]]
    decoder = Decoder(loaded, ids, setting.prompt_len)
    closed = setting.parts()[part]
    found: dict[str, Any] = {}
    if part == "open":
        found, masks = _open_loop(setting, decoder, ids)
    for policy, (b, budget) in itertools.product(closed, enumerate(setting.budgets)):
        masked = masks[setting.policies.index(policy), b] if part == "open" else None
        found |= {
            f"{column}/{policy}/{b}": value
            for column, value in _closed_loop(decoder, policy, budget, masked).items()
        }
    with replacing(store / f"{name}-{part}.npz") as temporary:
        np.savez(temporary, **found)


def _closed_loop(decoder: Any, policy: str, budget: float, masks: Any) -> dict[str, float]:
    """The model with a policy in force, or with what was evicted on the uncompressed run."""
    from h2osim.closed_loop.attention import Eviction
    from h2osim.closed_loop.uncompressed import WINDOW
    from h2osim.policies.text import parse
    from h2osim.replays.budgets import budget_tokens

    text, decoder.prompt.share = _split(policy)
    by_layer = None if masks is None else dict(zip(decoder.prompt.layers, masks, strict=True))
    seen = decoder.evict(Eviction(parse(text), budget_tokens(budget, decoder.n), by_layer))
    odd = np.arange(len(seen.kl)) // WINDOW % 2 == 1
    return {
        "kl": seen.kl.mean(), "kl_even": seen.kl[~odd].mean(), "kl_odd": seen.kl[odd].mean(),
        "top1": seen.top1.mean(),
    }  # fmt: skip


def _open_loop(
    setting: Setting, decoder: Any, ids: Sequence[int]
) -> tuple[dict[str, Any], dict[tuple[int, int], Any]]:
    """Every measure on the uncompressed run, and what each policy evicts there."""
    from h2osim.closed_loop import uncompressed
    from h2osim.replays.replaying import replay

    run = uncompressed.run(decoder.prompt, ids[setting.prompt_len :], setting.probes, setting.seed)
    assert run.trace is not None
    evictions: dict[tuple[int, int], Any] = {}
    recall: dict[tuple[int, int], float] = {}
    for share in dict.fromkeys(_split(name)[1] for name in setting.policies):
        some = [i for i, name in enumerate(setting.policies) if _split(name)[1] == share]
        texts = [_split(setting.policies[i])[0] for i in some]
        replayed = replay(run.trace, texts, list(setting.budgets), share=share, engine="numba")
        for (place, i), b in itertools.product(enumerate(some), range(len(setting.budgets))):
            one = replayed.isel(policy=place, budget=b)
            evictions[i, b] = one["evicted_at"].transpose("layer", "unit", "token").values
            recall[i, b] = float(one["recall"].mean())
    at = list(itertools.product(range(len(setting.policies)), range(len(setting.budgets))))
    found = uncompressed.measure(run, [evictions[one] for one in at])
    found["recall"] = np.array([recall[one] for one in at])
    return {name: values.astype(np.float32) for name, values in found.items()}, evictions


def _table(setting: Setting, texts: Sequence[str], store: Path) -> pandas.DataFrame:
    import pandas

    rows, model = [], _loaded(setting.model).name
    for name in texts:
        files = [np.load(store / f"{name}-{part}.npz") for part in setting.parts()]
        measured = {key: values for key, values in files[0].items() if "/" not in key}
        closed = {key: v for one in files for key, v in one.items() if "/" in key}
        at = itertools.product(setting.policies, enumerate(setting.budgets))
        for place, (policy, (b, budget)) in enumerate(at):
            row: dict[str, Any] = {
                "model": model, "tokens": setting.tokens, "prompt_len": setting.prompt_len,
                "text": name, "policy": policy, "budget": budget,
            }  # fmt: skip
            for column in ("kl", "kl_even", "kl_odd", "top1"):
                row[column] = float(closed[f"{column}/{policy}/{b}"])
            for column, values in sorted(measured.items(), key=lambda item: item[1].ndim):
                if values.ndim == 1:
                    row[column] = float(values[place])
                else:
                    row |= {f"{column}_{k}": float(x) for k, x in enumerate(values[place])}
            rows.append(row)
    return pandas.DataFrame(rows)


def write_table(table: pandas.DataFrame, path: Path) -> None:
    """Save the table as CSV with four significant digits, compressed where the name ends in .gz."""
    gzip: Any = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
    with replacing(path) as temporary:
        table.to_csv(
            temporary, index=False, float_format="%.4g", lineterminator="\n", compression=gzip
        )


def read_table(path: Path) -> pandas.DataFrame:
    """A saved table; UserError where it is none."""
    import pandas

    try:
        table = pandas.read_csv(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--from {path}: {str(error).splitlines()[0]}") from None
    if missing := {"model", "text", "policy", "budget", "kl", "recall"} - set(table.columns):
        raise UserError(f"--from {path}: without column {min(missing)}, expected a study's table")
    return table
