"""H2O's FlexGen code: heavy slots, and a ring of recent ones, on a device that is made up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from cases import CASES, Case
from peers.shown import Sets, one_set, parts_of, positions, projections

SOURCE = "https://github.com/FMInference/H2O, h2o_flexgen/flexgen"


@dataclasses.dataclass
class Held:
    """What the source's tensors are to it: data, and the device that they lie on."""

    data: Any
    device: Any = None

    @property
    def shape(self) -> torch.Size:
        """Of its data."""
        return self.data.shape  # type: ignore[no-any-return]

    @staticmethod
    def create_from_torch(data: torch.Tensor, device: Any) -> Held:
        """As the source's class makes its own."""
        return Held(data, device)


@contextmanager
def without_gpu() -> Iterator[None]:
    """Let tensors stay where they are, in float32: on a GPU the source rounds them to float16."""
    kept = torch.Tensor.cuda, torch.Tensor.half, torch.float16
    torch.Tensor.cuda = torch.Tensor.half = lambda self, *_, **__: self
    torch.float16 = torch.float32
    yield
    torch.Tensor.cuda, torch.Tensor.half, torch.float16 = kept


def device_of(root: Path) -> tuple[Any, Callable[..., None]]:
    """The source's device, whose linear layers look vectors up, and its ``store_cache``."""
    types = SimpleNamespace(COMPRESSED=1, MIXED=2, DISK=3, CPU=4)
    looked_up = SimpleNamespace(
        layer_norm=lambda x, *_, **__: x, softmax=torch.nn.functional.softmax,
        linear=lambda x, weight, bias: weight(x),
    )  # fmt: skip
    code = parts_of(
        root / "h2o_flexgen/flexgen/pytorch_backend.py",
        ["TorchDevice", "cache_replace", "acc_replace"], DeviceType=types, TorchTensor=Held,
        F=looked_up,
    )  # fmt: skip
    device = code["TorchDevice"].__new__(code["TorchDevice"])
    device.dev, device.device_type = "cpu", types.CPU

    def copied(to: Held, there: Any, what: Held, _: Any) -> None:
        to.data[there] = what.data

    storing = parts_of(
        root / "h2o_flexgen/flexgen/flex_opt.py", ["SelfAttention"], general_copy=copied,
        **{name: code[name] for name in ("cache_replace", "acc_replace")},
    )  # fmt: skip
    return device, storing["SelfAttention"].store_cache


def run(root: Path, case: Case, p: int, heavy: int) -> Iterator[tuple[int, list[list[int]]]]:
    """What each head holds after each step."""
    device, store = device_of(root)
    layer = projections(case)
    no = Held(None)
    weights: list[Any] = []
    for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
        weights += [Held(layer[name], device), no]
    weights += [no, no]
    slots = 2 * heavy, case.heads
    home = tuple(Held(torch.zeros(shape)) for shape in ((*slots, case.n), (*slots, case.n), slots))
    owner = SimpleNamespace(
        task=SimpleNamespace(gen_len=case.n, prompt_len=p), hh_k=heavy,
        policy=SimpleNamespace(hh_all=True),
    )  # fmt: skip

    def shown(start: int, stop: int) -> Held:
        return Held(positions(start, stop).expand(1, stop - start, case.heads * case.n).clone())

    for t in range(p - 1, case.n - 2):
        if t < p:
            mask = Held(torch.ones(1, p, dtype=torch.bool))
            made = device.mha(
                shown(0, p), mask, *weights, case.heads, [False] * 14, False, None, heavy, True
            )
        else:
            mask = Held(torch.ones(1, 2 * heavy, dtype=torch.bool))
            made = device.mha_gen(
                shown(t, t + 1), mask, *weights, case.heads, *map(dataclasses.replace, home),
                [False] * 14, 1.0, False, None, heavy, True,
            )  # fmt: skip
        found = [made[1], made[2], made[3], made[4] if t >= p else None]
        store(owner, SimpleNamespace(val=home), SimpleNamespace(pop=lambda f=found: f), t - p + 1)
        yield t, home[0].data[: 2 * heavy - 1].argmax(dim=-1).T.tolist()


def sets(root: Path | None) -> Sets:
    """Several sizes of the heavy part, which set the budget."""
    assert root is not None
    with without_gpu():
        for name, p in (("rows-mha", 60), ("rows-mha", 20), ("decode-long", 40)):
            case = CASES[name]
            for heavy in (3, 6, 10):
                for t, left in run(root, case, p, heavy):
                    if t - p in (-1, 0, 1, 4, 12, 30):
                        yield one_set(
                            case, "mha, mha_gen, store_cache", "h2o-flexgen", 2 * heavy - 1, left,
                            after=t, p=p, share="head",
                        )  # fmt: skip
