"""Errors that evictions make on the uncompressed run, carried to the prediction by its derivative.

Let d be how far each layer's attention output moves when a row attends to its cached keys only, at
the queries, keys and values of the uncompressed run. One pass in forward mode carries the d of all
layers and steps upwards together: with a tangent for every activation, a layer adds its d to the
derivative of its attention, and the tangent of the logits is J d, exact to first order.
"""

from __future__ import annotations

import getpass
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from numpy.typing import NDArray

from h2osim.closed_loop.attention import GPU_BLOCK_BYTES, NoRows
from h2osim.closed_loop.decoding import Decoder
from h2osim.closed_loop.uncompressed import known_attention
from h2osim.models.hook import Session, hooked
from h2osim.models.loading import Model, quiet
from h2osim.models.placing import placed
from h2osim.models.rows import BLOCK_BYTES, Call, softmax_blocks
from h2osim.support.atomic import locked_file

PROCESSES = 6
"""Processes on a GPU at a time: each takes some 2.5 GB for SmolLM2, and more are no faster."""
WAIT = 0.2
"""Seconds until a process looks for a place again."""


class _Session(Session):
    """Attention with tangents; masked: attention over the cached keys, without tangents.

    evicted_at: the step after which each token is never attended again, [units, n] by layer.
    """

    def __init__(self, model: str, evicted_at: Mapping[int, torch.Tensor], masked: bool):
        super().__init__(model, NoRows())
        self._evicted_at, self._masked = evicted_at, masked

    def output(self, call: Call) -> torch.Tensor:
        """The full cache's output, with the error and what is carried as its tangent."""
        known_attention(self, call)
        duals = [forward_ad.unpack_dual(x) for x in (call.q, call.k, call.v)]
        (q, dq), (k, dk), (v, dv) = duals
        plain = Call(call.layer, q, k, v, call.start, call.origin, call.allowed, call.mask)
        output, tangent = plain.empty_output(), plain.empty_output()
        last = self._evicted_at[call.layer.index]
        size = BLOCK_BYTES if q.device.type == "cpu" else GPU_BLOCK_BYTES
        for block in softmax_blocks(plain, size):
            p = block.p
            heads, rows, width = p.shape
            here = slice(block.start - call.start, block.start - call.start + rows)
            keys = slice(block.first - call.origin, block.first - call.origin + width)
            t = torch.arange(block.start, block.start + rows, device=p.device)[:, None]
            attended = last[:, None, block.first : block.first + width] >= t
            cached = p.view(len(last), -1, rows, width) * attended[:, None]
            cached = cached.view(heads, rows, width)
            cached /= cached.sum(dim=2, keepdim=True)
            both = _mixed(torch.cat([p, cached - p], dim=1), v[:, keys])
            output[here], error = both[:, :rows].transpose(0, 1), both[:, rows:]
            if dq is not None:
                x = _mixed(dq[:, here], k[:, keys].mT) + _mixed(q[:, here], dk[:, keys].mT)
                x *= call.layer.scale
                x = x.sub_(torch.linalg.vecdot(p, x)[..., None]).mul_(p)
                error = error + _mixed(x, v[:, keys]) + _mixed(p, dv[:, keys])
            tangent[here] = error.transpose(0, 1)
        if self._masked:
            return output + tangent
        return forward_ad.make_dual(output, tangent)


def _mixed(a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The product of a [heads, rows, m] with each head's x [KV heads, m, k]."""
    return torch.bmm(a.reshape(len(x), -1, a.shape[2]), x).view(len(a), a.shape[1], -1)


@contextmanager
def decoder_on(device: str, model: Model, ids: Sequence[int], prompt_len: int) -> Iterator[Decoder]:
    """A decoder on a device, the model back on the CPU afterwards.

    ``cuda``: of several GPUs one by this process's number, so that processes spread over them. At
    most ``PROCESSES`` are on a GPU at a time, whatever studies they belong to; the others wait.
    """
    if device == "cuda":
        device = f"cuda:{os.getpid() % max(1, torch.cuda.device_count())}"
    with _place(device):
        try:
            yield Decoder(placed(model, device), ids, prompt_len)
        finally:
            placed(model, "cpu")


@contextmanager
def _place(device: str) -> Iterator[None]:
    """Hold one of a GPU's places, which are locked files of this user; on a CPU none is needed."""
    if device == "cpu":
        yield
        return
    name = f"h2osim-{getpass.getuser()}-{device.replace(':', '-')}"
    files = [Path(tempfile.gettempdir()) / f"{name}-{i}" for i in range(PROCESSES)]
    while True:
        for file in files:
            with locked_file(file) as mine:
                if mine:
                    yield
                    return
        time.sleep(WAIT)


def measure(
    decoder: Decoder, ids: Sequence[int], evictions: Sequence[Mapping[int, NDArray[np.int32]]]
) -> dict[str, NDArray[np.float64]]:
    """What each eviction does to the predictions, nats, [evictions, steps].

    evictions: int32 [units, n] by layer, as a replay of the uncompressed run says.
    ``carried_variance`` is half the variance of J d under the prediction p, ``carried_kl`` the KL
    of softmax(z + J d), z the logits. ``masked_kl`` is no measure of the uncompressed run: the
    model runs with the same evictions, and the closed loop differs by a policy's decisions only.
    """
    rows: dict[str, list[Any]] = {}
    rest = torch.tensor([list(ids[decoder.prompt_len :])], device=decoder.full.device)

    def add(name: str, x: torch.Tensor) -> None:
        rows.setdefault(name, []).append(x.double().cpu().numpy())

    for one in evictions:
        evicted_at = {
            index: torch.from_numpy(x).to(decoder.full.device) for index, x in one.items()
        }
        logits, moved = _logits(decoder, rest, evicted_at, False)
        p = decoder.full.exp()
        mean = torch.linalg.vecdot(p, moved)
        add("carried_variance", torch.linalg.vecdot(p, (moved - mean[:, None]).square_()) / 2)
        add("carried_kl", _kl(decoder.full, logits.add_(moved)))
        add("masked_kl", _kl(decoder.full, _logits(decoder, rest, evicted_at, True)[0]))
    return {name: np.stack(found) for name, found in rows.items()}


def _kl(full: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(full || softmax of logits) of each row; full: log-probabilities."""
    return (full.exp() * (full - torch.log_softmax(logits, dim=1))).sum(dim=1, dtype=torch.float64)


def _logits(
    decoder: Decoder, rest: torch.Tensor, evicted_at: Mapping[int, torch.Tensor], masked: bool
) -> tuple[torch.Tensor, Any]:
    """Logits [steps, vocabulary] and their tangent (masked: None)."""
    prompt = decoder.prompt
    session = _Session(prompt.loaded.name, evicted_at, masked)
    session.seen = decoder.prompt_len
    with ExitStack() as stack:
        for context in (quiet(), torch.no_grad(), hooked(prompt.loaded.model, session)):
            stack.enter_context(context)
        stack.enter_context(forward_ad.dual_level())
        session.begin(rest.shape[1])
        found = prompt.forward(rest, session.seen, prompt.cache()).logits[0]
        logits, tangent = forward_ad.unpack_dual(found)
        return logits.to(decoder.full.dtype), tangent
