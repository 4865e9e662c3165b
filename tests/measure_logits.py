"""How far the logits of a running model move when its cache evicts, and what could have told.

``python tests/measure_logits.py`` measures SmolLM2 on a text and prints three things side by
side: the true change of the logits, the product of Lipschitz factors that bounds it
(:mod:`statements.lipschitz`), and the first-order estimate, the derivative of the logits
along the output errors of all layers. Proof: proofs/25.

The output error of a layer is E_l = o_S - o: attention over what the policy left minus attention
over everything, for the same queries, keys and values. The model with the full cache to which E_l
is added in each layer *is* the evicted run, where E_l is taken at the evicted run's own inputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from statements.lipschitz import (
    LayerNorms,
    LayerWeights,
    attention_factor,
    head_factor,
    log10_product,
    mlp_factor,
)
from torch.autograd import forward_ad

from h2osim.closed_loop.attention import EvictingSession, NoRows, PromptSession
from h2osim.closed_loop.caches import Eviction
from h2osim.models import loading
from h2osim.models.hook import Session, hooked
from h2osim.models.rows import Call
from h2osim.policies.declaration import Configured
from h2osim.policies.text import parse
from h2osim.replays.budgets import budget_tokens
from h2osim.support.errors import UserError

Errors = Mapping[int, torch.Tensor]


@dataclass(frozen=True)
class Movement:
    """What one text shows. Numbers of decode steps are float64 [steps].

    largest: largest true change of a logit over all steps. log10_bound: decimal logarithm of the
    product bound on it. log10_factors: of the factor (1 + A)(1 + M) of each layer. length: of the
    change of the logits, centred (softmax does not see a constant), true; estimate: the same of the
    first-order estimate; distance: of their difference; apart: lengths of the layers' parts of the
    estimate, added up. kl: KL(full || evicted), nats; kl_estimate: half the variance of the
    estimate under the full cache's distribution. width: largest less smallest true change.
    """

    largest: float
    log10_bound: float
    log10_factors: NDArray[np.float64]
    length: NDArray[np.float64]
    estimate: NDArray[np.float64]
    distance: NDArray[np.float64]
    apart: NDArray[np.float64]
    kl: NDArray[np.float64]
    kl_estimate: NDArray[np.float64]
    width: NDArray[np.float64]
    identity: float


class _ErrorSession(EvictingSession):
    """Notes what eviction changes in each layer's output, [rows, heads, dv].

    closed: the layers above get the evicted output; else the full one, so that nothing of the run
    changes and the errors are those of the uncompressed run.
    """

    def __init__(self, *rest: Any, closed: bool):
        super().__init__(*rest)
        self._closed = closed
        self._dense = EvictingSession(rest[0], rest[1], [], *rest[3:])
        self.errors: dict[int, torch.Tensor] = {}

    def output(self, call: Call) -> torch.Tensor:
        """Attention over what is cached, or over everything; both are computed."""
        evicted, dense = super().output(call), self._dense.output(call)
        self.errors[call.layer.index] = evicted - dense
        return evicted if self._closed else dense


class _AddingSession(Session):
    """One pass over the whole text with the full cache; errors are added to its decode rows.

    Written without a change in place, since forward derivatives go through it. norms: the longest
    query, key and value of each head, where asked for.
    """

    def __init__(self, model: str, prompt_len: int, errors: Errors, norms: bool = False):
        super().__init__(model, NoRows())
        self._prompt_len, self._errors = prompt_len, errors
        self.norms: dict[int, tuple[Any, Any, Any]] | None = {} if norms else None

    def output(self, call: Call) -> torch.Tensor:
        """Dense causal attention and the layer's error."""
        layer, q, k, v = call.layer, call.q, call.k, call.v
        if call.allowed is not None or layer.window is not None or layer.softcap is not None:
            raise self.refuse("the factors are those of plain causal attention")
        if self.norms is not None:
            self.norms[layer.index] = tuple(
                x.norm(dim=2).amax(dim=1).double().numpy() for x in (q, k, v)
            )
        n = q.shape[1]
        k, v = (x.repeat_interleave(layer.group_size, dim=0) for x in (k, v))
        late = torch.ones(n, n, dtype=torch.bool).triu(1)
        logits = (layer.scale * q @ k.transpose(1, 2)).masked_fill(late, -torch.inf)
        dense = (logits.softmax(dim=2) @ v).transpose(0, 1)
        error = self._errors.get(layer.index)
        if error is None:
            return dense
        return torch.cat([dense[: self._prompt_len], dense[self._prompt_len :] + error])


