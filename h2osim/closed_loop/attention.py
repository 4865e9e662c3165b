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

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.attention.fixed_point import fixed_from_bits
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
    """Runs the prompt densely and keeps its rows, float16 patterns [heads, tri(p)] a layer.

    called: what each layer is.
    """

    def __init__(self, model: str):
        super().__init__(model, NoRows())
        self.rows: dict[int, NDArray[np.uint16]] = {}
        self.called: dict[int, Layer] = {}

    def output(self, call: Call) -> torch.Tensor:
        """Dense attention; the rows are kept."""
        output, rows = call.empty_output(), []
        for block in _blocks(call):
            rows.append(pack_rows(block))
            mix(block, call, output)
        self.rows[call.layer.index] = np.concatenate(rows, axis=1)
        self.called[call.layer.index] = call.layer
        return output


@dataclass(frozen=True)
class Eviction:
    """What evicts in a pass, and how much each unit may keep.

    configured: the policy. budgets: tokens, one number for all units, or int64 [units] by the
    model's layer. masks: instead of the policy's own decisions, the step after which each token is
    never attended again, int32 [units, n] by layer.
    """

    configured: Configured | None
    budgets: int | Mapping[int, NDArray[np.int64]]
    masks: Mapping[int, NDArray[np.int32]] | None = None

    def of(self, layer: int, units: int) -> list[int]:
        """Tokens for each unit of a layer."""
        if isinstance(self.budgets, int):
            return [self.budgets] * units
        return [int(k) for k in self.budgets[layer]]


class EvictingSession(Session):
    """Runs the decode steps of a text with a policy in force, in one call of the model or several.

    prompt_rows: of :class:`PromptSession`. eviction None: the full cache, computed by the same
    operations in the same order. n: tokens of the whole text. layers: where the policy is in force
    (None: in every layer); in the others nothing is evicted.
    """

    def __init__(
        self,
        model: str,
        prompt_rows: dict[int, NDArray[np.uint16]],
        eviction: Eviction | None,
        prompt_len: int,
        n: int,
        share: str,
        layers: Sequence[int] | None = None,
    ):
        super().__init__(model, NoRows())
        self._prompt_rows, self._eviction = prompt_rows, eviction
        self._prompt_len, self._n = prompt_len, n
        self._share, self._layers = share, layers
        self._caches: dict[int, _LayerCache] = {}

    @property
    def found(self) -> dict[int, LayerFound]:
        """What the policy has done so far, by the model's layer."""
        return {index: cache.found() for index, cache in self._caches.items()}

    def output(self, call: Call) -> torch.Tensor:
        """Attention over what the policy has left in each row."""
        output, cache = call.empty_output(), self._cache(call)
        for block in _blocks(call):
            if cache is not None:
                attended = cache.feed(block)
                if not bool(attended.all()):  # else the row is the full one, to the last bit
                    units, rows, columns = attended.shape
                    by_unit = block.p.view(units, -1, rows, columns)
                    by_unit.mul_(attended[:, None].to(block.p.dtype))
                    total = block.p.sum(dim=2, keepdim=True)
                    if call.sinks is not None:  # a learned sink keeps its share of what is left
                        total += (call.sinks[:, None] - block.lse).exp()[:, :, None]
                    block.p.div_(total)
            mix(block, call, output)
        return output

    def _cache(self, call: Call) -> _LayerCache | None:
        index, eviction = call.layer.index, self._eviction
        if eviction is None or (self._layers is not None and index not in self._layers):
            return None
        if index not in self._caches:
            if eviction.masks is not None:
                self._caches[index] = _MaskedLayer(eviction.masks[index])
            else:
                jobs = self._jobs(call, eviction)
                self._caches[index] = _PolicyLayer(jobs, self._prompt_rows[index])
        elif isinstance(cache := self._caches[index], _PolicyLayer) and cache.asks:
            cache.jobs = self._jobs(call, eviction)
        return self._caches[index]

    def _jobs(self, call: Call, eviction: Eviction) -> list[Job]:
        assert eviction.configured is not None
        layer, origin, n = call.layer, call.origin, self._n
        tensors = {"k": _whole(call.k, origin, n), "v": _whole(call.v, origin, n)}
        live = LiveLayer(self.model, tensors)
        units = split_layer(
            live, layer.index, range(layer.heads), range(layer.kv_heads), n, self._share
        )
        budgets = eviction.of(layer.index, len(units))
        return [
            Job(unit, eviction.configured, budget, self._prompt_len)
            for unit, budget in zip(units, budgets, strict=True)
        ]


