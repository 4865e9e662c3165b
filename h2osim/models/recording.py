"""Recording the attention of a language model as a trace.

Needs PyTorch and transformers (``pip install 'h2osim[record]'``), which are imported only when
`record` is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from h2osim.models import loading
from h2osim.models.wanted import silent, wanted
from h2osim.support.bars import with_bar
from h2osim.support.progress import Progress

__all__ = ["record", "record_many"]


@with_bar
def record(
    model: Any,
    *,
    out: str | os.PathLike[str],
    text: str | bytes | None = None,
    tokens: Iterable[SupportsIndex] | None = None,
    n_tokens: SupportsIndex | None = None,
    store: str = "scores",
    layers: Iterable[SupportsIndex] | None = None,
    kv_heads: Iterable[SupportsIndex] | None = None,
    values: bool | str = False,
    pre_rope: bool = False,
    output_norms: bool = False,
    residual: bool = False,
    generate: SupportsIndex = 0,
    sample: bool = False,
    seed: SupportsIndex = 0,
    temperature: SupportsFloat = 1.0,
    tokenizer: Any = None,
    text_name: str | None = None,
    text_license: str | None = None,
    name: str | None = None,
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    device: str | None = None,
    block_bytes: int | None = None,
) -> Path:
    """Run a causal language model over a text and write its attention as a trace; its path.

    With x_j = scale * <q_t, k_j> (after rotary embedding; x <- c tanh(x / c) under a softcap c),
    row t of a head is a_j = exp(x_j) / sum exp(x) over the keys j <= t that the layer's mask
    allows, computed in float32 block by block while the layer runs and written at once: memory is
    the model, one layer's queries, keys and values and a block of rows. The rows are those the
    model attends with; its outputs do not change. Where its attention does not go through
    transformers' interface, or takes more than h2osim knows (position biases, sparse indices), the
    rows are those that its own eager code returns: scores only, and heads x n x n numbers of one
    layer in memory. Models that h2osim loads have their weights in
    float32; one given as an object keeps its own type, which the manifest names. The trace is read
    back and checked before it gets its name. Program code in a model's folder or repository is
    never run.

    model: `smollm2`, a local folder of transformers, a .gguf file, a Hugging Face hub id, or a
        loaded transformers model (then bring `tokenizer`, or `tokens`).
    out: the trace's folder; must not exist unless `overwrite` is set and it is a trace.
    text, tokens: what the model reads, exactly one of them. A text is tokenised as the model's
        tokenizer does it, special tokens included. Bytes, a file's content, are decoded as UTF-8;
        the sha256 in the manifest is theirs, a byte-order mark is left out of the text.
    n_tokens: how many tokens of it to take, from the start; all of them by default.
    store: "scores" (float16 rows, n(n+1) bytes a head), "qk" (float32 queries and keys,
        O(n d) bytes) or "both". Scores come with each row's log-sum-exp and its sum before the
        rounding, and every store with the norms of keys (L2) and values (L1, L2); `values` adds
        the values themselves, in float32 (True) or in 8 bits and a scale a vector ("8bit").
    pre_rope: keep the queries before RoPE too; needs the store of queries and keys.
    output_norms: keep |W_o v|_1 of each query head's value, as the head adds it to the stream.
    residual: keep what the residual error takes: each layer's output projection W_o (float32, 4
        bytes a weight) and the norm of the residual stream before it, a number a token; and values.
    layers, kv_heads: indices to record, all by default; a KV head brings all its query heads.
    generate: M > 0 makes a decoding run: the text is the prompt (p tokens, in one pass), then M
        tokens are chosen and fed one at a time against the cache. All M are fed, the last one too,
        so that n = p + M and each has its row, made in its own decode step; prompt_len = p. End
        tokens are never chosen, so the run always has M tokens.
    sample, seed, temperature: choose greedily (default), or sample from
        softmax(logits / temperature) with a generator of this seed.
    text_name, text_license: for the manifest. name: the trace's name, the folder's by default.
    command: the command line that made the trace, for the manifest.
    progress: see `Progress`. device: where the model runs, `cpu` or `cuda`; None leaves it where it
        is. block_bytes: memory for the logits of one block of rows (4 MiB, on a GPU 256 MiB).

    Raises UserError, leaving nothing behind: a text with too few tokens, more tokens than the
    model's context, a layer or head the model does not have, a model that is no causal decoder,
    has no softmax attention over its tokens or does not tell it, or whose attention is not finite.
    """
    asked = wanted(
        path=out, text=text, tokens=tokens, n_tokens=n_tokens, store=store, layers=layers,
        kv_heads=kv_heads, values=values, pre_rope=pre_rope, output_norms=output_norms,
        residual=residual, generate=generate, sample=sample, seed=seed, temperature=temperature,
        text_name=text_name, text_license=text_license, name=name, command=command,
        overwrite=overwrite, progress=progress or silent, device=device, block_bytes=block_bytes,
    )  # fmt: skip
    loading.require()
    from h2osim.models import recorder

    return recorder.run(
        lambda: recorder.ready(model, tokenizer, asked.device, asked.progress), asked
    )


@with_bar
def record_many(
    model: Any,
    texts: Mapping[str, str | bytes],
    *,
    out: str | os.PathLike[str],
    tokenizer: Any = None,
    progress: Progress | None = None,
    **settings: Any,
) -> list[Path]:
    """Record several texts with a model that is loaded once, a trace each; the traces' paths.

    Each trace is a folder in `out`, called as its text, and gets its name once it is whole. Traces
    that are there already are kept, so the same call continues one that was stopped; with
    `overwrite` they are recorded again. All traces in `out` are of one model (by its sha256, or its
    name and revision) and of the same settings.

    texts: name -> text, or its UTF-8 bytes. settings: more arguments of `record`, for all texts.

    Raises UserError as `record` does, before the first text is recorded; also for a name that no
    folder can have, and for a trace in `out` of another model, other settings or another text.
    """
    loading.require()
    from h2osim.models import many

    asked = {
        name: wanted(path=many.place(out, name), text=text, text_name=name, **settings)
        for name, text in texts.items()
    }
    return many.run(model, tokenizer, asked, Path(out), progress or silent)