class Perturbed:
    """A Llama-like model and a text whose first `prompt_len` tokens are read densely.

    UserError for a model of another architecture.
    """

    def __init__(self, loaded: loading.Model, ids: Sequence[int], prompt_len: int):
        self._loaded, self.n, self.prompt_len = loaded, len(ids), prompt_len
        self._ids = torch.tensor([list(ids)])
        if not hasattr(loaded.model, "model") or loaded.model.config.model_type != "llama":
            raise UserError(
                f"model {loaded.name}: found {loaded.architecture}, expected a Llama model"
            )

    def evict(
        self, policy: Configured, budget: int, *, closed: bool = True
    ) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """The output errors [steps, heads, dv] of each layer when the policy evicts, and logits.

        closed: of the evicted run; else of the uncompressed run, whose logits are the full ones.
        """
        p, name = self.prompt_len, self._loaded.name
        prompt = PromptSession(name)
        cache = getattr(self._call(prompt, 0, p, True, None), self._loaded.cache_argument)
        how = ([Eviction(policy, budget)], self.n, "group")
        session = _ErrorSession(name, prompt, *how, closed=closed)
        logits = self._call(session, p, self.n, True, cache).logits[0]
        return session.errors, logits

    def logits(self, errors: Errors) -> torch.Tensor:
        """Logits [steps, vocabulary] of the full cache with these errors added."""
        return self._dense(_AddingSession(self._loaded.name, self.prompt_len, errors))

    def derivative(self, errors: Errors) -> torch.Tensor:
        """The derivative of :meth:`logits` along the errors, at none: [steps, vocabulary]."""
        with forward_ad.dual_level():
            dual = {i: forward_ad.make_dual(torch.zeros_like(e), e) for i, e in errors.items()}
            tangent = forward_ad.unpack_dual(self.logits(dual)).tangent
            assert tangent is not None
            return tangent

    def factors(self, errors: Errors) -> tuple[list[tuple[float, float]], float, list[float]]:
        """What :func:`log10_product` takes: factors a layer, the head's, and the errors' lengths.

        For the pair of runs without and with these errors.
        """
        full, moved = self._norms({}), self._norms(errors)
        found, longest = [], []
        for i, layer in enumerate(self._loaded.model.model.layers):
            seen = LayerNorms(
                rms_attention=min(full["attention"][i], moved["attention"][i]),
                rms_mlp=min(full["mlp"][i], moved["mlp"][i]),
                key=full["qkv"][i][1], query=moved["qkv"][i][0], value=moved["qkv"][i][2],
                up=full["up"][i], gate=moved["gate"][i],
            )  # fmt: skip
            weights = _weights(layer)
            found.append((attention_factor(weights, seen), mlp_factor(weights, seen)))
            added = errors[i].flatten(1).double().numpy() @ weights.output.T
            longest.append(float(np.linalg.norm(added, axis=1).max()))
        model = self._loaded.model
        head = _array(model.lm_head.weight) * _array(model.model.norm.weight)
        return found, head_factor(head, min(full["last"][0], moved["last"][0])), longest

    def _dense(self, session: Session) -> torch.Tensor:
        logits: torch.Tensor = self._call(session, 0, self.n, False, None).logits[0]
        return logits[self.prompt_len :]

    def _call(self, session: Session, start: int, stop: int, caches: bool, cache: Any) -> Any:
        with loading.quiet(), torch.no_grad(), hooked(self._loaded.model, session):
            session.begin(stop - start)
            return self._loaded.model(
                input_ids=self._ids[:, start:stop],
                attention_mask=torch.ones(1, stop).long(),
                use_cache=caches,
                **{self._loaded.cache_argument: cache},
            )

    def _norms(self, errors: Errors) -> dict[str, list[Any]]:
        """Least s(x) of decode rows before each norm, and largest entries and lengths, a layer."""
        model, p = self._loaded.model.model, self.prompt_len
        found: dict[str, list[Any]] = {
            name: [] for name in ("attention", "mlp", "last", "up", "gate")
        }

        def least(name: str) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                square = inputs[0][0, p:].double().pow(2).mean(dim=1)
                found[name].append(float((square + module.variance_epsilon).min().sqrt()))

            return hook

        def largest(name: str, shape: Any) -> Any:
            def hook(module: Any, inputs: Any, output: Any) -> None:
                found[name].append(float(shape(output[0]).abs().max()))

            return hook

        handles = [model.norm.register_forward_hook(least("last"))]
        for layer in model.layers:
            handles += [
                layer.input_layernorm.register_forward_hook(least("attention")),
                layer.post_attention_layernorm.register_forward_hook(least("mlp")),
                layer.mlp.up_proj.register_forward_hook(largest("up", lambda x: x)),
                layer.mlp.gate_proj.register_forward_hook(
                    largest("gate", torch.nn.functional.silu)
                ),
            ]
        session = _AddingSession(self._loaded.name, p, errors, norms=True)
        try:
            self._dense(session)
        finally:
            for handle in handles:
                handle.remove()
        assert session.norms is not None
        found["qkv"] = [session.norms[i] for i in range(len(model.layers))]
        return found


