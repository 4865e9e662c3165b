"""The store of a study's passes, and doing them in several processes or on a Dask cluster.

A folder with one file a pass. A file appears whole or not at all (it is written beside its place,
flushed to the disk and renamed), so a killed study loses the passes in flight and nothing else:

    study.json               the identity: all that a number in here depends on
    texts/TEXT.npz           the text with the full cache
    passes/TEXT-POLICY-BUDGET.npz   one pass; names are places in the identity's lists
    lock                     who is at work
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

import h2osim
from h2osim.closed_loop.study import Arrays, Place, Plan, Runner
from h2osim.models.loading import Model
from h2osim.policies.text import parse
from h2osim.support.archive import read_arrays, write_arrays
from h2osim.support.atomic import locked_file, replacing, sweep
from h2osim.support.errors import UserError
from h2osim.support.identity import check_same
from h2osim.support.machine import cores
from h2osim.support.processes import processes
from h2osim.support.progress import Progress
from h2osim.support.reading import json_of
from h2osim.sweeps.cluster import connect, lanes_of
from h2osim.sweeps.identity import plain_budgets, policies_of

_IDENTITY = "study.json"


def evaluation_identity(plan: Plan, loaded: Model, device: str) -> dict[str, Any]:
    """All that the numbers of a study follow from, as values that JSON keeps."""
    choice = None if plan.choice is None else dataclasses.asdict(plan.choice)
    masks = None if plan.masks is None else _sha256(plan.masks.evicted_at)
    return {
        "h2osim": h2osim.__version__,
        "model": {"name": loaded.name, "sha256": loaded.sha256 or _weights_sha256(loaded)},
        "device": device.partition(":")[0],
        "texts": [
            {
                "name": item.name, "sha256": item.sha256, "prompt_len": item.prompt_len,
                "tokens": _sha256(np.array(item.ids)), "answer": item.answer,
            }
            for item in plan.items
        ],
        "budgets": plain_budgets(plan.budgets),
        "share": plan.share,
        "layers": None if plan.layers is None else list(plan.layers),
        "generate": plan.generate,
        "choice": choice,
        "masks": masks,
        **policies_of(plan.configured),
    }  # fmt: skip


def _sha256(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _weights_sha256(loaded: Model) -> str:
    """A sha256 of a model's weights, of one that came without."""
    digest = hashlib.sha256()
    for name, tensor in sorted(loaded.model.state_dict().items()):
        digest.update(f"{name} {_sha256(tensor.detach().cpu().float().numpy())}".encode())
    return digest.hexdigest()


class PassStore:
    """The folder of a study."""

    def __init__(self, path: Path):
        self.path = path

    @classmethod
    def at(cls, path: Path, identity: dict[str, Any]) -> PassStore:
        """The store of this study: made, or found there; UserError where another is there."""
        try:
            sweep(path)
            path.mkdir(parents=True, exist_ok=True)
            there = {entry.name for entry in path.iterdir() if entry.name[0] != "."}
            if there <= {"texts", "passes"}:  # all that a process killed here may have left
                for name in ("texts", "passes"):
                    (path / name).mkdir(parents=True, exist_ok=True)
                with replacing(path / _IDENTITY) as temporary:
                    temporary.write_text(json.dumps(identity, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--store {path}: {error.strerror}") from None
        if not (path / _IDENTITY).exists():
            raise UserError(f"{path}: found something else than the store of a study")
        found = json_of(path / _IDENTITY, dict[str, Any], 1 << 26)
        check_same(found, json.loads(json.dumps(identity)), path, "study", "--store")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Refuse a second process at work on this store; what a killed one left half is removed."""
        with locked_file(self.path / "lock") as mine:
            if not mine:
                raise UserError(f"{self.path}: another process is evaluating into it")
            sweep(self.path, below=True)
            yield

    def get(self, key: Sequence[int]) -> Arrays | None:
        """What is kept of a text (one place) or of a pass (three); None if nothing whole is."""
        return read_arrays(self._file(key), self._place(key))

    def has(self, key: Sequence[int]) -> bool:
        """Whether there is a file; it may be damaged."""
        return self._file(key).exists()

    def put(self, key: Sequence[int], found: Arrays) -> None:
        """Keep a text or a pass."""
        write_arrays(self._file(key), found, self._place(key))

    def _place(self, key: Sequence[int]) -> str:
        """Which text or pass of which study."""
        study = hashlib.sha256((self.path / _IDENTITY).read_bytes()).hexdigest()
        return f"{study} {self._file(key).name}"

    def _file(self, key: Sequence[int]) -> Path:
        folder = self.path / ("texts" if len(key) == 1 else "passes")
        return folder / f"{'-'.join(map(str, key))}.npz"


def run_there(
    kept: PassStore,
    plan: Plan,
    model: str,
    device: str,
    batch: int | None,
    jobs: int,
    dask: str | None,
    progress: Progress | None,
) -> None:
    """Do the passes that are not kept yet, in processes here or on a cluster.

    A task is some passes of one text, because the prompt and the full cache are computed once for
    each; every pass is kept as soon as it is done.
    """
    for configured in plan.configured:
        if dict(parse(configured.text).values) != dict(configured.values):
            raise UserError(f"policy {configured.text}: workers can not make it from its name")
    with ExitStack() as stack:
        executor: Executor
        if dask is None:
            executor = stack.enter_context(processes(jobs, cores() // jobs or 1))
        else:
            client = stack.enter_context(closing(connect(dask)))
            executor, jobs = client.get_executor(pure=False, retries=2), lanes_of(client)
        todo = [at for at in plan.places if not kept.has(at)]
        parts = -(-2 * jobs // len(plan.items))  # of each text, so that all workers end together
        asked = json.loads((kept.path / _IDENTITY).read_text(encoding="utf-8"))
        names = tuple(c.text for c in plan.configured)  # rules are functions, and do not travel
        portable = dataclasses.replace(plan, configured=())
        futures: set[Future[Any]] = set()
        for i in range(len(plan.items)):
            mine = [at for at in todo if at[0] == i]
            for part in range(parts):
                if some := mine[part::parts]:
                    where = str(kept.path.resolve())
                    futures.add(
                        executor.submit(
                            _remote, where, model, device, batch, portable, names, asked, some
                        )
                    )
        try:
            while futures:
                ended, futures = wait(futures, 1.0, FIRST_COMPLETED)
                for future in ended:
                    future.result()
                if progress:
                    done = sum(kept.has(at) for at in plan.places)
                    progress(done, len(plan.places), f"evaluating, {jobs} at a time")
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def _remote(
    path: str,
    model: str,
    device: str,
    batch: int | None,
    plan: Plan,
    policies: Sequence[str],
    asked: dict[str, Any],
    places: Sequence[Place],
) -> None:
    """Do some passes of one text, in a worker."""
    kept = PassStore(Path(path))
    plan = dataclasses.replace(plan, configured=tuple(map(parse, policies)))
    runner = Runner(_loaded(model, device), plan, batch)
    found = json.loads(json.dumps(evaluation_identity(plan, runner.loaded, device)))
    check_same(asked, found, path, "study", "worker")
    i = places[0][0]
    if kept.get((i,)) is None:
        kept.put((i,), runner.whole(i))
    for at, one in runner.run([at for at in places if kept.get(at) is None]):
        kept.put(at, one)


@lru_cache(maxsize=1)
def _loaded(model: str, device: str) -> Model:
    from h2osim.models import loading
    from h2osim.models.placing import placed

    return placed(loading.load(model), device)
