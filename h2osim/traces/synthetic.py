"""Traces made up with a seed: imitations of real attention, and the counterexamples of the proofs.

>>> trace = synth("powerlaw", 512, seed=1, heads=2, exponent=1.2)
>>> trace = synth("powerlaw:exponent=1.2,sink=0", 512)  # the same parameters, written as one text

Rows are made in float64 and rounded once, to float16, as recorded rows are.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from h2osim.attention.fixed_point import ONE_BITS, round_to_bits
from h2osim.attention.triangle import pack, tri
from h2osim.support.errors import UserError
from h2osim.support.given import whole
from h2osim.support.machine import memory
from h2osim.support.parameters import split_call
from h2osim.support.wording import near
from h2osim.traces.generator import Generator, RandomSource
from h2osim.traces.generators import GENERATORS
from h2osim.traces.trace import Trace

_ROWS_AT_A_TIME = 256


def find(name: str) -> Generator:
    """A generator by its name; UserError with the near misses."""
    if name not in GENERATORS:
        raise UserError(
            f"unknown generator {name!r}{near(name, GENERATORS)}; there are {', '.join(GENERATORS)}"
        )
    return GENERATORS[name]


def synth(
    name: str,
    n: int,
    *,
    seed: int = 0,
    heads: int | None = None,
    layers: int = 1,
    group_size: int | None = None,
    **params: Any,
) -> Trace:
    """A trace of n tokens from the generator `name` (see `GENERATORS`), in memory.

    seed: a whole number from 0 on; every layer and head has its own stream. heads: query heads
    (default 1; a generator whose instance fixes them refuses another number). group_size: heads
    that share a cache (default 1, or all where the instance is about a shared cache). params: the
    generator's parameters, also as ``name:parameter=value,...``. UserError when one does not fit.
    """
    name, written = split_call(name, "generator")
    generator = find(name)
    if twice := sorted(set(written) & set(params)):
        raise UserError(f"generator {name}: parameter {twice[0]} given twice")
    n, seed, layers = (
        whole(f"generator {name}: {word}", number, low)
        for word, number, low in (("n", n, 1), ("seed", seed, 0), ("layers", layers, 1))
    )
    values = generator.values(n, {**written, **params})
    if n < generator.least(values):
        raise UserError(f"generator {name}: n={n}: expected at least {generator.least(values)}")
    if generator.heads is not None:
        fixed = generator.heads(values)
        if heads not in (None, fixed):
            raise UserError(f"generator {name}: heads={heads}: this instance has {fixed}")
        heads, group_size = fixed, group_size or fixed
    heads = whole(f"generator {name}: heads", 1 if heads is None else heads, 1)
    group_size = whole(f"generator {name}: group_size", group_size or 1, 1)
    if (needed := layers * heads * tri(n) * 2) > memory():
        raise UserError(
            f"generator {name}: {layers} layers of {heads} heads, n={n} take {needed:.3g} bytes, "
            f"expected at most the {memory():.3g} of this machine's memory"
        )
    bits = np.empty((layers, heads, tri(n)), dtype=np.uint16)
    sums = np.empty((layers, heads, n), dtype=np.float32)
    for layer in range(layers):
        for head in range(heads):
            rows = generator.make(n, RandomSource(seed, layer, head), values)
            for start in range(0, n, _ROWS_AT_A_TIME):
                stop = min(start + _ROWS_AT_A_TIME, n)
                block = rows(start, stop)
                bits[layer, head, tri(start) : tri(stop)] = round_to_bits(pack(block, start))
                sums[layer, head, start:stop] = np.add.accumulate(block, axis=1)[:, -1]
    assert int(bits.max()) <= ONE_BITS
    written_params = ",".join(f"{key}={value}" for key, value in values.items())
    return Trace.from_packed(
        bits,
        row_sum=sums,
        group_size=group_size,
        prompt_len=None if generator.prompt_len is None else generator.prompt_len(values),
        name=f"{name}-n{n}-seed{seed}",
        provenance={
            "generator": name + (f":{written_params}" if written_params else ""),
            "seed": str(seed),
            "summary": generator.summary,
        },
    )
