"""Attention of one pass in which a policy evicts, layer by layer, while the model runs.

By causality a layer can be computed for all decode steps at once: its rows depend on its own input
only, the policy reads the rows from the first to the last, and what it evicts is masked in the rows
after it. Every layer gets the input that the evicted layers below it produced, so the pass equals
decoding token by token with a cache that really drops keys and values.

In row t, with the cached tokens G_t that the policy has left (its own token included),

    o_t = sum_{j in G_t} a_j v_j / sum_{j in G_t} a_j,

a the softmax over all keys that the layer's mask allows. The quotient is the softmax over G_t. The
policy sees a rounded to float16, as a recorded trace would hold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.attention.row_loops import pack
from h2osim.attention.triangle import tri
from h2osim.engines.request import Job
from h2osim.engines.stepper import Stepper
from h2osim.models.hook import Session
from h2osim.models.rows import BLOCK_BYTES, Call, Layer, RowBlock, mix, softmax_blocks
from h2osim.policies.declaration import Configured
from h2osim.policies.roles import arguments
from h2osim.traces.unit import split_layer

GPU_BLOCK_BYTES = 256 << 20
"""Memory for the logits of one block of rows on a GPU."""


@dataclass(frozen=True)
class LayerFound:
    """What the policy did in one layer, in exact integers.

    kept, masses: int64 [units, steps], mass of each decode row on what it attended, and in all
    (fixed point, multiples of 2**-24). evicted_at: int32 [units, n], the step after which a token
    is never attended again; n if it stays.
    """

    kept: NDArray[np.int64]
    masses: NDArray[np.int64]
    evicted_at: NDArray[np.int32]


class LiveLayer:
    """A layer of the running model, in the form in which a unit reads a trace.

    Rules that ask for norms of keys or values read them from here; rows come block by block.
    """

    path: Path | None = None
    stores: tuple[str, ...] = ("scores",)

    def __init__(self, name: str, tensors: dict[str, NDArray[Any]]):
        self.name = name
        self._tensors = tensors

    def tensors(self, layer: int) -> tuple[str, ...]:
        """Names of the tensors there are."""
        return tuple(self._tensors)

    def tensor(self, layer: int, name: str) -> NDArray[Any]:
        """Keys and values float32 [KV heads, n, d]; KeyError for anything else."""
        return self._tensors[name]

    def layer_entry(self, layer: int) -> dict[str, Any]:
        """Nothing is recorded of the layer."""
        return {}

    def where(self, layer: int) -> str:
        """The layer's name, for messages."""
        return f"{self.name}, layer {layer}"

    def check_layer(self, layer: int) -> None:
        """There is nothing to check: the rows are made as they are read."""


class PromptSession(Session):
    """Runs the prompt densely and keeps its rows, float16 patterns [heads, tri(p)] a layer."""

    def __init__(self, model: str):
        super().__init__(model, NoRows())
        self.rows: dict[int, NDArray[np.uint16]] = {}

    def output(self, call: Call) -> torch.Tensor:
        """Dense attention; the rows are kept."""
        output, rows = call.empty_output(), []
        for block in _blocks(call):
            rows.append(pack_rows(block))
            mix(block, call, output)
        self.rows[call.layer.index] = np.concatenate(rows, axis=1)
        return output


class EvictingSession(Session):
    """Runs the decode steps of one pass with a policy in force.

    prompt_rows: of :class:`PromptSession`. configured None evicts nothing: the full cache, computed
    by the same operations in the same order. layers: where the policy is in force (None: in every
    layer); in the others nothing is evicted.
    """

    def __init__(
        self,
        model: str,
        prompt_rows: dict[int, NDArray[np.uint16]],
        configured: Configured | None,
        budget: int,
        prompt_len: int,
        n: int,
        share: str,
        layers: Sequence[int] | None = None,
    ):
        super().__init__(model, NoRows())
        self._prompt_rows, self._configured = prompt_rows, configured
        self._budget, self._prompt_len, self._n = budget, prompt_len, n
        self._share, self._layers = share, layers
        self.found: dict[int, LayerFound] = {}

    def output(self, call: Call) -> torch.Tensor:
        """Attention over what the policy has left in each row."""
        output, index = call.empty_output(), call.layer.index
        evicts = self._configured is not None and (self._layers is None or index in self._layers)
        policy = self._begin(call) if evicts else None
        for block in _blocks(call):
            if policy is not None:
                attended = policy.feed(block)
                if not bool(attended.all()):  # else the row is the full one, to the last bit
                    units, rows, columns = attended.shape
                    by_unit = block.p.view(units, -1, rows, columns)
                    by_unit.mul_(attended[:, None].to(block.p.dtype))
                    block.p.div_(block.p.sum(dim=2, keepdim=True))
            mix(block, call, output)
        if policy is not None:
            self.found[index] = policy.end()
        return output

    def _begin(self, call: Call) -> _LayerPolicy:
        assert self._configured is not None
        layer, origin, n = call.layer, call.origin, self._n
        tensors = {"k": _whole(call.k, origin, n), "v": _whole(call.v, origin, n)}
        live = LiveLayer(self.model, tensors)
        units = split_layer(
            live, layer.index, range(layer.heads), range(layer.kv_heads), n, self._share
        )
        jobs = [Job(unit, self._configured, self._budget, self._prompt_len) for unit in units]
        return _LayerPolicy(jobs, self._prompt_rows[layer.index])


