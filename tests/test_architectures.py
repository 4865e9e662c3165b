"""Every causal language model that transformers knows: recorded rightly, or refused by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="recording needs the extra `record`")
from odd_models import decoded
from small_configs import DECODERS, small
from tiny_models import NOISE, N, half_ulp, reference, squares, tokens, torch, transformers
from transformers.models.auto import modeling_auto

from h2osim import open_trace
from h2osim.models.recording import record
from h2osim.support.errors import UserError
from h2osim.traces.trace import Trace

CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
MULTIMODAL = getattr(modeling_auto, "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES", {})

LARGEST = 130_000_000
"""A model with more parameters has a size by another name and is not built."""

GENERATED = 6


def build(kind: str, classes: Mapping[str, str]) -> Any:
    """A small model of a type with random weights. classes: the name of each type's class."""
    config = small(kind)
    make: Any = transformers.AutoModelForCausalLM.from_config
    if kind in DECODERS or kind not in CAUSAL:
        make = getattr(transformers, classes[kind])
    with torch.device("meta"):
        count = sum(p.numel() for p in make(config).parameters())
    if count > LARGEST:
        raise ValueError(f"{count} parameters")
    torch.manual_seed(0)
    model = make(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
            elif not parameter.any():  # scales and sinks that would make all heads alike
                parameter.normal_(0, 0.5)
    return model


def outcome(kind: str, classes: Mapping[str, str], folder: Path) -> tuple[str, str]:
    """What becomes of a model type: (one word, more of it)."""
    try:
        model = build(kind, classes)
    except Exception as error:  # whatever a configuration that does not fit leads to
        return "not built", f"{type(error).__name__}: {' '.join(str(error).split())}"
    ids = tokens()
    try:
        text = traces(model, folder / kind, tokens=ids)
        word, more = compared(text, lambda: reference(model, ids))
    except UserError as error:
        return "refused", str(error)
    except Exception as error:  # a fault of the recorder
        return "crashed", f"{type(error).__name__}: {str(error).splitlines()[:1]}"
    if word != "recorded":
        return word, more
    try:
        run = traces(model, folder / f"{kind}-run", tokens=ids[GENERATED:], generate=GENERATED)
        fed = run[0].manifest["tokens"]["ids"]
        word, said = compared(run, lambda: decoded(model, fed, N - GENERATED))
    except UserError as error:
        return "recorded", f"{more}; decoding is refused: {error}"
    except Exception as error:
        return "crashed", f"decoding: {type(error).__name__}: {str(error).splitlines()[:1]}"
    return ("recorded" if word == "recorded" else f"decoding: {word}"), f"{more}; decoding {said}"


def traces(model: Any, path: Path, **asked: Any) -> list[Trace]:
    """The trace of all layers, or those of both layers where they do not fit into one."""
    try:
        return [open_trace(record(model, out=path, **asked))]
    except UserError as error:
        if "record them apart: --layers 0 and --layers 1" not in str(error):
            raise
    return [
        open_trace(
            record(model, out=path.with_name(f"{path.name}-{layer}"), layers=[layer], **asked)
        )
        for layer in (0, 1)
    ]


def compared(found: list[Trace], own: Callable[[], list[Any]]) -> tuple[str, str]:
    """Whether traces have the model's own rows, float64 [heads, n, n] of each layer."""
    try:
        # Linear attention tells its states, of other shapes.
        rows = [a for a in own() if a is not None and a.shape[1:] == (N, N)]
    except Exception as error:  # it does not tell its attention
        return "nothing to compare with", f"{type(error).__name__}: {error}"
    layers = [(trace, entry) for trace in found for entry in trace.manifest["layers"]]
    if len(rows) != len(layers):
        return "nothing to compare with", f"{len(rows)} and {len(layers)} layers"
    worst, apart = 0.0, 0.0
    for (trace, entry), wanted in zip(layers, rows, strict=True):
        index = entry["index"]
        seen, wanted = squares(trace, index), wanted[list(trace.heads)]
        total = np.asarray(trace.tensor(index, "row_sum"), np.float64)[:, :, None]
        # Some models give the weights before their learned sink takes its part.
        given = [wanted, wanted * total] if entry.get("sink") else [wanted]
        worst = max(worst, min(distance(seen, w) for w in given))
        apart = max(apart, distance(seen[::-1], wanted))
    # Rows that could be another's prove nothing: those of the heads in another order are far away.
    word = "recorded" if apart > 1e-3 else "all heads alike"
    word = word if worst < NOISE else "wrong"
    return word, f"off by {worst:.2g}, heads in another order by {apart:.2g}"


def distance(found: Any, wanted: Any) -> float:
    """By how much rows miss what was wanted, beyond their rounding to float16."""
    return float(np.maximum(abs(found - wanted) - half_ulp(wanted), 0).max())


def everything(classes: Mapping[str, str], folder: Path) -> dict[str, tuple[str, str]]:
    """What becomes of each type, printed with the sum; nothing may be wrong."""
    found = {kind: outcome(kind, classes, folder) for kind in classes}
    for kind, (word, more) in sorted(found.items(), key=lambda item: item[1]):
        print(f"{word:12} {kind:28} {more[:300]}")
    counts = Counter(word for word, _ in found.values())
    known = ("recorded", "refused", "not built")
    wrong = {kind: said for kind, said in found.items() if said[0] not in known}
    still = sum("decoding is refused" in more for _, more in found.values())
    print(
        f"{counts['recorded']} recorded and equal, {counts['recorded'] - still} of them while "
        f"decoding too, {counts['refused']} refused by name, "
        f"{counts['not built']} not built, {len(wrong)} wrong (of {len(found)})"
    )
    assert not wrong
    assert all("\n" not in more for word, more in found.values() if word == "refused")
    return found


@pytest.mark.nightly
def test_every_causal_language_model_is_recorded_or_refused_by_name(tmp_path: Path) -> None:
    """Prints how many are recorded and equal their own eager attention, and names the others."""
    found = everything(CAUSAL, tmp_path)
    recorded = {kind for kind, (word, _) in found.items() if word == "recorded"}
    assert len(recorded) >= 180  # 185 with transformers 5.24


@pytest.mark.nightly
def test_models_that_see_or_hear_read_texts_too(tmp_path: Path) -> None:
    """The same for the types that are registered as image-text or multimodal models only."""
    found = everything({k: v for k, v in MULTIMODAL.items() if k not in CAUSAL}, tmp_path)
    recorded = {kind for kind, (word, _) in found.items() if word == "recorded"}
    assert {"llava", "internvl", "mistral3", "qwen2_vl", "qwen3_vl"} <= recorded
