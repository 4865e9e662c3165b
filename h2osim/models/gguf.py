"""Models in GGUF files.

transformers loads them (it knows the names of each architecture's tensors and puts the permuted
rows of the queries' and keys' weights back); this module adds what it leaves out: a look at the
header before anything heavy happens, the tokenizer's split of digits, and messages.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from h2osim.support.errors import UserError

# Formats of the metadata's scalar types, by their number in the file; 8 is a string, 9 an array.
_SCALARS = {
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip

# Vocabularies of byte-level BPE that cut a number into its digits first (the file states only this
# name of its "pre-tokenizer"; transformers knows the names whose split is one regular expression).
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})


def read_metadata(path: Path) -> dict[str, Any]:
    """The scalars and strings among a GGUF file's metadata; arrays are passed over.

    UserError when it is no GGUF file of version 2 or 3, or ends too early.
    """
    found: dict[str, Any] = {}
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
            if magic != b"GGUF":
                raise UserError(f"{path}: no GGUF file: found {magic!r}, expected b'GGUF'")
            version = _number(file, "<I")
            if version not in (2, 3):
                raise UserError(f"{path}: found GGUF version {version}, expected 2 or 3")
            _number(file, "<Q")  # how many tensors
            for _ in range(_number(file, "<Q")):
                name = _string(file)
                value = _value(file, _number(file, "<I"))
                if value is not None:
                    found[name] = value
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (struct.error, EOFError, KeyError, UnicodeDecodeError):
        raise UserError(f"{path}: its GGUF header is damaged or truncated") from None
    if "general.architecture" not in found:
        raise UserError(f"{path}: its GGUF header lacks general.architecture")
    return found


def _number(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _count(file: BinaryIO, size: int) -> int:
    """A number of things of at least so many bytes each; EOFError if the file has no room left."""
    count = int(_number(file, "<Q"))
    if count * size > os.fstat(file.fileno()).st_size - file.tell():
        raise EOFError
    return count


def _string(file: BinaryIO) -> str:
    return file.read(_count(file, 1)).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _string(file)
    if kind != 9:
        return _number(file, _SCALARS[kind])
    inner = _number(file, "<I")
    if inner == 8:
        for _ in range(_count(file, 8)):
            file.seek(_count(file, 1), io.SEEK_CUR)
    else:  # no model's header has arrays of arrays
        size = struct.calcsize(_SCALARS[inner])
        file.seek(_count(file, size) * size, io.SEEK_CUR)
    return None


def load(path: Path, tokenizer_class: str = "AutoTokenizer") -> tuple[Any, Any]:
    """(model, tokenizer) of a GGUF file, the weights in float32.

    tokenizer_class: of transformers; `AutoTokenizer` finds it out, which takes some seconds.
    UserError naming an architecture that transformers cannot read from GGUF.
    """
    metadata = read_metadata(path)
    architecture = metadata["general.architecture"]
    try:
        import accelerate  # noqa: F401  transformers reads GGUF only in its company
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{path}: reading GGUF needs the package {error.name}: pip install 'h2osim[record]'"
        ) from None
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    # transformers draws bars of its own on standard error.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            tokenizer = getattr(transformers, tokenizer_class).from_pretrained(
                path.parent, **options
            )
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                path.parent,
                dtype=torch.float32,
                quantization_config=transformers.GgufConfig(dequantize=True),
                output_loading_info=True,
                **options,
            )
        except Exception as error:  # whatever a damaged file leads to
            said = (str(error).strip().splitlines() or [""])[0]
            raise UserError(
                f"{path}: architecture {architecture!r} cannot be loaded from GGUF by "
                f"transformers {transformers.__version__}: {type(error).__name__}: {said}"
            ) from None
    refuse_missing(str(path), report)
    if metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        split_digits(tokenizer)
    return model, tokenizer


def refuse_missing(where: str, report: dict[str, Any]) -> None:
    """UserError when transformers filled weights with random numbers: absent or of a wrong size."""
    odd = sorted(str(key[0]) for key in report.get("mismatched_keys") or ())
    if odd:
        raise UserError(f"{where}: {len(odd)} of its weights have another size, such as {odd[0]}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of the model's weights are missing, such as {missing[0]}"
        )


def split_digits(tokenizer: Any) -> None:
    """Make a byte-level tokenizer take every digit by itself before anything else.

    Without it "  7" (two spaces) is cut as " ", " 7", and with it as "  ", "7".
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
