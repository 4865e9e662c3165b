"""What evictions would cost, measured on the run of a model that evicts nothing.

The decode steps run once with the full cache and keep their queries, keys and values. For caches
that a replay of that run decided, :func:`measure` then works out, head by head and step by step,
how far the output o of the attention moves to o_S (the softmax over what is cached), and what that
means further up:

* the move after the layer's output projection W_o, against the norm of the residual stream x;
* a first-order estimate of the KL divergence of the prediction. Let z be the logits of all steps,
  J their derivative by the attention outputs of all layers and steps, and d = o_S - o. To second
  order the divergences of all steps add up to 1/2 (J d)' F (J d), F the Fisher information of the
  softmax, diag(p) - p p' in each step. With random signs s and g = diag(sqrt p) s - p (sqrt p)' s,
  which has E[g g'] = F, this is 1/2 E[(g' J d)^2] (Hutchinson's estimator), and g' J is one
  backward pass of the uncompressed run, the same for every policy and budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from h2osim.closed_loop.attention import NoRows, pack_rows
from h2osim.closed_loop.decoding import Prompt
from h2osim.models.hook import Session, hooked
from h2osim.models.loading import quiet
from h2osim.models.rows import Call, output_only, softmax_blocks
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

WINDOW = 32
SKIPPED = 2
"""Layers from the bottom that the residual error leaves out: large errors with little effect."""


@dataclass
class Uncompressed:
    """The decode steps of one text with the full cache; everything by layer, from the bottom.

    calls: the layer's queries (of the decode rows), keys and values. projections: W_o, [model
    size, heads * d]. residuals: norm of the residual stream before the layer, [steps].
    gradients: g'J by the attention output, [probes, steps, heads * d]. entropy: of each step's
    prediction, nats [steps]. trace: its attention rows.
    """

    prompt_len: int
    calls: list[Call] = field(default_factory=list)
    projections: list[torch.Tensor] = field(default_factory=list)
    residuals: list[torch.Tensor] = field(default_factory=list)
    gradients: list[torch.Tensor] = field(default_factory=list)
    entropy: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    trace: Trace | None = None


class _Session(Session):
    """Dense attention by PyTorch's own function, to which a shift of 0 is added.

    The derivatives by the shifts are those by the attention outputs.
    """

    def __init__(self, model: str):
        super().__init__(model, NoRows())
        self.calls: list[Call] = []
        self.shifts: list[torch.Tensor] = []

    def output(self, call: Call) -> torch.Tensor:
        """The dense output and the shift."""
        known_attention(self, call)
        found = output_only(call)
        shift = torch.zeros_like(found).requires_grad_()
        self.calls.append(call)
        self.shifts.append(shift)
        return found + shift


def known_attention(session: Session, call: Call) -> None:
    """Refuse a layer whose attention has more to it than these measures know."""
    if call.sinks is not None or call.layer.softcap is not None:
        what = "learned sinks" if call.sinks is not None else "soft-capped logits"
        raise session.refuse(f"its {what}, which these measures do not know")


def decoder_blocks(prompt: Prompt) -> list[Any]:
    """The model's decoder layers; UserError where they have no ``self_attn.o_proj``."""
    modules = prompt.loaded.model.modules()
    blocks = [m for m in modules if hasattr(getattr(m, "self_attn", None), "o_proj")]
    if len(blocks) != len(prompt.layers):
        raise UserError(
            f"{prompt.loaded.name}: found {len(blocks)} layers with self_attn.o_proj, expected "
            f"{len(prompt.layers)}, one for each attention layer"
        )
    return blocks


