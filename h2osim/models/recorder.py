"""A recording from its first token to the trace on disk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from h2osim.models import loading as models
from h2osim.models.hook import Session, UnknownAttention, hooked
from h2osim.models.layers import call, probe
from h2osim.models.own import NotGiven, OwnSession, Source
from h2osim.models.own import probe as probe_own
from h2osim.models.pieces import pieces
from h2osim.models.placing import check_device, placed
from h2osim.models.residual import find, watching
from h2osim.models.rows import BLOCK_BYTES, Layer
from h2osim.models.sink import Enough, RecordingPlan, TraceSink
from h2osim.models.wanted import Wanted
from h2osim.support.errors import UserError
from h2osim.support.machine import cores
from h2osim.support.progress import Progress
from h2osim.traces.catalogue import open_trace
from h2osim.traces.writer import TraceWriter

_GPU_BLOCK_BYTES = 1 << 28  # few blocks a layer: each waits for its copy to the host


def run(load: Callable[[], models.Model], wanted: Wanted) -> Path:
    """Record; see `h2osim.record`. The place is tried before the model is loaded."""
    fields = {} if wanted.name is None else {"name": wanted.name}

    def read_back(folder: Path) -> None:
        def check(index: int) -> None:
            open_trace(folder).check_layer(index)  # opened anew: its pages do not stay in memory

        try:
            with ThreadPoolExecutor(cores()) as pool:
                for _ in pool.map(check, open_trace(folder).layers):
                    pass
        except UserError as error:
            said = str(error).replace(str(folder), str(wanted.path))
            raise UserError(f"{said} (read back after recording; nothing was kept)") from None

    with TraceWriter(
        wanted.path, overwrite=wanted.overwrite, before_naming=read_back, **fields
    ) as writer:
        loaded = load()
        with models.quiet(), torch.inference_mode():
            _record(loaded, wanted, writer)
    return wanted.path


def ready(model: Any, tokenizer: Any, device: str | None, progress: Progress) -> models.Model:
    """The model that is meant, loaded unless the caller brings it, on its device."""
    if device is not None:
        check_device(device)
    if isinstance(model, str):
        progress(0, 0, f"loading {model}")
        loaded = models.load(model, lambda what: progress(0, 0, what))
    else:
        loaded = models.given(model, tokenizer)
    return loaded if device is None else placed(loaded, device)


def _record(loaded: models.Model, wanted: Wanted, writer: TraceWriter) -> None:
    model = loaded.model
    if getattr(model.config, "is_encoder_decoder", False):
        raise UserError(
            f"model {loaded.name}: an encoder-decoder ({model.config.model_type}) cannot be "
            f"recorded, only causal decoders"
        )
    ids = token_ids(loaded, wanted)
    n = len(ids) + wanted.generate
    layers, sources = _attention(loaded, ids)
    plan, first = _plan(loaded, wanted, n, layers)
    if wanted.residual or wanted.output_norms:
        found = find(loaded, ids, layers)
        plan = replace(plan, projected={index: found[index] for index in plan.layers})
    sink = TraceSink(writer, plan, wanted.progress, hold=wanted.generate > 0)
    usual = BLOCK_BYTES if model.device.type == "cpu" else _GPU_BLOCK_BYTES
    block_bytes = wanted.block_bytes or usual
    session: Session | OwnSession
    running: AbstractContextManager[None]
    if sources:
        session = OwnSession(loaded.name, sink, layers, sources, block_bytes)
        running = session.running(model)
    else:
        session = Session(loaded.name, sink, block_bytes=block_bytes, layers=layers)
        running = hooked(model, session)
    sizes = {layer.head_dim for layer in layers if layer.index in plan.layers} - {0}
    writer.manifest.update(
        command=wanted.command,
        model={
            "name": loaded.name,
            "revision": loaded.revision,
            "architecture": loaded.architecture,
            "sha256": loaded.sha256,
        },
        tokenizer=None if loaded.tokenizer is None else type(loaded.tokenizer).__name__,
        text=wanted.text_fields,
        n=n,
        prompt_len=len(ids) if wanted.generate else None,
        generation=wanted.generation_fields,
        stores=list(plan.stores),
        heads=[first.order[place] if first.order else place for place in plan.heads],
        kv_heads=list(plan.caches),
        group_size=len(plan.heads) // len(plan.caches),
        model_heads=first.heads,
        model_kv_heads=first.caches,
        head_dim=sizes.pop() if len(sizes) == 1 else None,
        provenance={
            "torch": str(torch.__version__),
            "transformers": str(transformers.__version__),
            "weights": _types(model),
            "device": model.device.type,
            "settings": wanted.settings,
        },
    )
    try:
        streams = plan.projected if plan.residual else {}
        turning = sink.plain.watching(model) if plan.pre_rope else nullcontext()
        with suppress(Enough), running, watching(streams, sink.norms), turning:
            if wanted.generate:
                ids = _decode(loaded, wanted, session, ids)
            else:
                session.begin(n)
                call(loaded, ids, n, use_cache=False, **session.options)
        sink.finish()
    finally:
        sink.close()
    writer.manifest["layers"].sort(key=lambda layer: layer["index"])
    for entry in writer.manifest["layers"]:
        entry["window"] = sink.windows[entry["index"]]
    writer.manifest["tokens"] = {"ids": ids, "text": pieces(loaded.tokenizer, ids)}


def _attention(
    loaded: models.Model, ids: list[int]
) -> tuple[tuple[Layer, ...], tuple[Source, ...] | None]:
    """The attention layers, and where their weights come from if the model attends by itself."""
    try:
        return probe(loaded, ids), None
    except UnknownAttention as error:
        try:
            return probe_own(loaded, ids)
        except NotGiven as why:
            raise UserError(f"{error}, and it {why}") from None


def _types(model: Any) -> str:
    """The types of a model's weights, one as a rule."""
    return ", ".join(sorted({str(w.dtype).removeprefix("torch.") for w in model.parameters()}))


