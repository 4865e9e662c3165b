"""What a pass with a policy in force costs, against a plain forward pass of the decode part."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from h2osim.bench import Measurement
from h2osim.closed_loop.attention import Eviction
from h2osim.closed_loop.decoding import Decoder
from h2osim.models.loading import Model
from h2osim.policies.declaration import Configured
from h2osim.replays.budgets import budget_tokens

GOAL = 2.0  # plain forward passes


def measure(
    loaded: Model,
    ids: Sequence[int],
    prompt_len: int,
    policies: Sequence[Configured],
    budget: float,
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

    tokens = budget_tokens(budget, n)
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
        found.append(Measurement(f"{name} / plain", seconds / base, "times", GOAL, False))
    return found


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
