"""What a layer does with its attention: the output projection, and the stream that it adds to.

Found by what happens, not by names: in a run over a few tokens, the projection of a layer is the
module with a matrix of weights that gets the attention's output as it is, and the layer's block is
the innermost member of a list of modules around it. What that block gets is the residual stream x
before the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.models.hook import Session, hooked
from h2osim.models.layers import TOKENS, Calls, call
from h2osim.models.loading import Model
from h2osim.models.rows import Layer
from h2osim.support.errors import UserError


@dataclass(frozen=True)
class Residual:
    """One layer: the module of its output projection, and its block."""

    projection: Any
    block: Any

    @property
    def width(self) -> int:
        """The residual stream's size."""
        return len(_matrix(self.projection))

    def weights(self, heads: int, size: int) -> NDArray[np.float32]:
        """W_o, float32 [heads, size, residual size]: o of head h adds o @ W_o[h] to the stream."""
        w = _matrix(self.projection)
        return w.T.reshape(heads, size, -1).float().cpu().numpy()


def _matrix(module: Any) -> torch.Tensor:
    """The weights as [out, in]; GPT-2's own kind of layer has them the other way round."""
    weight: torch.Tensor = module.weight.detach()
    return weight.T if type(module).__name__ == "Conv1D" else weight


class _Outputs(Session):
    """Keeps the output of the attention that was called last."""

    last: tuple[int, torch.Tensor] | None = None

    def attend(self, *arguments: Any, **named: Any) -> torch.Tensor:
        """As the session does."""
        found = super().attend(*arguments, **named)
        self.last = self._called[-1], found.flatten(2)
        return found


def find(loaded: Model, ids: list[int], layers: Sequence[Layer]) -> dict[int, Residual]:
    """The projection and the block of each layer; UserError naming a layer without."""
    session = _Outputs(loaded.name, Calls(), layers=layers)
    found: dict[int, Residual] = {}
    modules = dict(loaded.model.named_modules())

    def see(name: str, module: Any, x: Any) -> None:
        if session.last is None or session.last[0] in found or not isinstance(x, torch.Tensor):
            return
        index, output = session.last
        if x.shape == output.shape and torch.equal(x, output):
            parts = name.split(".")
            blocks = [i for i, part in enumerate(parts) if part.isdecimal()]
            if blocks:
                found[index] = Residual(module, modules[".".join(parts[: blocks[-1] + 1])])

    few = ids[:TOKENS]
    with ExitStack() as stack:
        for name, module in modules.items():
            if getattr(getattr(module, "weight", None), "ndim", 0) == 2:
                hook = module.register_forward_pre_hook(
                    lambda module, given, name=name: see(name, module, given[0] if given else None)
                )
                stack.callback(hook.remove)
        stack.enter_context(hooked(loaded.model, session))
        session.begin(len(few))
        call(loaded, few, len(few), use_cache=False)
    for layer in layers:
        if layer.index not in found:
            raise UserError(
                f"residual: layer {layer.index} of {loaded.name} gives its attention's output to "
                f"no projection as it is, so there is no W_o; record it without"
            )
    return found


@contextmanager
def watching(
    residuals: Mapping[int, Residual], norms: dict[int, NDArray[np.float32]]
) -> Iterator[None]:
    """Within the block, put the norms of what each layer's block gets into ``norms`` [rows]."""

    def see(index: int, given: Any, named: Mapping[str, Any]) -> None:
        x = given[0] if given else named["hidden_states"]
        norms[index] = x[0].detach().float().norm(dim=-1).cpu().numpy()

    with ExitStack() as stack:
        for index, one in residuals.items():
            hook = one.block.register_forward_pre_hook(
                lambda _, given, named, index=index: see(index, given, named), with_kwargs=True
            )
            stack.callback(hook.remove)
        yield
