"""Prompts of an exact length in tokens. Each begins differently, so that a prompt cache does not help."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

_TRIES = 400
# Every folder with a tokenizer has at least one of these files.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


class Tokenizer(Protocol):
    """Tokenizer of a model."""

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


class NoTokenizer(LookupError):
    """Raised if the folder has no readable tokenizer; the message says what is missing."""


def tokenizer(model_dir: Path) -> tuple[Tokenizer, int]:
    """Load the model's tokenizer as LightLLM does, and return it with its number of tokens. Raises NoTokenizer."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise NoTokenizer("prompts of an exact length need the package transformers: run this in the environment "
                          "of LightLLM, which has it") from error  # fmt: skip
    if not model_dir.is_dir():
        raise NoTokenizer(f"--model-dir {model_dir} is not a folder; pass the one that the server was started with")
    if not any(any(model_dir.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise NoTokenizer(
            f"{model_dir} has no tokenizer; pass the folder with the model's {' or '.join(TOKENIZER_FILES)}"
        )
    try:
        found: Any = transformers.AutoTokenizer.from_pretrained(str(model_dir))
    except Exception as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise NoTokenizer(f"{model_dir} has no readable tokenizer: {why}") from error
    return found, len(found)


def prompts(own: Tokenizer, size: int, count: int, tokens: int, seed: int) -> list[str]:
    """Return ``count`` texts of exactly ``tokens`` tokens each. ``size``: number of tokens of the tokenizer.

    ``seed``: at least 0, because a negative seed gives the same texts as its absolute value. Raises ValueError if the tokenizer
    cannot produce such texts.
    """
    chance = random.Random(seed)
    return [_prompt(own, size, tokens, chance) for _ in range(count)]


def _prompt(own: Tokenizer, size: int, tokens: int, chance: random.Random) -> str:
    """Return one text. Random tokens are decoded to text, which is then cut or extended until it has the exact length."""

    def piece(count: int) -> str:
        return own.decode([chance.randrange(3, size) for _ in range(count)]).strip()

    text = ""
    for _ in range(_TRIES):
        found = own.encode(text)
        missing = tokens - len(found)
        if missing == 0:
            return text
        if missing < 0:
            text = _cut(own.encode, text, tokens)
        elif missing > 8:
            text = f"{text} {piece(missing - 4)}".strip()
        else:
            text += chance.choice((" a", " the", "b", " c", ".", "d"))
    raise ValueError(f"found no text of exactly {tokens} tokens with this tokenizer; try another --input-len")


def _cut(encode: Callable[[str], list[int]], text: str, tokens: int) -> str:
    """Return the longest prefix with at most ``tokens`` tokens, by bisection."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(encode(text[:middle])) <= tokens else (low, middle - 1)
    return text[:low]