class _LayerCache(ABC):
    """The caches of one layer: takes rows, says what they attend and what became of the tokens."""

    def __init__(self) -> None:
        self._kept: list[NDArray[np.int64]] = []
        self._masses: list[NDArray[np.int64]] = []

    @abstractmethod
    def feed(self, block: RowBlock) -> torch.Tensor:
        """Take rows; which keys each of them attends, bool [units, rows, columns]."""

    @abstractmethod
    def evicted_at(self) -> NDArray[np.int32]:
        """The step after which each token is never attended again, [units, tokens so far]."""

    def found(self) -> LayerFound:
        """What happened in this layer."""
        kept, masses = (np.concatenate(x, axis=1) for x in (self._kept, self._masses))
        return LayerFound(kept, masses, self.evicted_at())


class _PolicyLayer(_LayerCache):
    """The policy on the units of one layer, fed with the prompt's rows, then with decode rows.

    jobs: what is known of the units; where the policy asks for numbers of keys or values, of the
    tokens that there are so far.
    """

    def __init__(self, jobs: Sequence[Job], prompt_rows: NDArray[np.uint16]):
        super().__init__()
        configured = jobs[0].configured
        self.jobs, self.asks = jobs, bool(configured.policy.inputs)
        self._visible = configured.policy.visible is not None
        self._stepper = Stepper(
            configured,
            [job.budget for job in jobs],
            prompt_len=jobs[0].prompt_len,
            heads=len(jobs[0].unit.heads),
            inputs={name: self._input(name) for name in configured.policy.inputs},
        )
        self._feed(prompt_rows, 0, jobs[0].prompt_len)

    def feed(self, block: RowBlock) -> torch.Tensor:
        """Take rows; which keys each of them attends, bool [units, rows, columns]."""
        start, stop = block.start, block.start + block.p.shape[1]
        self._feed(pack_rows(block), start, stop)
        self._kept.append(self._stepper.kept)
        self._masses.append(self._stepper.masses)
        attended = _still_there(self._stepper.evicted_at, block)
        if self._visible:
            columns = slice(block.first, block.first + block.p.shape[2])
            seen = np.stack([_visible(job, start, stop)[:, columns] for job in self.jobs])
            attended &= torch.from_numpy(seen).to(attended.device)
        return attended

    def evicted_at(self) -> NDArray[np.int32]:
        """As the stepper says."""
        found: NDArray[np.int32] = self._stepper.evicted_at
        return found

    def _input(self, name: str) -> Callable[[int, int], NDArray[np.float64]]:
        return lambda start, stop: np.stack([job.inputs[name][start:stop] for job in self.jobs])

    def _feed(self, bits: NDArray[np.uint16], start: int, stop: int) -> None:
        """Feed packed rows [heads, packed]; the heads of a unit stand together."""
        units = bits.reshape(len(self.jobs), -1, bits.shape[1])
        units.flags.writeable = False
        self._stepper.feed(units, start, start, stop)


class _MaskedLayer(_LayerCache):
    """Caches that lose what a replay evicted, whatever the rows are now."""

    def __init__(self, evicted_at: NDArray[np.int32]):
        super().__init__()
        self._evicted_at = evicted_at

    def feed(self, block: RowBlock) -> torch.Tensor:
        """Take rows; which keys each of them attends, bool [units, rows, columns]."""
        attended = _still_there(self._evicted_at, block)
        bits = block.p.to(torch.float16).cpu().numpy().view(np.uint16)
        fixed = fixed_from_bits(bits).reshape(len(attended), -1, *bits.shape[1:])
        self._kept.append((fixed * attended.cpu().numpy()[:, None]).sum(axis=(1, 3)))
        self._masses.append(fixed.sum(axis=(1, 3)))
        return attended

    def evicted_at(self) -> NDArray[np.int32]:
        """As the replay said."""
        return self._evicted_at


def _still_there(evicted_at: NDArray[np.int32], block: RowBlock) -> torch.Tensor:
    """Which tokens have not been evicted before each row, bool [units, rows, columns]."""
    device, (_, rows, columns) = block.p.device, block.p.shape
    last = torch.from_numpy(evicted_at[:, block.first : block.first + columns]).to(device)
    t = torch.arange(block.start, block.start + rows, device=device)
    return last[:, None, :] >= t[:, None]


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