def run(prompt: Prompt, rest: Sequence[int], probes: int, seed: int = 0) -> Uncompressed:
    """Run the tokens after the prompt with the full cache, and ``probes`` backward passes.

    UserError for a model whose decoder layers have no ``self_attn.o_proj``.
    """
    model, session = prompt.loaded.model, _Session(prompt.loaded.name)
    session.seen = prompt.length
    ids = torch.tensor([list(rest)], device=prompt.ids.device)
    found = Uncompressed(prompt.length)
    blocks = decoder_blocks(prompt)

    def see(module: Any, arguments: Any, named: Mapping[str, Any]) -> None:
        x = arguments[0] if arguments else named["hidden_states"]
        found.residuals.append(x[0].detach().norm(dim=-1))

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(see, with_kwargs=True).remove)
        for context in (quiet(), _frozen(model), torch.enable_grad(), hooked(model, session)):
            stack.enter_context(context)
        session.begin(ids.shape[1])
        logits = prompt.forward(ids, session.seen, prompt.cache()).logits[0]
        p = logits.detach().float().softmax(dim=1)
        found.entropy = -(p * p.clamp_min(1e-30).log()).sum(dim=1)
        root, draws = p.sqrt(), torch.Generator().manual_seed(seed)
        gradients = []
        for _ in range(probes):
            signs = torch.randint(0, 2, p.shape, generator=draws).to(p).mul_(2).sub_(1)
            g = root * signs
            g -= p * g.sum(dim=1, keepdim=True)
            gradients.append(
                torch.autograd.grad(logits, session.shifts, g.to(logits), retain_graph=True)
            )
    found.gradients = [
        torch.stack([one.flatten(1) for one in layer]) for layer in zip(*gradients, strict=True)
    ]
    found.projections = [block.self_attn.o_proj.weight.detach() for block in blocks]
    found.calls = [
        Call(c.layer, c.q.detach(), c.k.detach(), c.v.detach(), c.start, c.origin, c.allowed, None)
        for c in session.calls
    ]
    found.trace = _trace(prompt, found)
    return found


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """No derivatives by the weights."""
    wanted = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in wanted:
            weight.requires_grad_(True)


def _trace(prompt: Prompt, found: Uncompressed) -> Trace:
    """The run's attention as a trace, prompt and decode rows."""
    bits = [
        np.concatenate(
            [
                prompt.rows(call.layer.index),
                *(pack_rows(block) for block in softmax_blocks(call)),
            ],
            axis=1,
        )
        for call in found.calls
    ]
    values = np.stack([call.v.float().cpu().numpy() for call in found.calls])
    layer = found.calls[0].layer
    return Trace.from_packed(
        np.stack(bits), group_size=layer.group_size, prompt_len=prompt.length,
        layers=[call.layer.index for call in found.calls], v=values,
        v_norm1=np.abs(values).sum(axis=-1),
    )  # fmt: skip