def _array(x: torch.Tensor) -> NDArray[np.float64]:
    return x.detach().double().numpy()


def _weights(layer: Any) -> LayerWeights:
    """The matrices of a layer of transformers' Llama, gains folded in."""
    attention, mlp = layer.self_attn, layer.mlp
    first = _array(layer.input_layernorm.weight)
    second = _array(layer.post_attention_layernorm.weight)
    size = attention.head_dim

    def heads(projection: Any) -> NDArray[np.float64]:
        matrix = _array(projection.weight) * first
        return matrix.reshape(-1, size, matrix.shape[1])

    return LayerWeights(
        query=heads(attention.q_proj), key=heads(attention.k_proj), value=heads(attention.v_proj),
        output=_array(attention.o_proj.weight),
        gate=_array(mlp.gate_proj.weight) * second, up=_array(mlp.up_proj.weight) * second,
        down=_array(mlp.down_proj.weight), scale=float(attention.scaling),
    )  # fmt: skip


def measure(
    perturbed: Perturbed,
    policy: Configured,
    budget: int,
    *,
    closed: bool = True,
    quick: bool = False,
) -> Movement:
    """Bound, truth and first-order estimate of one policy at one budget (tokens).

    closed: the estimate uses the errors of the evicted run; else those read off the uncompressed
    run, for which the model need not decode with the policy. quick: one derivative along all errors
    at once instead of one a layer, the same estimate; `apart` is NaN.
    """
    inside, evicted = perturbed.evict(policy, budget)
    given = inside if closed else perturbed.evict(policy, budget, closed=False)[0]
    full, evicted = perturbed.logits({}).double(), evicted.double()
    change, same = evicted - full, perturbed.logits(inside).double()
    p, log_p = full.softmax(dim=1), full.log_softmax(dim=1)
    estimate, apart = torch.zeros_like(full), np.full(len(full), np.nan if quick else 0.0)
    for some in [given] if quick else [{layer: error} for layer, error in given.items()]:
        part = perturbed.derivative(some).double()
        estimate += part
        apart += _length(part)
    mean = (p * estimate).sum(dim=1, keepdim=True)
    factors, head, longest = perturbed.factors(inside)
    return Movement(
        identity=float((same - evicted).abs().max()),
        largest=float(change.abs().max()),
        log10_bound=log10_product(factors, head, longest),
        log10_factors=np.log10([(1 + a) * (1 + m) for a, m in factors]),
        length=_length(change),
        estimate=_length(estimate),
        distance=_length(estimate - change),
        apart=apart,
        width=(change.amax(dim=1) - change.amin(dim=1)).numpy(),
        kl=(p * (log_p - evicted.log_softmax(dim=1))).sum(dim=1).numpy(),
        kl_estimate=((p * (estimate - mean) ** 2).sum(dim=1) / 2).numpy(),
    )


