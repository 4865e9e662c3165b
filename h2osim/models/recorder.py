"""A recording from its first token to the trace on disk."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from h2osim.attention.triangle import pack, tri
from h2osim.models import hook as attention
from h2osim.models import loading as models
from h2osim.models.hook import Layer, RowBlock, Session, hooked
from h2osim.support.errors import UserError
from h2osim.support.progress import Progress
from h2osim.traces.writer import LayerWriter, TraceWriter


@dataclass(frozen=True)
class Wanted:
    """The arguments of `h2osim.record.record`, checked as far as that goes without the model."""

    path: Path
    text: str | None
    tokens: list[int] | None
    n_tokens: int | None
    stores: tuple[str, ...]
    layers: Sequence[int] | None
    kv_heads: Sequence[int] | None
    values: bool
    generate: int
    sample: bool
    seed: int
    temperature: float
    tokenizer: Any
    text_name: str | None
    text_license: str | None
    name: str | None
    command: str | None
    overwrite: bool
    progress: Progress
    block_bytes: int | None


@dataclass(frozen=True)
class RecordingPlan:
    """What is written: n rows of `heads` in `layers`; `order` is how the model calls its layers."""

    n: int
    order: tuple[int, ...]
    layers: frozenset[int]
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    stores: tuple[str, ...]
    values: bool


class _Enough(Exception):
    """Ends a pass of the model after the last layer that matters."""


def run(model: Any, wanted: Wanted) -> Path:
    """Record; see `h2osim.record.record`."""
    fields = {} if wanted.name is None else {"name": wanted.name}
    with TraceWriter(wanted.path, overwrite=wanted.overwrite, **fields) as writer:
        if isinstance(model, str):
            wanted.progress(0, 0, f"loading {model}")
            loaded = models.load(model)
        else:
            loaded = models.given(model, wanted.tokenizer)
        with models.quiet(), torch.inference_mode():
            _record(loaded, wanted, writer)
    return wanted.path


def _record(loaded: models.Model, wanted: Wanted, writer: TraceWriter) -> None:
    model = loaded.model
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"model {loaded.name}: an encoder-decoder ({model.config.model_type}) cannot be "
            f"recorded, only causal decoders"
        )
    ids = _ids(loaded, wanted)
    n = len(ids) + wanted.generate
    if loaded.context is not None and n > loaded.context:
        raise UserError(
            f"model {loaded.name}: found {n} tokens to run, expected at most its context of "
            f"{loaded.context}"
        )
    facts = _probe(loaded, ids)
    plan, sample_layer = _plan(loaded, wanted, n, facts)
    sink = _TraceSink(writer, plan, wanted.progress, hold=wanted.generate > 0)
    session = Session(loaded.name, sink, block_bytes=wanted.block_bytes or attention.BLOCK_BYTES)
    writer.manifest.update(
        command=wanted.command,
        model={
            "name": loaded.name,
            "revision": loaded.revision,
            "architecture": loaded.architecture,
            "sha256": loaded.sha256,
        },
        tokenizer=None if loaded.tokenizer is None else type(loaded.tokenizer).__name__,
        text=_text_fields(wanted),
        n=n,
        prompt_len=len(ids) if wanted.generate else None,
        generation=_generation_fields(wanted),
        stores=list(plan.stores),
        heads=list(plan.heads),
        kv_heads=list(plan.kv_heads),
        group_size=sample_layer.group_size,
        model_heads=sample_layer.heads,
        model_kv_heads=sample_layer.kv_heads,
        head_dim=sample_layer.head_dim,
        provenance={
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
            "weights": "float32",
        },
    )
    try:
        with hooked(model, session):
            if wanted.generate:
                ids = _decode(loaded, wanted, session, ids)
            else:
                session.begin(n)
                model(**_inputs(ids, n), use_cache=False)
    except _Enough:
        pass
    finally:
        sink.close()
    writer.manifest["layers"].sort(key=lambda layer: layer["index"])
    for layer in writer.manifest["layers"]:
        layer["window"] = sink.windows[layer["index"]]
    writer.manifest["tokens"] = {"ids": ids, "text": pieces(loaded.tokenizer, ids)}


def _ids(loaded: models.Model, wanted: Wanted) -> list[int]:
    """The token ids the model is given."""
    where = f"text {wanted.text_name}" if wanted.text_name else "text"
    if wanted.tokens is not None:
        ids = wanted.tokens
        for place, token in enumerate(ids):
            if not 0 <= token < loaded.vocabulary:
                raise UserError(
                    f"tokens: found id {token} at place {place}, expected 0 ... "
                    f"{loaded.vocabulary - 1}"
                )
    elif loaded.tokenizer is None:
        raise UserError(f"model {loaded.name}: has no tokenizer; give token ids instead of a text")
    else:
        ids = [int(token) for token in loaded.tokenizer(wanted.text)["input_ids"]]
    count = len(ids) if wanted.n_tokens is None else wanted.n_tokens
    if len(ids) < count or not ids:
        raise UserError(f"{where}: found {len(ids)} tokens, expected at least {max(count, 1)}")
    return ids[:count]


def _probe(loaded: models.Model, ids: list[int]) -> dict[int, Layer]:
    """The model's attention layers, in the order it calls them, from a pass over a few tokens."""
    sink = _LayerFacts()
    session = Session(loaded.name, sink)
    few = ids[:4]
    with hooked(loaded.model, session):
        session.begin(len(few))
        loaded.model(**_inputs(few, len(few)), use_cache=False)
    if not sink.found:
        raise session.refuse(
            f"{attention.NO_INTERFACE} (model type {loaded.model.config.model_type})"
        )
    return sink.found