def measure(
    run: Uncompressed, evictions: Sequence[NDArray[np.int32]]
) -> dict[str, NDArray[np.float64]]:
    """Each measure of `h2osim.closed_loop.measures`, [evictions]; by layer, [evictions, layers].

    evictions: the step after which each token is never attended again, int32 [layers, units, n].
    By layer: ``layer_residual`` is the mean over steps of |W_o(o - o_S)|^2 / |x|^2, and
    ``layer_gradient`` the first-order KL of the layer's errors, tokens independent.
    """
    count, layers = len(evictions), len(run.calls)
    steps, probes = len(run.entropy), len(run.gradients[0])
    by_head = torch.zeros(5, count, layers, run.calls[0].layer.heads, dtype=torch.float64)
    relative = torch.zeros(count, layers, steps)  # |W_o d|^2 / |x|^2
    moved = torch.zeros(count, steps, run.projections[0].shape[0])
    slope = torch.zeros(count, layers, probes, steps)  # g'J d, tokens apart
    for index, call in enumerate(run.calls):
        lasts = [torch.from_numpy(np.array(one[index])) for one in evictions]
        for block in softmax_blocks(call):
            _measure_block(run, index, block, lasts, by_head, relative, moved, slope)
    value_share, lost, lost_abs, attention, power = by_head.unbind(0)
    weights = run.entropy / run.entropy.sum()
    upper = relative[:, min(SKIPPED, layers - 1) :].mean(dim=1)
    joint = slope.sum(dim=1)  # [evictions, probes, steps]
    windows = torch.nn.functional.pad(joint, (0, -steps % WINDOW)).unflatten(2, (-1, WINDOW))
    tokens = joint.square().mean(dim=1) / 2
    found = {
        "value_recall": value_share.mean((1, 2)) / steps,
        "output_error": (lost / power).mean((1, 2)),
        "output_error_abs": lost_abs.mean((1, 2)) / steps,
        "attention_error": attention.mean((1, 2)) / steps,
        "residual_error": upper.mean(dim=1).sqrt(),
        "residual_error_entropy": (upper @ weights).sqrt(),
        "residual_sum": (moved.norm(dim=2) / run.residuals[-1]).mean(dim=1),
        "gradient_alone": slope.square().mean(2).sum((1, 2)) / 2 / steps,
        "gradient_token": tokens.mean(dim=1),
        "gradient_window": windows.sum(3).square().mean(1).sum(1) / 2 / steps,
        "gradient_joint": joint.sum(2).square().mean(1) / 2 / steps,
        "gradient_damped": tokens.log1p().mean(dim=1),
        "layer_residual": relative.mean(dim=2),
        "layer_gradient": slope.square().mean((2, 3)) / 2,
    }
    return {name: x.double().numpy() for name, x in found.items()}


def _measure_block(
    run: Uncompressed,
    index: int,
    block: Any,
    lasts: Sequence[torch.Tensor],
    by_head: torch.Tensor,
    relative: torch.Tensor,
    moved: torch.Tensor,
    slope: torch.Tensor,
) -> None:
    """Add up a block of rows of one layer for every eviction."""
    call, p = run.calls[index], block.p
    heads, rows, width = p.shape
    here = slice(block.start - call.start, block.start - call.start + rows)
    keys = slice(block.first - call.origin, block.first - call.origin + width)
    v = call.v[:, keys]
    # Beside the values their norms and ones: one product gives o_S, the mass and its value share.
    wide = torch.cat([v, v.norm(dim=2, keepdim=True), torch.ones_like(v[..., :1])], dim=2)

    def mixed(weights: torch.Tensor) -> torch.Tensor:
        x = weights.reshape(call.layer.kv_heads, -1, width)
        return torch.bmm(x, wide).view(heads, rows, -1)

    full, squares = mixed(p), torch.linalg.vecdot(p, p)
    o = full[..., :-2] / full[..., -1:]
    t = torch.arange(block.start, block.start + rows)[:, None]
    gradients, x = run.gradients[index][:, here], run.residuals[index][here]
    for e, last in enumerate(lasts):
        attended = last[:, None, block.first : block.first + width] >= t
        kept = (p.view(len(last), -1, rows, width) * attended[:, None]).view(heads, rows, width)
        found = mixed(kept)
        mass = found[..., -1:]
        d = torch.where(mass > 0, found[..., :-2] / mass, 0) - o
        norms, share = d.norm(dim=2), mass[..., 0] / full[..., -1]
        within = torch.linalg.vecdot(kept, kept) / mass[..., 0].square().clamp_min(1e-30)
        by_head[0, e, index] += (found[..., -2] / full[..., -2]).sum(1)
        by_head[1, e, index] += norms.square().sum(1)
        by_head[2, e, index] += norms.sum(1)
        by_head[3, e, index] += (squares + within * (1 - 2 * share)).sum(1)
        by_head[4, e, index] += o.square().sum((1, 2))
        flat = d.transpose(0, 1).reshape(rows, -1)
        error = flat @ run.projections[index].T
        moved[e, here] += error
        relative[e, index, here] = error.square().sum(1) / x.square()
        slope[e, index, :, here] = torch.einsum("kre,re->kr", gradients, flat)