def token_ids(loaded: models.Model, wanted: Wanted) -> list[int]:
    """The token ids the model is given; UserError for too few, or more than it was made for."""
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
    n = count + wanted.generate
    if loaded.context is not None and n > loaded.context:
        raise UserError(
            f"model {loaded.name}: found {n} tokens to run, expected at most its context of "
            f"{loaded.context}"
        )
    return ids[:count]


def _plan(
    loaded: models.Model, wanted: Wanted, n: int, layers: Sequence[Layer]
) -> tuple[RecordingPlan, Layer]:
    """What is recorded, and the first of its layers; UserError for what cannot be."""
    facts = {layer.index: layer for layer in layers}
    chosen = sorted(facts if wanted.layers is None else set(wanted.layers))
    for index in chosen:
        if index not in facts:
            raise UserError(
                f"layers: found {index}, expected attention layers of {loaded.name}: "
                f"{_ranges(sorted(facts))}"
            )
    if not chosen:
        raise UserError("layers: found none, expected at least one")
    first = facts[chosen[0]]
    for index in chosen:
        layer = facts[index]
        if _heads(layer) != _heads(first):
            raise UserError(
                f"layers: layer {index} of {loaded.name} has {_heads(layer)}, layer {first.index} "
                f"has {_heads(first)}; record them apart: "
                + " and ".join(f"--layers {some}" for some in _alike(facts, chosen))
            )
        if layer.head_dim != first.head_dim and "qk" in wanted.stores:
            raise UserError(
                f"layers: layer {index} of {loaded.name} has heads of size {layer.head_dim}, layer "
                f"{first.index} of size {first.head_dim}, so their queries do not fit into one "
                f"trace; expected store scores, or some of the layers"
            )
        vectors = wanted.values or wanted.output_norms or "qk" in wanted.stores
        if layer.own and vectors:
            raise UserError(
                f"layer {index} of {loaded.name}: only its own code attends, which tells its rows "
                f"and no queries, keys or values; expected store scores, without values"
            )
        if layer.latent and vectors:
            raise UserError(
                f"layer {index} of {loaded.name}: its heads make their keys and values from one "
                f"cached vector a token, which a trace cannot keep; expected store scores, without "
                f"values"
            )
        if layer.sink and "qk" in wanted.stores:
            raise UserError(
                f"layer {index} of {loaded.name}: a learned sink takes part of each row, so "
                f"rows cannot be made from queries and keys; expected store scores"
            )
        if layer.chunk is not None and n > layer.chunk and "qk" in wanted.stores:
            raise UserError(
                f"layer {index} of {loaded.name}: it attends within chunks of {layer.chunk} "
                f"tokens, so rows cannot be made from queries and keys; expected store scores"
            )
    caches = range(first.caches) if wanted.kv_heads is None else sorted(set(wanted.kv_heads))
    for head in caches:
        if not 0 <= head < first.caches:
            raise UserError(f"kv-heads: found {head}, expected 0 ... {first.caches - 1}")
    if not caches:
        raise UserError("kv-heads: found none, expected at least one")
    group = first.heads // first.caches
    plan = RecordingPlan(
        model=loaded.name,
        n=n,
        order=tuple(facts),
        layers=frozenset(chosen),
        heads=tuple(g * group + i for g in caches for i in range(group)),
        caches=tuple(caches),
        stores=wanted.stores,
        values=wanted.values,
        pre_rope=wanted.pre_rope,
        residual=wanted.residual,
    )
    return plan, first


def _heads(layer: Layer) -> str:
    """What layers of one trace have in common, in words."""
    shared = "one latent cache" if layer.latent else f"{layer.kv_heads} KV heads"
    return f"{layer.heads} heads, {shared}"


def _alike(facts: Mapping[int, Layer], chosen: Sequence[int]) -> list[str]:
    """The chosen layers in sets that fit into one trace, as the command's option takes them."""
    sets: dict[str, list[int]] = {}
    for index in chosen:
        sets.setdefault(_heads(facts[index]), []).append(index)
    return [",".join(map(str, indices)) for indices in sets.values()]


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


def _decode(
    loaded: models.Model, wanted: Wanted, session: Session | OwnSession, prompt: list[int]
) -> list[int]:
    """Prompt and generated tokens of a decoding run; all of them have been fed when it returns."""
    # A tensor, not the number 1: with a number some models leave out rows of their last layers.
    accepts = inspect.signature(loaded.model.forward).parameters
    banned = _end_tokens(loaded)
    generator = torch.Generator().manual_seed(wanted.seed)
    ids, cache = list(prompt), None
    fed = 0
    while True:
        new = ids[fed:]
        session.begin(len(new))
        last = {"logits_to_keep": torch.tensor([len(new) - 1])}
        options = {loaded.cache_argument: cache, **(last if "logits_to_keep" in accepts else {})}
        result = call(loaded, new, len(ids), use_cache=True, **options, **session.options)
        fed = len(ids)
        if fed == len(prompt) + wanted.generate:
            return ids
        cache = getattr(result, loaded.cache_argument, None)
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