def _inputs(ids: list[int], seen: int) -> dict[str, torch.Tensor]:
    """Arguments for a call of the model that has seen `seen` tokens in all, these included."""
    # The mask of ones says that it is one sequence: transformers would look for several otherwise.
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, seen).long()}


def _plan(
    loaded: models.Model, wanted: Wanted, n: int, facts: dict[int, Layer]
) -> tuple[RecordingPlan, Layer]:
    order = tuple(facts)
    if wanted.layers is None:
        chosen = sorted(order)
    else:
        chosen = sorted(set(wanted.layers))
        for index in chosen:
            if index not in facts:
                raise UserError(
                    f"layers: found {index}, expected attention layers of {loaded.name}: "
                    f"{_ranges(sorted(order))}"
                )
        if not chosen:
            raise UserError("layers: found none, expected at least one")
    first = facts[chosen[0]]
    for index in chosen:
        other = facts[index]
        if (other.heads, other.kv_heads, other.head_dim) != (
            first.heads,
            first.kv_heads,
            first.head_dim,
        ):
            raise UserError(
                f"layers: layer {index} of {loaded.name} has {other.heads} heads, "
                f"{other.kv_heads} KV heads of size {other.head_dim}, layer {first.index} has "
                f"{first.heads}, {first.kv_heads}, {first.head_dim}; record them apart"
            )
    kv_heads = range(first.kv_heads) if wanted.kv_heads is None else sorted(set(wanted.kv_heads))
    for head in kv_heads:
        if not 0 <= head < first.kv_heads:
            raise UserError(f"kv-heads: found {head}, expected 0 ... {first.kv_heads - 1}")
    if not kv_heads:
        raise UserError("kv-heads: found none, expected at least one")
    group = first.group_size
    plan = RecordingPlan(
        n=n,
        order=order,
        layers=frozenset(chosen),
        heads=tuple(g * group + i for g in kv_heads for i in range(group)),
        kv_heads=tuple(kv_heads),
        stores=wanted.stores,
        values=wanted.values,
    )
    return plan, first


def _ranges(numbers: Sequence[int]) -> str:
    """0, 1, 2, 5 as `0-2, 5`."""
    words: list[str] = []
    start = previous = numbers[0]
    for number in [*numbers[1:], None]:
        if number is not None and number == previous + 1:
            previous = number
            continue
        words.append(str(start) if start == previous else f"{start}-{previous}")
        if number is not None:
            start = previous = number
    return ", ".join(words)


