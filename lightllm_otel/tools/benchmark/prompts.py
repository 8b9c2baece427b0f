"""Prompts of an exact length in tokens, each with another beginning, so that no cache of prefixes helps."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

_TRIES = 400
# At least one of them is in every folder that a tokenizer can be read from.
TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken")


class Tokenizer(Protocol):
    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...


class NoTokenizer(LookupError):
    """The folder has none that can be read here; the message says what is missing."""


def tokenizer(model_dir: Path) -> tuple[Tokenizer, int]:
    """The model's own as LightLLM loads it, and how many tokens it has. Raises NoTokenizer."""
    try:
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise NoTokenizer("prompts of an exact length need the package transformers, which LightLLM has: run this in "
                          "its environment") from error  # fmt: skip
    if not model_dir.is_dir():
        raise NoTokenizer(f"--model-dir {model_dir} is not a folder; give the one that the server was started with")
    if not any(any(model_dir.glob(pattern)) for pattern in TOKENIZER_FILES):
        raise NoTokenizer(
            f"{model_dir} has no tokenizer; give the folder with the model's {' or '.join(TOKENIZER_FILES)}"
        )
    try:
        found: Any = transformers.AutoTokenizer.from_pretrained(str(model_dir))
    except Exception as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise NoTokenizer(f"{model_dir} has no tokenizer that can be read: {why}") from error
    return found, len(found)


def prompts(own: Tokenizer, size: int, count: int, tokens: int, seed: int) -> list[str]:
    """``count`` texts that the server's tokenizer makes exactly ``tokens`` of. Raises ValueError where it cannot be.

    ``seed``: at least 0; the negative of a seed would make the same texts.
    """
    chance = random.Random(seed)
    return [_prompt(own, size, tokens, chance) for _ in range(count)]


def _prompt(own: Tokenizer, size: int, tokens: int, chance: random.Random) -> str:
    """Random tokens as text come back as about as many; what is too much is cut off, what is missing is added."""

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
    raise ValueError(f"this tokenizer makes no text of exactly {tokens} tokens; try another --input-len")


def _cut(encode: Callable[[str], list[int]], text: str, tokens: int) -> str:
    """The longest beginning with at most so many tokens, by bisection."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(encode(text[:middle])) <= tokens else (low, middle - 1)
    return text[:low]
