"""The caches of one layer while the model runs: rows go in, and which keys they attend comes out.

They live on the CPU, whatever the model runs on, and different ones may be fed from different
threads: the policy's loop is compiled and holds no lock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.attention.fixed_point import fixed_from_bits
from h2osim.attention.row_loops import pack
from h2osim.attention.triangle import tri
from h2osim.engines.request import Job
from h2osim.engines.stepper import Stepper
from h2osim.models.rows import Call, Layer
from h2osim.policies.declaration import Configured
from h2osim.support.errors import UserError
from h2osim.traces.unit import split_layer


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


def units_of(layer: Layer, share: str) -> int:
    """How many units a layer has; heads that make their keys from one latent vector are a group."""
    return {"head": layer.heads, "group": layer.caches, "layer": 1}[share]


class LiveLayer:
    """A layer of the running model, in the form in which a unit reads a trace.

    Rules that ask for keys, values or queries read them from here; rows come block by block.
    """

    path: Path | None = None
    stores: tuple[str, ...] = ("scores",)

    def __init__(self, name: str, tensors: dict[str, Callable[[], NDArray[Any]]]):
        self.name, self._make = name, tensors
        self._made: dict[str, NDArray[Any]] = {}

    def tensors(self, layer: int) -> tuple[str, ...]:
        """Names of the tensors there are."""
        return tuple(self._make)

    def tensor(self, layer: int, name: str) -> NDArray[Any]:
        """Keys and values float32 [KV heads, n, d], queries [heads, n, d]; or KeyError."""
        if name not in self._made:
            self._made[name] = self._make[name]()
        return self._made[name]

    def layer_entry(self, layer: int) -> dict[str, Any]:
        """Nothing is recorded of the layer."""
        return {}

    def where(self, layer: int) -> str:
        """The layer's name, for messages."""
        return f"{self.name}, layer {layer}"

    def check_layer(self, layer: int) -> None:
        """There is nothing to check: the rows are made as they are read."""


def layer_jobs(
    name: str,
    call: Call,
    copy: int,
    n: int,
    share: str,
    prompt_len: int,
    eviction: Eviction,
    more: Mapping[str, Callable[[], Any]],
) -> list[Job]:
    """The units of one pass of a call that holds several side by side, as engines know them.

    more: tensors of the layer that the call does not have, queries [heads, rows so far, d] and
    output projections. Empty where the policy asks for no inputs, which are copied to the CPU.
    """
    configured, layer = eviction.configured, call.layer
    assert configured is not None
    if not configured.policy.given:
        return []
    here = slice(copy * layer.kv_heads, (copy + 1) * layer.kv_heads)
    alone = layer.latent and share != "head"  # all heads' keys of a token are one cached vector

    def whole(x: Any) -> NDArray[np.float32]:
        """float32 [caches, n, d]; zeros for tokens that lie before the model's own cache."""
        found = np.zeros((layer.kv_heads, n, x.shape[2]), np.float32)
        found[:, call.origin : call.origin + x.shape[1]] = x[here].float().cpu().numpy()
        return found.transpose(1, 0, 2).reshape(1, n, -1) if alone else found

    def queries(make: Callable[[], Any]) -> NDArray[np.float32]:
        found, rows = np.zeros((layer.heads, n, layer.head_dim), np.float32), make()
        found[:, : rows.shape[1]] = rows.float().cpu().numpy()
        return found

    if alone and "output_norms" in configured.needs:
        raise UserError(
            f"policy {configured.text}: layer {layer.index} of {name} caches one vector for all "
            "heads, which has no norms behind W_o"
        )
    tensors = {"k": lambda: whole(call.k), "v": lambda: whole(call.v)}
    tensors |= {x: make if x == "w_o" else partial(queries, make) for x, make in more.items()}
    live = LiveLayer(name, tensors)
    caches = range(1 if alone else layer.kv_heads)
    units = split_layer(live, layer.index, range(layer.heads), caches, n, share)
    budgets = eviction.of(layer.index, len(units))
    return [
        Job(unit, configured, budget, prompt_len)
        for unit, budget in zip(units, budgets, strict=True)
    ]


