"""Recordings: bounded, readable after a crash, and clear about what they are not."""

import json

import pytest
import records

from lightllm_otel.records.recording import BadRecording, RecordingWriter, read_recording
from lightllm_otel.records.vocabulary import Operator

CELLS = records.cells(*[records.step(number=number, operators=[(Operator.FFN, 0.5)] * 4) for number in range(5)])


@pytest.fixture
def recorded(tmp_path):
    writer = RecordingWriter(tmp_path, "group", 1 << 20)
    writer.describe({0: records.FACTS})
    writer.append(0, CELLS)
    writer.close()
    return writer.path


def test_what_was_written_is_read_back(recorded):
    recording = read_recording(recorded)
    assert [int(step["number"]) for step, _ in recording.steps(0)] == list(range(5))
    assert recording.facts[0]["model"] == "llama-7b"
    assert recording.torn == ()


def test_a_torn_tail_is_left_out_and_said(recorded):
    with (recorded / "rank-0.records").open("r+b") as file:
        file.truncate(CELLS.nbytes - 20)
    recording = read_recording(recorded)
    assert len(recording.steps(0)) == 4
    assert len(recording.torn) == 1
    assert "ends in the middle of a step" in recording.torn[0]


def test_damage_in_the_middle_is_not_taken_for_a_torn_tail(recorded):
    file = recorded / "rank-0.records"
    content, step = file.read_bytes(), CELLS.nbytes // 5
    file.write_bytes(content[:step] + b"\xff" * 16 + content[step + 16 :])
    recording = read_recording(recorded)
    assert len(recording.steps(0)) == 1
    assert f"is damaged at byte {step}, where no whole step begins; its last {4 * step} bytes" in recording.torn[0]


def test_a_recording_stops_growing_at_its_size(tmp_path, caplog):
    writer = RecordingWriter(tmp_path, "group", CELLS.nbytes + 10)
    for _ in range(3):
        writer.append(0, CELLS)
    assert (writer.path / "rank-0.records").stat().st_size == CELLS.nbytes
    assert len([r for r in caplog.records if "LIGHTLLM_OTEL_RECORD_MAX_MIB" in r.message]) == 1
    writer.close()


def test_a_folder_that_cannot_be_written_is_one_log_line(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    writer = RecordingWriter(tmp_path / "file", "group", 1 << 20)
    writer.append(0, CELLS)
    writer.describe({0: {}})
    assert len(caplog.records) == 1
    assert "cannot be written" in caplog.records[0].message


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda path: (path / "manifest.json").unlink(), "is not a recording"),
        (lambda path: (path / "manifest.json").write_text("{"), "is damaged"),
        (
            lambda path: (path / "manifest.json").write_text(json.dumps({"format": "other"})),
            "use the lightllm-otel that",
        ),
    ],
)
def test_what_is_no_recording_is_refused_in_one_sentence(recorded, damage, sentence):
    damage(recorded)
    with pytest.raises(BadRecording, match=sentence) as refusal:
        read_recording(recorded)
    assert "\n" not in str(refusal.value)
