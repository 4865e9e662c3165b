"""Recording the attention of a language model as a trace.

Needs PyTorch and transformers (``pip install 'h2osim[record]'``), which are imported only when
`record` is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

from h2osim.support.errors import UserError
from h2osim.support.given import decode, temperature_of, utf8, whole, whole_numbers
from h2osim.support.progress import Progress

__all__ = ["STORES", "record"]


STORES = {"scores": ("scores",), "qk": ("qk",), "both": ("scores", "qk")}
"""The values of `store`, and the stores of the trace each makes."""


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
    progress: see `Progress`. block_bytes: memory for the logits of one block of rows (4 MiB).

    Raises UserError, leaving nothing behind: a text with too few tokens, more tokens than the
    model's context, a layer or head the model does not have, a model that is no causal decoder,
    has no softmax attention over its tokens or does not tell it, or whose attention is not finite.
    """
    if (text is None) == (tokens is None):
        raise UserError("record: expected a text or token ids, exactly one of them")
    if store not in STORES:
        raise UserError(f"store: found {store!r}, expected one of {', '.join(STORES)}")
    if values not in (False, True, "8bit"):
        raise UserError(f"values: found {values!r}, expected False, True or '8bit'")
    if pre_rope and "qk" not in STORES[store]:
        raise UserError(f"pre-rope: found store {store!r}, expected qk or both, which keep queries")
    for what, said in (("name", name), ("text's name", text_name), ("licence", text_license)):
        utf8(said or "", what)
    digest = None
    if text is not None:
        digest = sha256(utf8(text, "text") if isinstance(text, str) else text).hexdigest()
        if isinstance(text, bytes):
            text, _ = decode(text, f"text {text_name}" if text_name else "text")
    from h2osim.models import loading as models

    models.require()
    from h2osim.models import recorder as run

    return run.run(
        model,
        run.Wanted(
            path=Path(out),
            text=text,
            text_sha256=digest,
            tokens=whole_numbers("tokens", tokens),
            n_tokens=None if n_tokens is None else whole("tokens", n_tokens, 1),
            stores=STORES[store],
            layers=whole_numbers("layers", layers),
            kv_heads=whole_numbers("kv-heads", kv_heads),
            values=values or residual,
            pre_rope=pre_rope,
            output_norms=output_norms,
            residual=residual,
            generate=whole("generate", generate),
            sample=sample,
            seed=whole("seed", seed, 0, 2**64 - 1),
            temperature=temperature_of(temperature) if sample else 1.0,
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