class LayerCache(ABC):
    """The caches of one layer: takes rows, says what they attend and what became of the tokens."""

    def __init__(self) -> None:
        self._kept: list[NDArray[np.int64]] = []
        self._masses: list[NDArray[np.int64]] = []

    @abstractmethod
    def feed(self, rows: NDArray[np.uint16], start: int, first: int) -> None:
        """Take rows `start` on: float16 patterns [heads, rows, columns], of keys `first` on."""

    @abstractmethod
    def evicted_at(self) -> NDArray[np.int32]:
        """The step after which each token is never attended again, [units, tokens so far]."""

    def visible(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Which tokens a rule lets rows start … stop-1 attend, [units, rows, stop]; None: all."""
        return None

    def found(self) -> LayerFound:
        """What happened in this layer."""
        kept, masses = (np.concatenate(x, axis=1) for x in (self._kept, self._masses))
        return LayerFound(kept, masses, self.evicted_at())


class PolicyLayer(LayerCache):
    """The policy on the units of one layer, fed with the prompt's rows, then with decode rows.

    jobs: what is known of the units, of the tokens that there are so far, where the policy asks for
    inputs. heads: of each unit.
    """

    def __init__(
        self,
        configured: Configured,
        budgets: Sequence[int],
        prompt_len: int,
        heads: int,
        jobs: Sequence[Job],
    ):
        super().__init__()
        # The stepper gets the list, not this object: a cycle would keep a GPU's keys and values.
        self.jobs, self.asks = list(jobs), bool(configured.policy.given)
        self._hides = configured.policy.visible is not None
        self._stepper = Stepper(
            configured, budgets, prompt_len=prompt_len, heads=heads,
            inputs={name: _numbers(self.jobs, name) for name in configured.policy.given},
        )  # fmt: skip

    def feed(self, rows: NDArray[np.uint16], start: int, first: int) -> None:
        """Take rows `start` on: float16 patterns [heads, rows, columns], of keys `first` on."""
        self.feed_packed(packed(rows, start, first), start, start + rows.shape[1])
        self._kept.append(self._stepper.kept)
        self._masses.append(self._stepper.masses)

    def feed_packed(self, bits: NDArray[np.uint16], start: int, stop: int) -> None:
        """Feed packed rows [heads, packed]; the heads of a unit stand together."""
        units = bits.reshape(self._stepper.masses.shape[0], -1, bits.shape[1])
        units.flags.writeable = False
        self._stepper.feed(units, start, start, stop)

    def evicted_at(self) -> NDArray[np.int32]:
        """As the stepper says."""
        found: NDArray[np.int32] = self._stepper.evicted_at
        return found

    def visible(self, start: int, stop: int) -> NDArray[np.bool_] | None:
        """Which tokens the policy's rule lets the rows attend, [units, rows, stop]."""
        return self._stepper.visible(start, stop) if self._hides else None


def _numbers(jobs: Sequence[Job], name: str) -> Callable[[int, int], NDArray[np.float64]]:
    return lambda start, stop: np.stack([job.inputs[name][start:stop] for job in jobs])


class MaskedLayer(LayerCache):
    """Caches that lose what a replay evicted, whatever the rows are now."""

    def __init__(self, evicted_at: NDArray[np.int32]):
        super().__init__()
        self._evicted_at = evicted_at

    def feed(self, rows: NDArray[np.uint16], start: int, first: int) -> None:
        """Take rows `start` on: float16 patterns [heads, rows, columns], of keys `first` on."""
        last = self._evicted_at[:, None, first : first + rows.shape[2]]
        attended = last >= np.arange(start, start + rows.shape[1])[:, None]
        fixed = fixed_from_bits(rows).reshape(len(attended), -1, *rows.shape[1:])
        self._kept.append((fixed * attended[:, None]).sum(axis=(1, 3)))
        self._masses.append(fixed.sum(axis=(1, 3)))

    def evicted_at(self) -> NDArray[np.int32]:
        """As the replay said."""
        return self._evicted_at


def packed(rows: NDArray[np.uint16], start: int, first: int) -> NDArray[np.uint16]:
    """Rows [heads, rows, columns from `first` on] as [heads, packed], row `start` at the front."""
    heads, count, _ = rows.shape
    bits = np.zeros((heads, tri(start + count) - tri(start)), np.uint16)
    pack(rows, start, first, bits)
    return bits
