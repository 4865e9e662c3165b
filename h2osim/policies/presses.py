"""Names that users of kvpress and KVCache-Factory know, and what they are here."""

from __future__ import annotations

_SPLIT = "--budgets @FILE.json"
_TRAINED = "it has trained weights; what they score can be a rule of your own: docs/add-a-policy.md"
_PASS = "it takes a second pass of the model over the context"
_AHEAD = "its attention is not causal, recorded attention is"

#: Every press of kvpress 0.5.5, and clusters of KVCache-Factory. By name, in lower case and without
#: ``Press``: the policy or command, empty where there is none, and what is left out or why.
PRESSES = {
    "adakv": (
        "evaluate --budgets @adakv:50%",
        "the authors' split over heads; kvpress splits by the inner press's scores",
    ),
    "base": ("a policy file", "the class of all presses: docs/add-a-policy.md"),
    "block": (
        "--policies keydiff:when=every:m --prompt-len K --budgets K",
        "or another policy; its blocks of m tokens follow the first K",
    ),
    "cam": ("", "it merges values; which tokens stay is its scorer's rule with when=every:m"),
    "cap": ("", "not written; it needs the inverse of a matrix of all values"),
    "chunk": ("", "it gives each chunk its own budget"),
    "chunkkv": ("--policies chunkkv --share layer", "on SnapKV's score"),
    "compactor": ("", _AHEAD),
    "composed": ("", "a replay has one policy"),
    "compressionratiodecoding": ("", "a budget does not grow with the text"),
    "criticaladakv": (
        f"--policies criticalkv with {_SPLIT}",
        "on SnapKV's score, each head's own budget",
    ),
    "criticalkv": ("--policies criticalkv", "on SnapKV's score"),
    "cur": ("--policies cur", ""),
    "decoding": (
        "--policies knorm:when=every:m",
        "or another policy; tokens stay in the text's order",
    ),
    "dms": ("", "it has a threshold and no budget"),
    "duoattention": (
        f"--policies streaming:sinks=4 with {_SPLIT}",
        "which heads keep all tokens, the file has to say",
    ),
    "entropygatedchunkkv": ("", "not written; chunkkv keeps chunks whole"),
    "expectedattention": ("--policies expected-attention", ""),
    "expectedattentionstats": (
        "--policies expected-attention",
        "means are of the trace's own queries, not of a data set's",
    ),
    "fastkvzip": ("", _TRAINED),
    "finch": (
        "--policies snapkv:window=QUESTION,kernel=1",
        "without its weights of rows, chunks and rotation of keys",
    ),
    "headkv": (f"--policies snapkv with {_SPLIT}", "each head's own budget"),
    "keydiff": ("--policies keydiff:when=prompt", ""),
    "keyrerotation": (
        "the inner press's policy",
        "the same tokens stay; a replay does not turn their keys to new positions",
    ),
    "knorm": ("--policies knorm:when=prompt", ""),
    "kvcompose": ("", f"{_PASS}, and tokens of different positions share a row"),
    "kvgrad": ("", f"{_PASS}, and gradients"),
    "kvzap": ("", _TRAINED),
    "kvzip": (
        "--policies kvzip",
        "record the context and its repetition as one text, the first as the prompt",
    ),
    "l2norm": ("--policies knorm:when=prompt", ""),
    "lagkv": ("--policies lagkv", ""),
    "leveragescore": ("", "it draws a random matrix, and reads keys before RoPE, not recorded"),
    "lukv": (f"--policies expected-attention with {_SPLIT}", "its budgets by head are a file's"),
    "merging": ("the inner press's policy", "the same tokens stay; values are not merged"),
    "noncausalattn": ("", _AHEAD),
    "observedattention": ("--policies h2o-mean:recent=0,when=prompt", ""),
    "perlayercompression": (_SPLIT, "with any policy"),
    "prefilldecoding": (
        "--policies knorm:when=every:m",
        "or another policy, if it is one for the prompt and for decoding",
    ),
    "pyramidkv": (f"--policies snapkv with {_SPLIT}", "each layer's own budget"),
    "qfilter": ("", _TRAINED),
    "random": ("--policies random:when=prompt", "other draws"),
    "restorekv": ("", _TRAINED),
    "scorer": ("a policy file", "the class of presses that score: docs/add-a-policy.md"),
    "simlayerkv": (
        f"--policies streaming:sinks=4 with {_SPLIT}",
        "which layers keep all tokens, the file has to say",
    ),
    "snapkv": ("--policies snapkv", ""),
    "streamingllm": ("--policies streaming:when=prompt", ""),
    "think": ("", "it drops channels of keys, not tokens"),
    "tova": ("--policies tova-kvpress --share layer", "the authors' own rule is tova"),
}


def known_as(name: str) -> str:
    """What a name of a press is here, as the end of a sentence; empty where it is none."""
    key = name.strip().lower().replace("-", "").replace("_", "").removesuffix("press")
    if key not in PRESSES:
        return ""
    command, note = PRESSES[key]
    if not command:
        return f"; h2osim has no policy for this press: {note}"
    return f"; in h2osim it is {command}" + (f" ({note})" if note else "")
