"""What passes with a policy in force cost: one against a plain forward pass, and whole studies."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from h2osim.bench import Measurement
from h2osim.closed_loop.caches import Eviction
from h2osim.closed_loop.decoding import Decoder
from h2osim.closed_loop.evaluating import make_plan
from h2osim.closed_loop.study import Arrays, Place, Runner
from h2osim.models.loading import Model
from h2osim.policies.declaration import Configured
from h2osim.replays.budgets import Budget, budget_tokens

GOAL = 2.0  # plain forward passes, of one pass on the same cores
GRID_GOAL = 180.0  # seconds, of a whole grid on a GPU
GRID = (16, 12, 5)  # its texts, policies and budgets
GRID_POLICIES = (
    "h2o,tova,streaming,h2o-mean,decay:gamma=.95,roco,scissorhands,snapkv,nacl,vatp,recency,random"
)
GRID_BUDGETS = (0.05, 0.1, 0.2, 0.4, 0.6)


def measure(
    loaded: Model,
    ids: Sequence[int],
    prompt_len: int,
    policies: Sequence[Configured],
    budget: Budget,
    repeats: int = 5,
) -> list[Measurement]:
    """Time plain and evicted passes over tokens p … n-1 after the same cached prompt.

    An evicted pass is all that `h2osim evaluate` does for one policy and budget: the model, the
    policy, and the comparison of every prediction with the full cache's. Plain is the model alone,
    by its own attention. Both copy the prompt's cache first. On a CPU both run on one thread.
    Checked before it is timed: the plain pass and the full cache by our rows give the same
    predictions.
    """
    torch.set_num_threads(1)
    decoder, n, device = Decoder(loaded, ids, prompt_len), len(ids), loaded.model.device
    plain = torch.log_softmax(decoder.plain().float(), dim=1)
    gap = float((plain.exp() * (plain - decoder.full.to(plain.dtype))).sum(dim=1).abs().max())
    assert gap < 1e-3, f"the plain pass and ours differ by {gap} nats"
    del plain

    tokens = budget_tokens(budget, n, prompt_len)
    work: dict[str, Callable[[], Any]] = {"": decoder.plain}
    for one in policies:
        work[one.text] = partial(decoder.evict, Eviction(one, tokens))
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):  # the first does not count; in turns, so that all see the same
        for name, do in work.items():
            seconds = _timed(do, device)
            if turn:
                times[name].append(seconds)
    medians = {name: statistics.median(some) for name, some in times.items()}
    base = medians.pop("")
    where = f"{n - prompt_len} tokens after a prompt of {prompt_len}, {device}"
    found = [Measurement(f"plain forward pass, {where}", base, "s")]
    for name, seconds in medians.items():
        found.append(Measurement(f"evicted pass, {name}, budget {tokens}", seconds, "s"))
    for name, seconds in medians.items():
        goal = GOAL if device.type == "cpu" else None  # a GPU's goal is that of a grid
        found.append(Measurement(f"{name} / plain", seconds / base, "times", goal, False))
    return found


def grid_texts(
    loaded: Model, given: Mapping[str, Sequence[int]], count: int, n: int
) -> dict[str, Sequence[int]]:
    """So many texts of those given; without any, of random token ids."""
    if given:
        return dict(list(given.items())[:count])
    random = np.random.default_rng(0).integers(0, loaded.vocabulary, (count, n))
    return {f"random {i}": ids for i, ids in enumerate(random.tolist())}


def measure_grid(
    loaded: Model,
    texts: Mapping[str, Sequence[int]],
    prompt_len: int,
    policies: Sequence[Configured],
    budgets: Sequence[float],
    batch: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Measurement]:
    """Time a study: every policy at every budget on every text, as `h2osim evaluate` does it.

    ``say`` is told how far it is after each text, and what it took until then.
    Policies are compiled, and a GPU's kernels loaded, on a short text before. Checked after it is
    timed: the passes of the first text, one at a time, lose as much.
    """

    def runner(ids: Mapping[str, Sequence[int]], p: int, some: Sequence[float], b: Any) -> Runner:
        plan = make_plan(
            loaded, ids, policies, some, prompt_len=p, share="group", n_tokens=None, layers=None,
            generate=0, choice=None, masks=None,
        )  # fmt: skip
        return Runner(loaded, plan, b)

    first = next(iter(texts.values()))
    start = time.perf_counter()
    short = runner({"": first[:64]}, 32, [32], batch)
    list(short.run(short.plan.places))
    compiled = time.perf_counter() - start
    say(f"policies compiled, kernels loaded: {compiled:.1f} s")

    whole = runner(texts, prompt_len, budgets, batch)
    found: dict[Place, Arrays] = {}
    start = time.perf_counter()
    for i in range(len(texts)):
        whole.whole(i)
        found |= dict(whole.run([at for at in whole.plan.places if at[0] == i]))
        say(f"{i + 1} of {len(texts)} texts: {time.perf_counter() - start:.1f} s")
    seconds = time.perf_counter() - start
    kls = np.array([one["kl"].mean() for one in found.values()])
    assert np.isfinite(kls).all(), "a KL is not finite"
    alone = runner({"": first}, prompt_len, budgets[:1], 1)
    apart = [
        abs(float(found[at]["kl"].mean() / one["kl"].mean() - 1))
        for at, one in alone.run(alone.plan.places)
    ]
    shape = whole.plan.shape
    goal = GRID_GOAL if shape == GRID and loaded.model.device.type == "cuda" else None
    size = f"{shape[0]} texts x {shape[1]} policies x {shape[2]} budgets"
    return [
        Measurement("policies compiled, kernels loaded", compiled, "s"),
        Measurement(f"{size}, {len(first)} tokens", seconds, "s", goal, False),
        Measurement("passes a second", len(found) / seconds, "1/s"),
        Measurement("passes at a time, at most", whole.largest, ""),
        Measurement("KL in a batch against one at a time, most apart", max(apart), "of it"),
    ]


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call: processor time of this thread, or the clock where a GPU works."""
    if device.type == "cpu":
        start = time.thread_time()
        work()
        return time.thread_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
