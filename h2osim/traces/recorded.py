"""What a trace may hold beside attention rows, by the names that policies ask for it by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from h2osim.support.errors import UserError
from h2osim.traces.unit import Recording


@dataclass(frozen=True)
class Recorded:
    """Data of a layer: in words, the sets of tensors that each hold it, and how to record it."""

    words: str
    tensors: tuple[frozenset[str], ...]
    option: str


def _any(words: str, option: str, *tensors: str) -> Recorded:
    return Recorded(words, tuple(frozenset(names.split("+")) for names in tensors), option)


RECORDED = {
    "keys": _any("keys", "--store qk", "k"),
    "values": _any("values", "--values", "v", "v_q8+v_scale"),
    "queries": _any("queries", "--store qk", "q"),
    "plain_queries": _any("queries before RoPE", "--store qk --pre-rope", "q_plain"),
    "key_norms": _any("key norms", "--store qk", "k_norm2", "k"),
    "value_norms": _any("value norms", "--values", "v_norm1", "v", "v_q8+v_scale"),
    "output_norms": _any(
        "norms of projected values", "--output-norms", "wv_norm1", "w_o+v", "w_o+v_q8+v_scale"
    ),
}
"""Names of recorded data; norms are also those of recorded vectors."""


def in_words(needs: Iterable[str]) -> str:
    """Recorded data in words: ``keys, value norms``."""
    return ", ".join(RECORDED[name].words for name in needs)


def check_recorded(trace: Recording, layer: int, needs: Iterable[str], who: str) -> None:
    """UserError, beginning with ``who``, naming all that a layer of a trace lacks of ``needs``."""
    stored = {*trace.tensors(layer)}
    missing = [
        RECORDED[name] for name in needs if not any(x <= stored for x in RECORDED[name].tensors)
    ]
    if missing:
        lacks = ", ".join(one.words for one in missing)
        flags = " ".join(one.option for one in missing).split("--")
        options = " ".join(dict.fromkeys(f"--{flag.strip()}" for flag in flags[1:]))
        raise UserError(
            f"{who}: trace {trace.name} has no {lacks} (layer {layer}); record it with "
            f"h2osim record … {options}"
        )
