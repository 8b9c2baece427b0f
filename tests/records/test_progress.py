"""Tests of the progress words in the ring's header."""

import pytest

from lightllm_otel.records import progress
from lightllm_otel.records.reader import RingReader
from lightllm_otel.records.vocabulary import Operator
from lightllm_otel.records.writer import RingWriter


def words(number, boundaries, operator, layer):
    found = [0] * progress.WORDS
    progress.begin(found, number)
    found[progress.BOUNDARIES], found[progress.PLACE] = boundaries, progress.place(operator, layer)
    return found


def read(found, number, in_flight=1):
    return progress.read({"progress": found, "in_flight": in_flight, "in_flight_number": number & 0xFFFFFFFF})


@pytest.mark.parametrize("number", [0, 7, 2**31 - 1, 2**31, 2**32 + 5])
@pytest.mark.parametrize("layer", [-1, 0, 79, 30_000])
@pytest.mark.parametrize("operator", [operator for operator in Operator if operator is not Operator.GAP])
def test_what_was_written_is_read(number, layer, operator):
    found = read(words(number, 65534, operator, layer), number)
    assert (found.boundaries, found.operator, found.layer, found.everything) == (
        65534,
        operator.value,
        layer,
        False,
    )


def test_another_steps_words_say_nothing():
    assert read(words(7, 3, Operator.FFN, 1), 8) is None
    assert read(words(7, 3, Operator.FFN, 1), 7, in_flight=0) is None
    assert read([0] * progress.WORDS, 0) is None


def test_what_is_forgotten_says_nothing():
    found = words(7, 3, Operator.FFN, 1)
    progress.forget(found)
    assert read(found, 7) is None


def test_what_is_no_operator_is_launched_in_part():
    assert str(read(words(7, 3, Operator.GAP, -2), 7)) == "partly launched"


def test_the_sentence_names_the_operator_that_was_launched_last():
    found = words(7, 3, Operator.FFN, 12)
    assert str(read(found, 7)) == "launched up to ffn of layer 12"
    assert str(read(words(7, 3, Operator.LM_HEAD, -1), 7)) == "launched up to lm_head"
    progress.launched(found)
    assert str(read(found, 7)) == "its forward is fully launched"
    progress.begin(found, 8)
    assert str(read(found, 8)) == "nothing launched yet"


def test_a_gap_is_no_place():
    assert progress.place(Operator.GAP, -1) == progress.place(Operator.GAP, 3) == 0


def test_the_words_stand_in_the_rings_header(tmp_path):
    writer = RingWriter(tmp_path / "rank-0.ring", 1)
    writer.enter(7, 1, 0.0)
    for at, word in enumerate(words(7, 5, Operator.O_PROJ, 2)):
        writer.progress[at] = word
    reader = RingReader(tmp_path / "rank-0.ring")
    assert str(progress.read(reader.header)) == "launched up to o_proj of layer 2"
    del reader
    writer.close()
