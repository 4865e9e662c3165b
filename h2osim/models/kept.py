"""A model kept in the user's cache as it was loaded: weights that take long to make load at once.

Kept are the files that `save_pretrained` writes (safetensors and JSON, no code) and a listing of
their digests, under a name with the versions that made them. What is not as it was written counts
as not there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from h2osim.support.atomic import hidden_folder, take_place
from h2osim.support.compiling import cache_folder
from h2osim.support.reading import sha256_of

LISTING = "sha256.json"
ROOM = 3
"""Nothing is kept on a disk that has not so many times the room that the weights take."""


def place(name: str) -> Path:
    """The folder of a model of this name."""
    return cache_folder() / "models" / name


def load(name: str, make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
    """(model, tokenizer) as kept under this name; else as `make` makes them, kept if possible."""
    import torch
    import transformers

    import h2osim

    folder = place(f"{name}-{h2osim.__version__}-transformers-{transformers.__version__}")
    if not whole(folder):
        model, tokenizer = make()
        with suppress(Exception):  # a full disk, a folder of somebody else's: it is done without
            keep(folder, model, tokenizer)
        return model, tokenizer
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return model, transformers.PreTrainedTokenizerFast.from_pretrained(folder)


def whole(folder: Path) -> bool:
    """Whether every file is there as it was written."""
    try:
        listed = json.loads((folder / LISTING).read_text(encoding="utf-8"))
        return bool(listed == _digests(folder))
    except (OSError, ValueError):
        return False


def keep(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write a model and its tokenizer, whole or not at all."""
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    size = sum(weight.nbytes for weight in model.parameters())
    if shutil.disk_usage(folder.parent).free < ROOM * size:
        return
    with hidden_folder(folder.parent) as hidden:
        new = hidden / folder.name
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        (new / LISTING).write_text(json.dumps(_digests(new)), encoding="utf-8")
        take_place(new, folder)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.iterdir() if path.name != LISTING)
    return {path.name: sha256_of(path) for path in files}
