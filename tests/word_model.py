"""A folder with a tiny model that knows words: a random Llama and a tokenizer of whole words."""

from __future__ import annotations

from pathlib import Path

from h2osim.closed_loop import prompts


def words() -> list[str]:
    """All that the retrieval prompts are made of, and numbers digit by digit."""
    known = " ".join(
        [prompts._NAMES, prompts._CITIES, prompts._THINGS, prompts._KINDS, prompts._VERBS]
    ).split()
    more = "The the secret number of is Question What Answer lives in Where does live Again one"
    marks = [".", ",", ":", "?", "-", *"0123456789"]
    return ["[unk]", *dict.fromkeys([*known, *more.split(), *marks])]


def save(folder: Path) -> Path:
    """Save the model, two layers of two KV groups, with its tokenizer."""
    import torch
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    vocabulary = {word: i for i, word in enumerate(words())}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\d|[.,:?-]"), "isolated")]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[unk]", clean_up_tokenization_spaces=False
    ).save_pretrained(folder)
    torch.manual_seed(0)
    settings = transformers.LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(settings)
    for weight in model.parameters():
        weight.data.mul_(8)  # or rows would be all but uniform
    model.save_pretrained(folder)
    return folder


def text(seed: int, sentences: int = 40) -> str:
    """Sentences of these words."""
    import numpy as np

    rng = np.random.default_rng(seed)
    return " ".join(prompts._sentence(rng) for _ in range(sentences))
