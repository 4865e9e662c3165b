"""Recording the attention of a language model as a trace.

Needs PyTorch and transformers (``pip install 'h2osim[record]'``), which are imported only when
`record` is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from h2osim.support.errors import UserError
from h2osim.support.progress import Progress

__all__ = ["STORES", "record"]


STORES = {"scores": ("scores",), "qk": ("qk",), "both": ("scores", "qk")}
"""The values of `store`, and the stores of the trace each makes."""


def record(
    model: Any,
    *,
    out: str | os.PathLike[str],
    text: str | None = None,
    tokens: Iterable[int] | None = None,
    n_tokens: int | None = None,
    store: str = "scores",
    layers: Sequence[int] | None = None,
    kv_heads: Sequence[int] | None = None,
    values: bool = False,
    generate: int = 0,
    sample: bool = False,
    seed: int = 0,
    temperature: float = 1.0,
    tokenizer: Any = None,
    text_name: str | None = None,
    text_license: str | None = None,
    name: str | None = None,
    command: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    block_bytes: int | None = None,
) -> Path:
    """Run a causal language model over a text and write its attention as a trace; its path.

    With x_j = scale * <q_t, k_j> (after rotary embedding; x <- c tanh(x / c) under a softcap c),
    row t of a head is a_j = exp(x_j) / sum exp(x) over the keys j <= t that the layer's mask
    allows, computed in float32 block by block while the layer runs and written at once: memory is
    the model, one layer's queries, keys and values and a block of rows. The weights are used in
    float32. The rows are those the model attends with; its outputs do not change.

    model: `smollm2`, a local folder of transformers, a .gguf file, a Hugging Face hub id, or a
        loaded transformers model (then bring `tokenizer`, or `tokens`).
    out: the trace's folder; must not exist unless `overwrite` is set and it is a trace.
    text, tokens: what the model reads, exactly one of them. A text is tokenised as the model's
        tokenizer does it, special tokens included.
    n_tokens: how many tokens of it to take, from the start; all of them by default.
    store: "scores" (float16 rows, n(n+1) bytes a head), "qk" (float32 queries and keys,
        O(n d) bytes) or "both". Scores come with each row's log-sum-exp and its sum before the
        rounding, and every store with the norms of keys (L2) and values (L1, L2); `values` adds
        the values themselves.
    layers, kv_heads: indices to record, all by default; a KV head brings all its query heads.
    generate: M > 0 makes a decoding run: the text is the prompt (p tokens, in one pass), then M
        tokens are chosen and fed one at a time against the cache. All M are fed, the last one too,
        so that n = p + M and each has its row, made in its own decode step; prompt_len = p. End
        tokens are never chosen, so the run always has M tokens.
    sample, seed, temperature: choose greedily (default), or sample from
        softmax(logits / temperature) with a generator of this seed.
    text_name, text_license: for the manifest. name: the trace's name, the folder's by default.
    command: the command line that made the trace, for the manifest.
    progress: see `Progress`. block_bytes: memory for the logits of one block of rows (4 MiB).

    Raises UserError, leaving nothing behind: a text with too few tokens, more tokens than the
    model's context, a layer or head the model does not have, a model that is no causal decoder,
    has no softmax attention behind transformers' attention interface, or passes that interface
    something that changes the rows in a way not known here (attention sinks, position biases).
    """
    if (text is None) == (tokens is None):
        raise UserError("record: expected a text or token ids, exactly one of them")
    if store not in STORES:
        raise UserError(f"store: found {store!r}, expected one of {', '.join(STORES)}")
    if n_tokens is not None and n_tokens < 1:
        raise UserError(f"tokens: found {n_tokens}, expected at least 1")
    if generate < 0:
        raise UserError(f"generate: found {generate}, expected at least 0")
    if sample and not temperature > 0:
        raise UserError(f"temperature: found {temperature}, expected a number above 0")
    from h2osim.models import loading as models

    models.require()
    from h2osim.models import recorder as run

    return run.run(
        model,
        run.Wanted(
            path=Path(out),
            text=text,
            tokens=None if tokens is None else [int(token) for token in tokens],
            n_tokens=n_tokens,
            stores=STORES[store],
            layers=layers,
            kv_heads=kv_heads,
            values=values,
            generate=generate,
            sample=sample,
            seed=seed,
            temperature=temperature,
            tokenizer=tokenizer,
            text_name=text_name,
            text_license=text_license,
            name=name,
            command=command,
            overwrite=overwrite,
            progress=progress or (lambda done, total, what: None),
            block_bytes=block_bytes,
        ),
    )
