"""Names that users of kvpress and KVCache-Factory know, and what they are here."""

from __future__ import annotations

#: By name, without ``Press`` and in lower case: the policy or command, and what it leaves out.
PRESSES = {
    "adakv": ("h2osim allocate … -o budgets.json, then --budgets @budgets.json", "its split adakv"),
    "chunkkv": ("--policies chunkkv --share layer", ""),
    "criticalkv": ("--policies criticalkv", "on SnapKV's score"),
    "expectedattention": ("--policies expected-attention", ""),
    "keydiff": ("--policies keydiff:when=prompt", ""),
    "knorm": ("--policies knorm:when=prompt", ""),
    "lagkv": ("--policies lagkv", ""),
    "observed-attention": ("--policies h2o-mean:recent=0,when=prompt", ""),
    "observedattention": ("--policies h2o-mean:recent=0,when=prompt", ""),
    "pyramidkv": ("--policies snapkv with --budgets @FILE.json", "each layer's own budget"),
    "random": ("--policies random:when=prompt", "other draws"),
    "snapkv": ("--policies snapkv", ""),
    "streamingllm": ("--policies streaming:when=prompt", ""),
    "tova": ("--policies tova-kvpress --share layer", "the authors' own rule is tova"),
}


def known_as(name: str) -> str:
    """What a name of a press is here, as the end of a sentence; empty where it is none."""
    key = name.strip().lower().removesuffix("press").removesuffix("_").removesuffix("-")
    if key not in PRESSES:
        return ""
    command, note = PRESSES[key]
    return f"; in h2osim it is {command}" + (f" ({note})" if note else "")