def _text_fields(wanted: Wanted) -> dict[str, Any] | None:
    if wanted.text is None and wanted.text_name is None:
        return None
    digest = None if wanted.text is None else hashlib.sha256(wanted.text.encode()).hexdigest()
    return {"name": wanted.text_name, "sha256": digest, "license": wanted.text_license}


def _generation_fields(wanted: Wanted) -> dict[str, Any] | None:
    if not wanted.generate:
        return None
    return {
        "tokens": wanted.generate,
        "method": "sample" if wanted.sample else "greedy",
        "seed": wanted.seed if wanted.sample else None,
        "temperature": wanted.temperature if wanted.sample else None,
    }


class _LayerFacts:
    """A sink that keeps what the layers are, and none of their rows."""

    def __init__(self) -> None:
        self.found: dict[int, Layer] = {}

    def wants(self, layer: Layer) -> bool:
        self.found[layer.index] = layer
        return False

    def block(self, layer: Layer, block: RowBlock) -> None:
        raise AssertionError("no rows were wanted")

    def end(self, layer: Layer, start: int, q: Any, k: Any, v: Any) -> None:
        pass


class _TraceSink:
    """Writes the layers of a plan.

    Without `hold` every layer comes once, whole: its file is closed at its end, and the pass is
    ended after the last one. With it the files stay open for the rows of later calls.
    """

    def __init__(
        self, writer: TraceWriter, plan: RecordingPlan, progress: Progress, *, hold: bool
    ) -> None:
        self._writer, self._plan, self._progress, self._hold = writer, plan, progress, hold
        self._open: dict[int, tuple[AbstractContextManager[LayerWriter], LayerWriter]] = {}
        self._left = set(plan.layers)
        last = max(plan.order.index(index) for index in plan.layers)
        self._total = plan.n * (len(plan.order) if hold else last + 1)
        self._done = 0
        self.windows: dict[int, int | None] = {}

    def wants(self, layer: Layer) -> bool:
        index = layer.index
        if index not in self._plan.layers:
            return False
        if "qk" in self._plan.stores and not layer.regular:
            raise UserError(
                f"layer {index}: its mask is neither causal nor a sliding window, so rows cannot "
                f"be made from queries and keys; expected store scores"
            )
        if index not in self._open:
            context = self._file(layer)
            self._open[index] = (context, context.__enter__())
        # A window may show only once a run is longer than it.
        self.windows[index] = self.windows.get(index) or layer.window
        return "scores" in self._plan.stores

    def block(self, layer: Layer, block: RowBlock) -> None:
        _, file = self._open[layer.index]
        heads = list(self._plan.heads)
        rows = block.p.shape[1]
        stop = block.start + rows
        file["lse"][:, block.start : stop] = block.lse[heads].cpu().numpy()
        file["row_sum"][:, block.start : stop] = block.row_sum[heads].cpu().numpy()
        square = np.zeros((rows, stop), dtype=np.float16)
        for place, head in enumerate(heads):
            square[:, block.first :] = block.p[head].to(torch.float16).cpu().numpy()
            file.write_rows("scores", place, block.start, pack(square, block.start))
        self._tell(layer, rows)

    def end(
        self, layer: Layer, start: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> None:
        if layer.index not in self._plan.layers:
            self._tell(layer, q.shape[1])
            return
        if "scores" not in self._plan.stores:
            self._tell(layer, q.shape[1])
        context, file = self._open[layer.index]
        here = slice(start, start + q.shape[1])
        kv_heads = list(self._plan.kv_heads)
        keys, values = k[kv_heads].float(), v[kv_heads].float()
        file["v_norm1"][:, here] = values.abs().sum(dim=2).cpu().numpy()
        file["v_norm2"][:, here] = values.norm(dim=2).cpu().numpy()
        file["k_norm2"][:, here] = keys.norm(dim=2).cpu().numpy()
        if "qk" in self._plan.stores:
            file["q"][:, here] = q[list(self._plan.heads)].float().cpu().numpy()
            file["k"][:, here] = keys.cpu().numpy()
        if self._plan.values:
            file["v"][:, here] = values.cpu().numpy()
        if self._hold:
            return
        del self._open[layer.index]
        context.__exit__(None, None, None)
        self._left.discard(layer.index)
        if not self._left:
            raise _Enough

    def close(self) -> None:
        """Close the files still open."""
        while self._open:
            _, (context, _file) = self._open.popitem()
            context.__exit__(None, None, None)

    def _tell(self, layer: Layer, rows: int) -> None:
        self._done += rows
        place = self._plan.order.index(layer.index) + 1
        self._progress(
            self._done, self._total, f"layer {layer.index} ({place} of {len(self._plan.order)})"
        )

    def _file(self, layer: Layer) -> AbstractContextManager[LayerWriter]:
        n, heads, kv_heads = self._plan.n, len(self._plan.heads), len(self._plan.kv_heads)
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {
            "v_norm1": ("F32", (kv_heads, n)),
            "v_norm2": ("F32", (kv_heads, n)),
            "k_norm2": ("F32", (kv_heads, n)),
        }
        if "scores" in self._plan.stores:
            tensors["scores"] = ("F16", (heads, tri(n)))
            tensors["lse"] = tensors["row_sum"] = ("F32", (heads, n))
        if "qk" in self._plan.stores:
            tensors["q"] = ("F32", (heads, n, layer.head_dim))
            tensors["k"] = ("F32", (kv_heads, n, layer.head_dim))
        if self._plan.values:
            tensors["v"] = ("F32", (kv_heads, n, layer.value_dim))
        return self._writer.layer(
            layer.index, tensors=tensors, scale=layer.scale, softcap=layer.softcap
        )


def _decode(loaded: models.Model, wanted: Wanted, session: Session, prompt: list[int]) -> list[int]:
    """Prompt and generated tokens of a decoding run; all of them have been fed when it returns."""
    model = loaded.model
    accepts = inspect.signature(model.forward).parameters
    only_last = {"logits_to_keep": 1} if "logits_to_keep" in accepts else {}
    banned = _end_tokens(loaded)
    generator = torch.Generator().manual_seed(wanted.seed)
    ids, cache = list(prompt), None
    fed = 0
    while True:
        new = ids[fed:]
        session.begin(len(new))
        result = model(**_inputs(new, len(ids)), past_key_values=cache, use_cache=True, **only_last)
        fed = len(ids)
        if fed == len(prompt) + wanted.generate:
            return ids
        cache = getattr(result, "past_key_values", None)
        if cache is None:
            raise session.refuse("it keeps no cache of keys and values, so it cannot decode")
        logits = result.logits[0, -1].double().cpu()
        logits[banned] = -torch.inf
        if wanted.sample:
            chances = torch.softmax(logits / wanted.temperature, dim=0)
            choice = torch.multinomial(chances, 1, generator=generator)
        else:
            choice = torch.argmax(logits)
        ids.append(int(choice))


def _end_tokens(loaded: models.Model) -> list[int]:
    """Ids that end a text, by what the model and the tokenizer say."""
    generation = getattr(loaded.model, "generation_config", None)
    found: set[Any] = set()
    for source in (generation, loaded.model.config, loaded.tokenizer):
        value = getattr(source, "eos_token_id", None)
        found.update(value if isinstance(value, (list, tuple)) else [value])
    found.discard(None)
    return sorted(token for token in found if 0 <= token < loaded.vocabulary)


def pieces(tokenizer: Any, ids: list[int]) -> list[str] | None:
    """The text of each token; joined, they are the decoded text. None without a tokenizer.

    A character of several tokens belongs to the last of them, the others get an empty piece.
    """
    if tokenizer is None:
        return None

    def decode(some: list[int]) -> str:
        return str(
            tokenizer.decode(some, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    # How a token is spelled can depend on the one before (a space at the beginning of a word), so
    # a piece is what decoding a few tokens more adds. Tokens shown already stay in `context`.
    found: list[str] = []
    context: list[int] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        before, after = decode(context), decode(context + waiting)
        if after.endswith("\ufffd") and len(waiting) < 8:
            found.append("")
            continue
        found.append(after[len(before) :])
        context, waiting = waiting[-4:], []
    if waiting:
        found[-1] = decode(context + waiting)[len(decode(context)) :]
    return found