def _length(x: torch.Tensor) -> NDArray[np.float64]:
    """Length of each row less its mean: softmax does not see a constant."""
    found: NDArray[np.float64] = (x - x.mean(dim=1, keepdim=True)).norm(dim=1).numpy()
    return found


def lines(found: Movement) -> list[str]:
    """What is printed of one measurement."""
    from scipy.stats import spearmanr

    def middle(x: NDArray[np.float64]) -> str:
        low, half, high = np.quantile(x, (0.1, 0.5, 0.9))
        return f"{half:.3g} ({low:.3g} to {high:.3g})"

    over = found.log10_bound - np.log10(found.largest)
    factors = found.log10_factors
    apart = [
        f"  first-order bound, layers added up / true            "
        f"{middle(found.apart / found.length)}"
    ]
    if np.isnan(found.apart).any():
        apart = []
    return [
        f"evicted run against full cache with the errors added   {found.identity:.1e}",
        f"largest change of a logit, true                        {found.largest:.3g}",
        f"largest change of a logit, product of factors          10^{found.log10_bound:.1f}",
        f"  product / truth                                      10^{over:.1f}",
        f"  factor of a layer, least to largest                  "
        f"10^{factors.min():.1f} to 10^{factors.max():.1f}",
        "for each step, median (10 % to 90 % of steps):",
        f"  length of the change, true                           {middle(found.length)}",
        f"  first-order estimate / true                          "
        f"{middle(found.estimate / found.length)}",
        f"  length of estimate - change / true                   "
        f"{middle(found.distance / found.length)}",
        *apart,
        f"  rank correlation of estimate and true over steps     "
        f"{spearmanr(found.estimate, found.length).statistic:.2f}",
        f"KL a token, true                                       {found.kl.mean():.4f}",
        f"KL a token, half the variance of the estimate          {found.kl_estimate.mean():.4f}",
        f"  rank correlation over steps                          "
        f"{spearmanr(found.kl_estimate, found.kl).statistic:.2f}",
        f"KL a token, bound min(w, w^2/8), w the true width      "
        f"{np.minimum(found.width, found.width**2 / 8).mean():.4g}",
    ]


def main(words: Sequence[str] | None = None) -> None:
    """Print what one text shows."""
    from h2osim.closed_loop.evaluating import text_ids

    parser = argparse.ArgumentParser(prog="python tests/measure_logits.py")
    parser.add_argument("--model", default="smollm2", help="smollm2, or a Llama model's folder")
    parser.add_argument("--text", type=Path, default=Path("traces/texts/prose.txt"))
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--policy", default="h2o")
    parser.add_argument("--budget", type=float, default=0.2, help="share of the tokens")
    parser.add_argument(
        "--open", action="store_true", help="errors read off the uncompressed run"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one derivative for all layers: their sum only"
    )
    asked = parser.parse_args(words)
    try:
        policy = parse(asked.policy)
        budget = budget_tokens(asked.budget, asked.tokens, asked.prompt_len)
        if policy.policy.oracle or policy.policy.readmits:
            raise UserError(f"policy {policy.text}: no running model can follow it")
        if not 1 <= asked.prompt_len < asked.tokens:
            raise UserError(
                f"prompt length {asked.prompt_len}: expected 1 to {asked.tokens - 1}"
            )
        if not asked.text.is_file():
            raise UserError(f"text {asked.text}: file not found")
        loaded = loading.load(asked.model)
        text = asked.text.read_text(encoding="utf-8")
        ids = text_ids(loaded, asked.text.stem, text, asked.tokens)
        perturbed = Perturbed(loaded, ids, asked.prompt_len)
        found = measure(perturbed, policy, budget, closed=not asked.open, quick=asked.quick)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{loaded.name}, {asked.text.name}: {asked.tokens} tokens, prompt {asked.prompt_len}, "
          f"{policy.text} with {budget} tokens")
    print("\n".join(lines(found)))


if __name__ == "__main__":
    main()
