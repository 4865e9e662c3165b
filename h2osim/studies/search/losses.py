"""The open-loop stage of a search: what every unit loses at every budget, on uncompressed runs.

A text is run once by a process, and kept; policies are then replayed on its attention, all budgets
and units together, and what their evictions cost is measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, as_completed
from contextlib import ExitStack, closing, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from h2osim.support.machine import cores
from h2osim.support.processes import processes
from h2osim.sweeps.cluster import connect

if TYPE_CHECKING:
    from h2osim.closed_loop.uncompressed import Uncompressed

Numbers = NDArray[np.float64]

SHARES = (
    0.01, 0.015, 0.02, 0.03, 0.045, 0.07, 0.1, 0.14, 0.2, 0.3, 0.45, 0.7,
)  # fmt: skip
"""Budgets of a unit's curve, as shares of a text."""
PROBES = 4
"""Backward passes a text."""
MEASURES = {
    "first-order": "",
    "error": "output_error",
    "error-abs": "output_error_abs",
    "attention-error": "attention_error",
    "recall": "recall",
}
"""What is added up over the units, and the variable of a replay that it is."""


def curves(
    model: str, device: str, ids: tuple[int, ...], prompt_len: int, policies: Sequence[str], by: str
) -> NDArray[np.float32]:
    """Losses on one text, [policies, budgets, layers, units]; by: one of MEASURES."""
    from h2osim.closed_loop.first_order import unit_kl
    from h2osim.replays.budgets import budget_tokens
    from h2osim.replays.replaying import replay

    run = run_of(model, device, ids, prompt_len)
    assert run.trace is not None
    measure = {"first-order": "recall", "error-abs": "error"}.get(by, by)
    tokens = [budget_tokens(share, len(ids), prompt_len) for share in SHARES]
    found = replay(run.trace, list(policies), sorted(set(tokens)), measure=measure)
    found = found.sel(budget=tokens)
    if by != "first-order":
        loss = found[MEASURES[by]].transpose("policy", "budget", "layer", "unit").values
        return np.asarray(1 - loss if by == "recall" else loss, np.float32)
    gone = found.evicted_at.transpose("policy", "budget", "layer", "unit", "token").values
    flat = unit_kl(run, list(gone.reshape(-1, *gone.shape[2:])))
    return flat.reshape(*gone.shape[:2], *flat.shape[1:]).astype(np.float32)


@lru_cache(maxsize=64)
def run_of(model: str, device: str, ids: tuple[int, ...], prompt_len: int) -> Uncompressed:
    """A text's uncompressed run, with its gradients and its attention; the last ones are kept."""
    from h2osim.closed_loop import uncompressed
    from h2osim.closed_loop.decoding import Prompt

    prompt = Prompt(placed_model(model, device), ids[:prompt_len])
    return uncompressed.run(prompt, ids[prompt_len:], PROBES)


@lru_cache(maxsize=1)
def placed_model(model: str, device: str) -> Any:
    """The model on a device, loaded once."""
    from h2osim.models import loading
    from h2osim.models.placing import placed

    return placed(loading.load(model), device)


Text = tuple[tuple[int, ...], int]
"""Its tokens, and how many of them are the prompt."""
Found = tuple[str, NDArray[np.float32]]
Measure = Callable[[Sequence[str], Sequence[str]], Iterator[Found]]
"""Gives for policies and names of texts each text's losses, as they are there."""


@contextmanager
def measuring(
    model: str, device: str, texts: Mapping[str, Text], by: str, jobs: int, dask: str | None
) -> Iterator[Measure]:
    """What measures losses here, in ``jobs`` processes or on a Dask cluster.

    Each text stays with one process, which runs it once.
    """
    with ExitStack() as stack:
        homes: list[Executor] = []
        if dask is not None:
            client = stack.enter_context(closing(connect(dask)))
            homes = [
                client.get_executor(workers=[one], pure=False) for one in sorted(client.nthreads())
            ]
        elif jobs > 1:
            count = min(jobs, len(texts))
            threads = cores() // count or 1
            homes = [stack.enter_context(processes(1, threads)) for _ in range(count)]
        home_of = dict(zip(texts, itertools.cycle(homes), strict=False))

        def measure(policies: Sequence[str], names: Sequence[str]) -> Iterator[Found]:
            if not homes:
                for name in names:
                    yield name, curves(model, device, *texts[name], policies, by)
                return
            futures = {
                home_of[name].submit(curves, model, device, *texts[name], tuple(policies), by): name
                for name in names
            }
            for future in as_completed(futures):
                yield futures[future], future.result()

        yield measure
