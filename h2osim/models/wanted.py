"""What is to be recorded: the arguments of `h2osim.record`, checked as far as that goes without the
model, and what of them a trace's rows depend on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from h2osim.support.errors import UserError
from h2osim.support.given import decode, temperature_of, utf8, whole, whole_numbers
from h2osim.support.progress import Progress

STORES = {"scores": ("scores",), "qk": ("qk",), "both": ("scores", "qk")}
"""The values of `store`, and the stores of the trace each makes."""

SETTINGS = (
    "n_tokens", "store", "layers", "kv_heads", "values", "pre_rope", "output_norms", "residual",
    "generate", "sample", "seed", "temperature",
)  # fmt: skip
"""What decides, with the model and the text, which numbers are in a trace."""


def silent(done: float, total: float, what: str) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Wanted:
    """The arguments of `h2osim.record`, by their names; made by `wanted`."""

    path: Path
    text: str | None = None
    tokens: list[int] | None = None
    n_tokens: int | None = None
    store: str = "scores"
    layers: list[int] | None = None
    kv_heads: list[int] | None = None
    values: bool | str = False
    pre_rope: bool = False
    output_norms: bool = False
    residual: bool = False
    generate: int = 0
    sample: bool = False
    seed: int = 0
    temperature: float = 1.0
    text_name: str | None = None
    text_license: str | None = None
    name: str | None = None
    command: str | None = None
    overwrite: bool = False
    progress: Progress = silent
    device: str | None = None
    block_bytes: int | None = None
    text_sha256: str | None = None

    @property
    def stores(self) -> tuple[str, ...]:
        """The stores of the trace."""
        return STORES[self.store]

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as JSON has them."""
        return {name: getattr(self, name) for name in SETTINGS}

    @property
    def text_fields(self) -> dict[str, Any] | None:
        """What a manifest says of the text."""
        if self.text is None and self.text_name is None:
            return None
        return {"name": self.text_name, "sha256": self.text_sha256, "license": self.text_license}

    @property
    def generation_fields(self) -> dict[str, Any] | None:
        """What a manifest says of the decoding run."""
        if not self.generate:
            return None
        return {
            "tokens": self.generate,
            "method": "sample" if self.sample else "greedy",
            "seed": self.seed if self.sample else None,
            "temperature": self.temperature if self.sample else None,
        }


def wanted(**given: Any) -> Wanted:
    """Arguments as given, checked, with numbers of any kind as Python's; UserError otherwise."""
    asked = Wanted(**given)
    text: str | bytes | None = asked.text
    if (text is None) == (asked.tokens is None):
        raise UserError("record: expected a text or token ids, exactly one of them")
    if asked.store not in STORES:
        raise UserError(f"store: found {asked.store!r}, expected one of {', '.join(STORES)}")
    if asked.values not in (False, True, "8bit"):
        raise UserError(f"values: found {asked.values!r}, expected False, True or '8bit'")
    if asked.pre_rope and "qk" not in asked.stores:
        raise UserError(
            f"pre-rope: found store {asked.store!r}, expected qk or both, which keep queries"
        )
    words = {"name": asked.name, "text's name": asked.text_name, "licence": asked.text_license}
    for what, said in words.items():
        utf8(said or "", what)
    digest = None
    if text is not None:
        digest = sha256(utf8(text, "text") if isinstance(text, str) else text).hexdigest()
        if isinstance(text, bytes):
            text, _ = decode(text, f"text {asked.text_name}" if asked.text_name else "text")
    return replace(
        asked,
        path=Path(asked.path),
        text=text,
        text_sha256=digest,
        tokens=whole_numbers("tokens", asked.tokens),
        n_tokens=None if asked.n_tokens is None else whole("tokens", asked.n_tokens, 1),
        layers=whole_numbers("layers", asked.layers),
        kv_heads=whole_numbers("kv-heads", asked.kv_heads),
        values=asked.values or asked.residual,
        generate=whole("generate", asked.generate),
        seed=whole("seed", asked.seed, 0, 2**64 - 1),
        temperature=temperature_of(asked.temperature) if asked.sample else 1.0,
    )
