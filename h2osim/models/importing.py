"""Attention that others dumped, as traces: files of NumPy, safetensors and PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex

from h2osim.support.errors import UserError
from h2osim.support.given import whole
from h2osim.support.reading import regular
from h2osim.traces.dumps import Dumped, damaged, read_npz, read_safetensors
from h2osim.traces.exchange import MANIFEST, restore
from h2osim.traces.layer_names import layers_of
from h2osim.traces.trace import Trace
from h2osim.traces.writer import TraceWriter

DEEPEST = 32
"""Lists in lists of a .pt file, at most; what is deeper was not made by saving attention."""


def import_trace(
    file: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str],
    names: str | None = None,
    group_size: SupportsIndex | None = None,
    prompt_len: SupportsIndex | None = None,
    name: str | None = None,
    command: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write attention from a file of somebody else's as a trace; the trace's path.

    file: post-softmax attention [heads, n, n] of each layer (a batch of one in front will do), or
    of all layers in one array, in any float type, bfloat16 too: .npz; .safetensors; .pt as
    `torch.save` writes tensors, lists, tuples or dicts of them, which is read without running code
    of its own (`weights_only`). Which arrays are attention, and of which layer, their shapes and
    names tell: those of `output_attentions` in their order, `blocks.3.attn.hook_pattern` of
    TransformerLens, or any names that differ in the layer's number, as one saves from nnsight. What
    `export_trace` wrote becomes the same trace again, with all that it held.
    out: the trace's folder. names: a pattern, as of file names, for the arrays that are meant.
    group_size (1 unless given), prompt_len: as for `Trace.from_scores`. The rows are rounded to
    float16 and their sums before that are kept, as there; memory is a layer's, or the one array's.

    UserError, leaving nothing behind: a damaged file or one of other things, several arrays that
    may be meant, layers of different shapes, and what `Trace.from_scores` refuses: NaN, numbers
    outside [0, 1] or above the diagonal, rows that do not sum to 1.
    """
    path = Path(file)
    found = _read(path)
    called = {} if name is None else {"name": name}
    if MANIFEST in found:
        if names is not None or group_size is not None or prompt_len is not None:
            raise UserError(
                f"{path}: holds a trace that h2osim exported, which says itself what names, "
                f"group_size and prompt_len say"
            )
        restore(found, path, partial(_writer, out, overwrite, called))
        return Path(out)
    layers = layers_of(found, path, names)
    heads, n, _ = next(iter(layers.values())).shape
    group = whole("group_size", 1 if group_size is None else group_size, 1)
    if heads % group:
        raise UserError(f"group_size: found {group}, expected a divisor of {heads} heads")
    fields = {
        "n": n,
        "heads": list(range(heads)),
        "kv_heads": list(range(heads // group)),
        "group_size": group,
        "stores": ["scores"],
        "prompt_len": None if prompt_len is None else whole("prompt_len", prompt_len, 1, n),
        "command": command,
        "provenance": {"imported": path.name},
    }
    with _writer(out, overwrite, called, **fields) as writer:
        for index, layer in layers.items():
            with _of(path):
                rows = layer.read().reshape(1, *layer.shape)
                one = Trace.from_scores(
                    rows, group_size=group, layers=[index],
                    computed_in="bfloat16" if layer.array.floats == "bfloat16" else None,
                )  # fmt: skip
            one.write_layer(writer, index)
    return Path(out)


def _writer(
    out: str | os.PathLike[str], overwrite: bool, called: dict[str, Any], **fields: Any
) -> TraceWriter:
    return TraceWriter(out, overwrite=overwrite, **(fields | called))


@contextmanager
def _of(path: Path) -> Iterator[None]:
    """Name the file in what is said of its numbers."""
    try:
        yield
    except UserError as error:
        said = str(error)
        raise UserError(said if said.startswith(str(path)) else f"{path}: {said}") from None


def _read(path: Path) -> dict[str, Dumped]:
    """The arrays of a file."""
    if path.suffix == ".npz":
        return read_npz(path)
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix in (".pt", ".pth"):
        return _read_pt(path)
    raise UserError(f"{path}: found the ending {path.suffix!r}, expected .npz, .safetensors or .pt")


def _read_pt(path: Path) -> dict[str, Dumped]:
    """The tensors that `torch.save` wrote, in lists, tuples and dicts, by their places."""
    regular(path, path)
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path}: .pt needs the package torch: pip install 'h2osim[record]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what PyTorch will change, not of the file
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what pickle and zip files make of damage is of many kinds
        said = str(error)
        if "Unsupported operand" in said:  # bytes that no version of pickle writes for tensors
            raise UserError(f"{path}: damaged or no .pt file") from None
        if "weights_only" in said or "Unsupported" in said:
            raise UserError(
                f"{path}: holds more than tensors, and code of others is never run; save tensors "
                f"alone, as in torch.save(tuple(outputs.attentions), FILE)"
            ) from None
        raise damaged(path, error, ".pt") from None
    return {
        name: _dumped(value, f"{path}: {name}") for name, value in _tensors(saved, path).items()
    }


def _tensors(saved: Any, path: Path) -> dict[str, Any]:
    """The tensors in lists, tuples and dicts by their places, `0.attn.3`; UserError where they lie
    too deep. A list that is there twice, or in itself, is gone through once.
    """
    import torch

    found: dict[str, Any] = {}
    left: list[tuple[tuple[str, ...], Any]] = [((), saved)]
    seen: set[int] = set()
    while left:
        place, value = left.pop()
        if isinstance(value, torch.Tensor):
            found[".".join(place) or "tensor"] = value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            if len(place) == DEEPEST:
                raise UserError(f"{path}: found tensors more than {DEEPEST} lists deep")
            parts = [*(value.items() if isinstance(value, dict) else enumerate(value))]
            left += [((*place, str(key)), part) for key, part in reversed(parts)]
    return found


def _dumped(tensor: Any, where: str) -> Dumped:
    """A tensor as an array, whose reading ends in a UserError where its numbers are not all there:
    a sparse one, one of the device `meta`, or one number spread over a large shape.
    """
    kind = str(tensor.dtype).removeprefix("torch.") if tensor.is_floating_point() else ""
    shape = () if tensor.is_nested else tuple(tensor.shape)

    def read() -> Any:
        if tensor.is_meta or str(tensor.layout) != "torch.strided":
            raise UserError(f"{where}: found a tensor without its numbers, expected a dense one")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{where}: says it has shape {list(shape)}, more than is there")
        return tensor

    return Dumped(shape, kind, read)