class _LayerPolicy:
    """The policy on the units of one layer, fed with the prompt's rows, then with decode rows."""

    def __init__(self, jobs: Sequence[Job], prompt_rows: NDArray[np.uint16]):
        configured = jobs[0].configured
        self._jobs, self._prompt_len = jobs, jobs[0].prompt_len
        self._stepper = Stepper(
            configured,
            [job.budget for job in jobs],
            prompt_len=self._prompt_len,
            heads=len(jobs[0].unit.heads),
            inputs={
                name: np.stack([job.inputs[name] for job in jobs])
                for name in configured.policy.inputs
            },
        )
        self._kept: list[NDArray[np.int64]] = []
        self._masses: list[NDArray[np.int64]] = []
        self._feed(prompt_rows, 0, self._prompt_len)

    def feed(self, block: RowBlock) -> torch.Tensor:
        """Take rows; which keys each of them attends, bool [units, rows, columns]."""
        start, stop = block.start, block.start + block.p.shape[1]
        self._feed(pack_rows(block), start, stop)
        self._kept.append(self._stepper.kept)
        self._masses.append(self._stepper.masses)
        columns = slice(block.first, block.first + block.p.shape[2])
        device = block.p.device
        last = torch.from_numpy(self._stepper.evicted_at[:, columns]).to(device)
        attended = last[:, None, :] >= torch.arange(start, stop, device=device)[:, None]
        if self._jobs[0].configured.policy.visible is not None:
            seen = np.stack([_visible(job, start, stop)[:, columns] for job in self._jobs])
            attended &= torch.from_numpy(seen).to(device)
        return attended

    def end(self) -> LayerFound:
        """What the policy did in this layer."""
        kept, masses = (np.concatenate(x, axis=1) for x in (self._kept, self._masses))
        return LayerFound(kept, masses, self._stepper.evicted_at)

    def _feed(self, bits: NDArray[np.uint16], start: int, stop: int) -> None:
        """Feed packed rows [heads, packed]; the heads of a unit stand together."""
        units = bits.reshape(len(self._jobs), -1, bits.shape[1])
        units.flags.writeable = False
        self._stepper.feed(units, start, start, stop)


def _blocks(call: Call) -> Iterator[RowBlock]:
    """The rows of a call, in blocks that fit a core's cache, or that keep a GPU busy."""
    return softmax_blocks(call, BLOCK_BYTES if call.q.device.type == "cpu" else GPU_BLOCK_BYTES)


class NoRows:
    """A sink that wants no rows."""

    def wants(self, layer: Layer) -> bool:
        """No."""
        return False

    def block(self, layer: Layer, block: Any) -> None:
        """Never called."""
        raise AssertionError("no rows were wanted")

    def end(self, layer: Layer, start: int, q: Any, k: Any, v: Any) -> None:
        """Nothing to do."""


def _whole(x: torch.Tensor, origin: int, n: int) -> NDArray[np.float32]:
    """float32 [KV heads, n, d]; zeros for tokens that lie before the model's own cache."""
    found = np.zeros((x.shape[0], n, x.shape[2]), np.float32)
    found[:, origin : origin + x.shape[1]] = x.float().cpu().numpy()
    return found


def pack_rows(block: RowBlock) -> NDArray[np.uint16]:
    """Rows rounded to float16: packed patterns [heads, packed] from row `block.start` on."""
    half = block.p.to(torch.float16).cpu().numpy().view(np.uint16)
    rows = half.shape[1]
    bits = np.zeros((half.shape[0], tri(block.start + rows) - tri(block.start)), np.uint16)
    pack(half, block.start, block.first, bits)
    return bits


def _visible(job: Job, start: int, stop: int) -> NDArray[np.bool_]:
    """Which tokens the rule lets rows start … stop-1 attend, bool [rows, n]."""
    rule = job.configured.policy.visible
    assert rule is not None
    wanted = arguments(rule)
    known = tuple(sorted((k, v) for k, v in job.scalars.items() if k in wanted))
    return np.stack([_visible_row(rule, known, t, job.unit.n) for t in range(start, stop)])


@cache
def _visible_row(rule: Any, known: tuple[tuple[str, Any], ...], t: int, n: int) -> Any:
    values, wanted = dict(known), arguments(rule)
    found = np.ones(n, bool)
    for j in range(t + 1):
        values |= {"t": t, "pos": j, "age": t - j}
        found[j] = rule(*[values[name] for name in wanted])
    return found
