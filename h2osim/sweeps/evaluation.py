"""Evaluating policies by what a model loses that decodes with them in force; resumable."""

from __future__ import annotations

import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from h2osim.closed_loop.evaluating import (
    Text,
    check_asked,
    configure,
    dataset,
    make_plan,
    read_masks,
)
from h2osim.closed_loop.study import Arrays, Place, Runner
from h2osim.policies.declaration import Configured, Policy
from h2osim.replays.unit_budgets import as_asked
from h2osim.support.bars import with_bar
from h2osim.support.errors import UserError
from h2osim.support.given import temperature_of, whole, whole_numbers
from h2osim.support.progress import Progress
from h2osim.sweeps.passes import PassStore, evaluation_identity, run_there

if TYPE_CHECKING:
    import xarray

__all__ = ["evaluate"]


@with_bar
def evaluate(
    model: Any,
    texts: Mapping[str, Text],
    policies: str | Policy | Configured | Sequence[str | Policy | Configured] = (),
    budgets: Any = (),
    *,
    prompt_len: int | None = None,
    share: str = "group",
    n_tokens: int | None = None,
    layers: Iterable[int] | None = None,
    generate: int = 0,
    sample: bool = False,
    seed: int = 0,
    temperature: float = 1.0,
    mask_from: str | os.PathLike | None = None,
    only: Iterable[tuple[int, int]] | None = None,
    steps: bool = False,
    device: str = "cpu",
    batch: int | None = None,
    store: str | os.PathLike | None = None,
    jobs: int = 1,
    dask: str | None = None,
    tokenizer: Any = None,
    command: str = "",
    progress: Progress | None = None,
) -> xarray.Dataset:
    """Run a model over texts with each policy in force at each budget.

    The first ``prompt_len`` tokens of a text are read densely, once a text; then each policy and
    budget is one pass over the rest, in which every layer evicts (see
    :mod:`h2osim.closed_loop.attention`) on the input that the evicted layers below it produced.

    Parameters
    ----------
    model
        As for :func:`h2osim.record`: ``smollm2``, a folder, a .gguf file, a hub id, or a loaded
        transformers model (bring ``tokenizer``, or token ids as texts).
    texts
        Name → text, token ids, a :class:`~h2osim.closed_loop.prompts.Question` (a prompt whose
        answer is scored) or a :class:`~h2osim.closed_loop.prompts.Task` (which makes one).
    policies
        Online policies, as text or objects. One that knows the future or chooses its keys afresh
        in every step cannot run inside a model and is refused. What a policy sees with
        ``scores=full`` is the softmax over all tokens, those it evicted included, which a real
        cache could not show it; ``scores=cached`` is what a deployed policy sees.
    budgets
        As for :func:`h2osim.replay`, for each text's own length; or budgets by unit: an array
        [layers, units] or :class:`~h2osim.replays.unit_budgets.UnitBudgets`. Several as a list.
    prompt_len
        Tokens of the prompt. Default: a third of a text; of a question all of its context; of a
        text that the model goes on writing, all of it.
    share
        Which heads decide together: ``group``, ``head`` or ``layer``.
    n_tokens
        How many tokens of each text to take; default all.
    layers
        Evict in these layers only; default in every layer.
    generate
        Let the model write so many tokens after each text, once with the full cache and once for
        each policy and budget. KL and all else is measured along what the full cache wrote.
    sample, seed, temperature
        How tokens are chosen then: the likeliest, or sampled.
    mask_from
        A saved replay (NetCDF with ``evicted_at``) of the one text: what it evicted is masked, step
        by step, whatever the rows are now. Policies, budgets, prompt length and sharing are its.
    only
        Which policies run at which budgets, by their places: pairs (policy, budget). The rest of
        the results is NaN. Default: every policy at every budget.
    steps
        Return KL of every step too.
    device
        ``cpu``, ``cuda`` or ``cuda:1``.
    batch
        How many passes of a text run at once. None: on a GPU as many as its memory holds, on a CPU
        one. Where memory does not suffice, fewer. Numbers differ by rounding only.
    store
        A folder in which each pass is kept once it is done. A call that was killed is continued by
        the same call; what is there is not computed again.
    jobs, dask
        Work in so many processes, or on a running Dask cluster (then with a store that every worker
        reaches by the same path). Each process loads the model by its name.
    command
        The command line behind this call, kept in the attributes.
    progress
        Called with passes done, passes in all and a word.

    Returns
    -------
    xarray.Dataset
        Over text, policy and budget (``tokens[text, budget]`` and ``slots`` say how many keys a
        unit may keep):

        * ``kl``: mean over decode steps of KL(full cache || evicted), nats a token;
        * ``nll``, ``perplexity``: mean -log p of the text's next tokens, and its exponential;
        * ``top1``: share of steps in which both have the same likeliest next token;
        * ``recall``: sum of attended over whole mass of the closed loop's rows, all units;
        * ``kept``, ``mass``: int64 fixed point, also over layer and unit;
        * ``cached``, ``cache_bytes``: keys cached besides the step's own, mean over decode steps,
          all units added up, and the memory they and their values take in float16;
        * ``full_nll[text]``; ``kl_step[..., decode_step]`` where asked for;
        * of questions ``answer_logp`` (nats, all tokens of the answer), ``exact`` (1 where greedy
          decoding gives it), and both with the full cache;
        * of generation ``generated``, ``full_generated`` and ``agreement``: tokens before the first
          in which the two differ.

    Raises
    ------
    UserError
        Unknown policy, budget above n, an oracle or a bound; a text too short for its prompt; a
        model that cannot be run; a store of another study: all before the first evicted pass.
    """
    asked = as_asked(budgets)
    masks = None if mask_from is None else read_masks(Path(mask_from))
    if masks is None:
        configured = configure(policies)
        check_asked(asked, texts, share)
    else:
        configured = []
        if policies or asked or layers is not None or generate:
            raise UserError("--mask-from: policies, budgets and layers are the replay's")
        check_asked(masks.facts["budget"], texts, share)
        if len(texts) != 1:
            raise UserError(f"--mask-from: {len(texts)} texts, expected the one of the replay")
    generate, seed, jobs = whole("generate", generate), whole("seed", seed), whole("jobs", jobs, 1)
    batch = None if batch is None else whole("batch", batch, 1)
    temperature = temperature_of(temperature)
    if (jobs > 1 or dask) and not isinstance(model, str):
        raise UserError("a model in memory runs in one process; give its name or folder")
    if dask and store is None:
        raise UserError("--dask: give a store too; workers write their passes into it")

    from h2osim.models import loading

    loading.require()
    from h2osim.closed_loop.decoding import Choice
    from h2osim.models.placing import check_device, placed

    check_device(device)
    if store is not None and Path(store).exists() and not Path(store).is_dir():
        raise UserError(f"--store {store}: found a file, expected a folder")
    if isinstance(model, str):
        if progress:
            progress(0, 0, f"loading {model}")
        loaded = loading.load(model)
    else:
        loaded = loading.given(model, tokenizer)
    plan = make_plan(
        loaded, texts, configured, asked, prompt_len=prompt_len, share=share, n_tokens=n_tokens,
        layers=whole_numbers("layers", layers), generate=generate,
        choice=Choice(sample, seed, temperature) if generate else None, masks=masks,
    )  # fmt: skip
    plan = plan if only is None else dataclasses.replace(plan, only=frozenset(only))
    runner = Runner(placed(loaded, device), plan, batch)
    with ExitStack() as stack:
        if store is None and jobs > 1:
            store = Path(stack.enter_context(tempfile.TemporaryDirectory()), "passes")
        if store is None:
            wholes, found = _here(runner, progress)
        else:
            kept = PassStore.at(Path(store), evaluation_identity(plan, loaded, device))
            stack.enter_context(kept.locked())
            if jobs > 1 or dask:
                run_there(kept, plan, str(model), device, batch, jobs, dask, progress)
            wholes, found = _here(runner, progress, kept)
    return dataset(loaded, plan, wholes, found, steps, command)


def _here(
    runner: Runner, progress: Progress | None, kept: PassStore | None = None
) -> tuple[list[Arrays], dict[Place, Arrays]]:
    """Do the passes text by text; those of a store only where they are not there yet."""
    plan = runner.plan
    wholes: list[Arrays] = []
    found: dict[Place, Arrays] = {}
    total = len(plan.places)
    for i, group in itertools.groupby(plan.places, key=lambda at: at[0]):
        wholes.append(_kept(kept, (i,)) or _keep(kept, (i,), runner.whole(i)))
        there = {at: _kept(kept, at) for at in group}
        found |= {at: one for at, one in there.items() if one is not None}
        for at, one in runner.run([at for at, one in there.items() if one is None]):
            found[at] = _keep(kept, at, one)
            if progress:
                progress(len(found), total, f"{plan.items[i].name}, {plan.policy(at[1])}")
    if progress:
        progress(total, total, "done")
    return wholes, found


def _kept(kept: PassStore | None, key: Sequence[int]) -> Arrays | None:
    return None if kept is None else kept.get(key)


def _keep(kept: PassStore | None, key: Sequence[int], one: Arrays) -> Arrays:
    if kept is not None:
        kept.put(key, one)
    return one
