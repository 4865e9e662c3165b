"""Traces: recorded attention, exact to the bit, in a folder or in memory.

A trace folder holds ``trace.json`` and one safetensors file a layer, of two stores, or both:

* ``scores``: float16 post-softmax attention, the lower triangle packed, ``[H, n(n+1)/2]``, row t
  from t(t+1)/2 on; with ``row_sum`` [H, n], each row's float32 sum before rounding, and, where the
  logits were known, ``lse`` [H, n], its log-sum-exp (both float32);
* ``qk``: queries ``q`` [H, n, d] and keys ``k`` [G, n, d], float32, after RoPE; rows are made from
  them on the fly (rows.py).

H counts the recorded query heads, G the recorded KV heads; H = group_size * G, and the query heads
of one KV head stand together. Optional in both: ``v`` [G, n, d'] (or, in eight bits, ``v_q8`` [G,
n, d'] int8 times ``v_scale`` [G, n]), ``v_norm1``, ``v_norm2`` and ``k_norm2`` [G, n], float32;
``q_plain`` [H, n, d], queries before RoPE; ``wv_norm1`` [H, n], the L1 norm of v w_o; and with the
values what the layer does with its attention: ``w_o`` [H, d', D], each head's part of the
output projection (o of head h adds o w_o[h] to a residual stream of size D), and ``x_norm`` [n],
the norm of each token's residual stream before the layer.
With a sliding window W, row t is zero for j <= t - W.

trace.json (format version 1): format, version, name, created_by, command, model, tokenizer, text,
tokens {ids, text}, n, prompt_len (null for given text), generation, stores, heads, kv_heads,
group_size, model_heads, model_kv_heads, head_dim, provenance, and layers, each with index, file,
sha256, bytes, scale, window, softcap, the names of its tensors, and cache_of: the layer whose keys
and values it attends to, where these are not its own (`by_cache` makes one layer of these).
computed_in: "bfloat16" where a model rounded its rows to that. sink: true where a learned sink
takes part of each row, so that rows sum to less than 1 and row_sum says by how much; lse then
counts the sink in.
"""

from h2osim.traces.catalogue import open_trace
from h2osim.traces.manifest import FORMAT, SHARES, STORES, VERSION
from h2osim.traces.trace import Trace
from h2osim.traces.unit import Block, Unit
from h2osim.traces.writer import LayerWriter, TraceWriter

__all__ = [
    "FORMAT",
    "SHARES",
    "STORES",
    "VERSION",
    "Block",
    "LayerWriter",
    "Trace",
    "TraceWriter",
    "Unit",
    "open_trace",
]
