"""Arrays as callers bring them: of NumPy, PyTorch or CuPy, or lists of such."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from h2osim.support.errors import UserError


def real(
    given: Any, what: str, *, axes: int | None = None, bits: bool = False, whole: bool = False
) -> NDArray[Any]:
    """An array of floats in the machine's byte order; UserError naming `what` for anything else.

    given: an array of NumPy, PyTorch, CuPy or JAX, also bfloat16, on any device, with or without
    gradients, or a list of such, one a layer, as `output_attentions` returns them. axes: how many
    the array has with its layers first; a batch of one sequence after them is taken off. bits:
    whether uint16, the patterns of float16, will do too. whole: whether whole numbers will do too.

    Refused: complex numbers, objects, lists of unequal lengths, a masked array that masks
    something, a batch of several sequences.
    """
    try:
        array = _array(given)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None
    except Exception as error:  # whatever a foreign array says of itself
        said = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"{what}: found {type(given).__name__}, expected an array of floats: {said[:70]}"
        ) from None
    patterns = bits and array.dtype.kind == "u" and array.dtype.itemsize == 2
    if array.dtype.kind not in ("fiu" if whole else "f") and not patterns:
        also = " or uint16 patterns of float16" if bits else ""
        raise UserError(f"{what}: found dtype {array.dtype}, expected a float dtype{also}")
    if axes is not None and array.ndim == axes + 1:
        if array.shape[1] != 1:
            raise UserError(
                f"{what}: found shape {list(array.shape)}, a batch of {array.shape[1]} sequences; "
                f"expected one"
            )
        array = array[:, 0]
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _array(given: Any) -> NDArray[Any]:
    """Any array as one of NumPy, its dtype kept; bfloat16, which NumPy lacks, as float32."""
    if isinstance(given, (list, tuple)) and any(hasattr(part, "shape") for part in given):
        parts = [_array(part) for part in given]
        if len({part.shape for part in parts}) > 1:
            shapes = ", ".join(str(list(part.shape)) for part in parts[:3])
            raise UserError(f"found parts of different shapes ({shapes}, ...), expected one shape")
        return np.stack(parts)
    if hasattr(given, "detach"):  # PyTorch
        given = given.detach().cpu()
        given = given.float() if str(given.dtype) == "torch.bfloat16" else given
    elif hasattr(given, "get") and hasattr(given, "device"):  # CuPy
        given = given.get()
    if np.ma.isMaskedArray(given) and np.ma.count_masked(given):
        raise UserError(
            f"found a masked array with {np.ma.count_masked(given)} entries masked, expected a "
            f"number everywhere; `array.filled(0)` makes them 0"
        )
    array = np.asarray(given)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def precision(array: NDArray[Any]) -> str:
    """The narrowest of float16, bfloat16, float32 and float64 that holds every number exactly.

    Probabilities that a model computed in half precision are found out, whatever they were cast to.
    """
    if array.dtype == np.float16:
        return "float16"
    if array.dtype.itemsize > 4 and not bool((array.astype(np.float32) == array).all()):
        return "float64"
    single = array.astype(np.float32, copy=False)
    with np.errstate(over="ignore"):
        if bool((single.astype(np.float16) == single).all()):
            return "float16"
    if bool((np.ascontiguousarray(single).view(np.uint32) & 0xFFFF == 0).all()):
        return "bfloat16"
    return "float32"


def plain(value: Any) -> Any:
    """Numbers, lists and tables as JSON has them, without NumPy's types."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
