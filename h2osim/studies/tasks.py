"""How a study runs: a task is a part of the work on one text, and tasks are spread over processes.

Each leaves one file in the study's store, so a killed study loses the tasks in flight:

    study.json          what the numbers depend on
    TEXT-PART.npz       what a task found
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

import h2osim
from h2osim.support.archive import read_arrays, write_arrays
from h2osim.support.atomic import locked_file, replacing, sweep
from h2osim.support.errors import UserError
from h2osim.support.identity import check_same
from h2osim.support.processes import processes
from h2osim.support.progress import Progress
from h2osim.support.reading import MOST_TEXT, json_of, text_of

if TYPE_CHECKING:
    import pandas

    from h2osim.closed_loop.decoding import Decoder
    from h2osim.closed_loop.prompts import Task
    from h2osim.closed_loop.study import Item


@dataclass(frozen=True)
class Study(ABC):
    """What is run on each text: tokens of it, of which prompt_len are the prompt.

    Prompts that h2osim makes, where a study has some, are texts too, of their own lengths.

    policies, budgets: what evicts; ``@layer`` behind a policy: all heads of a layer share a cache.
    columns: some that the study's table must have. measure: of its replays.
    """

    model: str
    tokens: int = 768
    prompt_len: int = 256
    policies: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    seed: int = 0

    columns: ClassVar[frozenset[str]] = frozenset()
    measure: ClassVar[str] = "recall"

    @abstractmethod
    def parts(self) -> Sequence[str]:
        """Names of the tasks of a text."""

    def prompts(self) -> dict[str, Task]:
        """The prompts that the study makes, by name."""
        return {}

    @abstractmethod
    def work(self, part: str, decoder: Decoder, ids: Sequence[int]) -> dict[str, Any]:
        """Do one task: named arrays, in which no two parts share a name."""

    def ask(self, part: str, decoder: Decoder, ids: Sequence[int], answer: int) -> dict[str, Any]:
        """Do one task of a prompt whose last ``answer`` tokens are the answer to it."""
        raise NotImplementedError

    @abstractmethod
    def rows(self, found: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The table's rows of a text, from what all its tasks found."""

    def run(
        self,
        texts: Mapping[str, str | Task],
        store: Path,
        jobs: int,
        progress: Progress | None = None,
    ) -> pandas.DataFrame:
        """Run what is not in the store yet; the study's table, in the order of the texts.

        UserError where the store is of another study, or a text too short.
        """
        import pandas

        self._open_store(store, texts)
        with locked_file(store / "lock") as mine:
            if not mine:
                raise UserError(f"{store}: another study is running into it")
            sweep(store)
            self._run_tasks(texts, store, jobs, progress)
        rows = []
        for name, text in texts.items():
            found: dict[str, Any] = {}
            item = self._item(name, text)
            for part in self.parts():
                if (some := self._kept(store, item, part)) is None:
                    raise UserError(f"{store}: part {part} of {name} was damaged meanwhile")
                found |= some
            model = loaded(self.model)
            known = {"model": model.name, "model_sha256": model.sha256 or ""}
            known |= {"tokens": len(item.ids), "prompt_len": item.prompt_len, "text": name}
            rows += [known | row for row in self.rows(found)]
        return pandas.DataFrame(rows)

    def _item(self, name: str, text: str | Task) -> Item:
        from h2osim.closed_loop.evaluating import make_item

        tokens, prompt_len = self.tokens, self.prompt_len if isinstance(text, str) else None
        return make_item(loaded(self.model), name, text, tokens, prompt_len, 0)

    def _place(self, item: Item, part: str) -> str:
        """Which part of which text of which study."""
        whose = [h2osim.__version__, asdict(self), loaded(self.model).sha256, item.sha256]
        return f"{sha256(json.dumps(whose).encode()).hexdigest()} {item.name}-{part}"

    def _kept(self, store: Path, item: Item, part: str) -> dict[str, Any] | None:
        return read_arrays(store / f"{item.name}-{part}.npz", self._place(item, part))

    def _open_store(self, store: Path, texts: Mapping[str, str | Task]) -> None:
        identity = {
            "h2osim": h2osim.__version__,
            **asdict(self),
            "model": loaded(self.model).sha256 or self.model,
            "texts": {name: self._item(name, text).sha256 for name, text in texts.items()},
        }
        path = store / "study.json"
        try:
            store.mkdir(parents=True, exist_ok=True)
            sweep(store)
            if path.exists():
                found = json_of(path, dict[str, Any], 1 << 26)
                before, now = found.get("texts"), identity["texts"]
                if isinstance(before, dict):
                    # a text has parts of its own: a store takes more of them, each with one content
                    found["texts"], identity["texts"] = {**now, **before}, {**before, **now}
                check_same(found, json.loads(json.dumps(identity)), store, "study", "--store")
                if before == identity["texts"]:
                    return
            elif any(entry.name[0] != "." for entry in store.iterdir()):
                raise UserError(f"--store {store}: found other files, expected an empty folder")
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(identity, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--store {store}: {error.strerror}") from None

    def _run_tasks(
        self, texts: Mapping[str, str | Task], store: Path, jobs: int, progress: Progress | None
    ) -> None:
        tasks = [(name, part) for name in texts for part in self.parts()]
        items = {name: self._item(name, text) for name, text in texts.items()}
        todo = [(name, p) for name, p in tasks if self._kept(store, items[name], p) is None]
        with processes(jobs, threads=1) as pool:
            if todo:
                list(pool.map(partial(_compile, measure=self.measure), self.policies))
            waiting = {pool.submit(_task, self, items[name], part, store) for name, part in todo}
            while waiting:
                if progress:
                    done = len(tasks) - len(waiting)
                    progress(done, len(tasks), f"{done} of {len(tasks)} parts of texts")
                ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()


def split(name: str) -> tuple[str, str]:
    """A policy's text and what shares a cache."""
    text, _, share = name.partition("@")
    return text, share or "group"


def is_oracle(name: str) -> bool:
    """Whether a policy knows later rows: its evictions come from the uncompressed run."""
    from h2osim.policies.text import parse

    return parse(split(name)[0]).policy.oracle


@lru_cache(maxsize=1)
def loaded(model: str) -> Any:
    """The model, loaded once a process."""
    from h2osim.models import loading

    return loading.load(model)


def _compile(policy: str, measure: str) -> None:
    """Have numba compile a policy's loops and keep them, once instead of in every process."""
    from h2osim.engines.stepper import Stepper
    from h2osim.policies.text import parse
    from h2osim.replays.replaying import replay
    from h2osim.traces.trace import Trace

    text, share = split(policy)
    rows = np.tril(np.ones((2, 8, 8))) / np.arange(1, 9)[:, None]
    values = np.ones((1, 8, 2), np.float32)
    trace = Trace.from_scores(rows, group_size=2, v_norm1=np.ones((1, 8)), v=values)
    replay(trace, text, [2, 4], prompt_len=4, share=share, engine="numba", measure=measure)
    declared = parse(text).policy
    if not declared.oracle:
        inputs = {name: np.ones(8) for name in declared.inputs}
        Stepper(text, 4, heads=2, prompt_len=4, inputs=inputs).step(rows)


def _task(study: Study, item: Item, part: str, store: Path) -> None:
    """Do one part of one text and keep what it found."""
    from h2osim.closed_loop.decoding import Decoder

    decoder = Decoder(loaded(study.model), item.ids, item.prompt_len)
    if item.answer:
        found = study.ask(part, decoder, item.ids, item.answer)
    else:
        found = study.work(part, decoder, item.ids)
    write_arrays(store / f"{item.name}-{part}.npz", found, study._place(item, part))


# --- tables ---------------------------------------------------------------------------------


def write_table(table: pandas.DataFrame, path: Path) -> None:
    """Save the table as CSV, compressed where the name ends in .gz.

    Whole numbers are kept as they are, others with four significant digits.
    """
    gzip: Any = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None

    def shown(x: float) -> str:
        return f"{x:.0f}" if x.is_integer() else f"{x:.4g}"

    with replacing(path) as temporary:
        table.to_csv(
            temporary, index=False, float_format=shown, lineterminator="\n", compression=gzip
        )


def read_table(path: Path, columns: frozenset[str]) -> pandas.DataFrame:
    """A saved table; UserError where it is none, or lacks one of these columns."""
    import pandas

    data = text_of(path, f"--from {path}")
    try:
        if path.suffix == ".gz":
            data = gzip.GzipFile(fileobj=io.BytesIO(data)).read(MOST_TEXT + 1)
            if len(data) > MOST_TEXT:
                raise ValueError(f"it unpacks to more than {MOST_TEXT} bytes")
        table = pandas.read_csv(io.BytesIO(data))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(f"--from {path}: {str(error).splitlines()[0]}") from None
    if missing := {"model", "text", *columns} - set(table.columns):
        raise UserError(f"--from {path}: without column {min(missing)}, expected a study's table")
    return table
