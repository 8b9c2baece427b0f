"""Tests of prompts: their length in tokens is exact for every tokenizer."""

import random
import re

import pytest

from lightllm_otel.tools.benchmark.prompts import NoTokenizer, prompts, tokenizer


class Words:
    """Tokenizer with a token per word and one at the beginning. Decoding and encoding can change the number of tokens."""

    def encode(self, text):
        return [1, *(hash(word) % 1000 for word in re.findall(r"\w+|[^\w\s]", text))]

    def decode(self, tokens):
        return " ".join("two words" if token % 7 == 0 else f"w{token}" for token in tokens)


class Characters:
    """Tokenizer with a token per character. It merges the end of a text with the text that follows."""

    def encode(self, text):
        return [ord(character) for character in text.replace("ab", "&")]

    def decode(self, tokens):
        return "".join(chr(97 + token % 26) for token in tokens)


@pytest.mark.parametrize("own", [Words(), Characters()], ids=["words", "characters"])
@pytest.mark.parametrize("tokens", [3, 17, 1024])
def test_every_prompt_has_exactly_the_length(own, tokens):
    made = prompts(own, 5000, 4, tokens, seed=1)
    assert [len(own.encode(text)) for text in made] == [tokens] * 4


def test_prompts_differ_from_their_beginning_and_come_again_with_their_seed():
    made = prompts(Words(), 5000, 20, 100, seed=1)
    assert len({text[:12] for text in made}) == 20
    assert prompts(Words(), 5000, 20, 100, seed=1) == made
    assert not {text[:12] for text in made} & {text[:12] for text in prompts(Words(), 5000, 20, 100, seed=2)}


def test_a_length_that_no_text_has_is_said():
    class Pairs(Words):
        def encode(self, text):
            return [0] * (2 * len(text))

    with pytest.raises(ValueError, match="no text of exactly 7 tokens"):
        prompts(Pairs(), 100, 1, 7, seed=random.Random(0).random())


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path):
    pytest.importorskip("transformers", reason="transformers is not installed here")
    with pytest.raises(NoTokenizer, match="has no tokenizer; pass the folder with the model's"):
        tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(NoTokenizer, match="has no readable tokenizer: ") as refusal:
        tokenizer(tmp_path)
    assert "\n" not in str(refusal.value)
    with pytest.raises(NoTokenizer, match="is not a folder"):
        tokenizer(tmp_path / "nothing")
