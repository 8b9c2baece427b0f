"""Each step's figures are its own: on made-up forwards and recordings, right and shifted."""

import numpy as np
import pytest
import served_order
from inside_model.spin import units_of
from recorded import match, recorded

from lightllm_otel.records import layout
from lightllm_otel.records.recording import RecordingWriter
from lightllm_otel.records.vocabulary import Mode, Phase

BATCHES = [1] * 4 + [2] * 4 + [3] * 5 + [4] * 3 + [3] * 4 + [2] * 4 + [1] * 4
UNIT = 2e-3


def forwards():
    """Notes of the model process: one prefill, and decode steps whose batch changes."""
    notes = [{"at": 1_000_000_000, "batch": 1, "context": 64, "prefill": True, "units": units_of(1)}]
    for number, batch in enumerate(BATCHES):
        notes.append({"at": 1_000_000_000 + 12_000_000 * (number + 1), "batch": batch, "context": 64 * batch + number,
                      "prefill": False, "units": units_of(batch)})  # fmt: skip
    return notes


def steps_of(notes, seconds_from=0, figures_from=0, noise=1e-4):
    """What a plugin records. ``seconds_from``, ``figures_from``: a shift of the time, or of everything that is counted."""
    random = np.random.default_rng(0)
    steps = np.zeros(len(notes), layout.STEP)
    for at, step in enumerate(steps):
        note = notes[max(at - figures_from, 0)]
        lasting = notes[max(at - seconds_from, 0)]
        step["magic"], step["number"], step["wall_time"] = layout.STEP_MAGIC, at, notes[at]["at"] * 1e-9 - 50e-6
        step["phase"] = (Phase.PREFILL if notes[at]["prefill"] else Phase.DECODE).code
        step["mode"] = Mode.GRAPH.code
        step["batch"], step["context"], step["tokens"] = note["batch"], note["context"], note["batch"]
        base = 7e-3 + 5e-5 * lasting["batch"]
        step["seconds"] = base + UNIT * lasting["units"] + noise * random.standard_normal()
    return list(steps)


def summary(found):
    row = {"host": "main", "shape": "tiny", "arm": "steps", "problems": [], **found}
    return served_order.summarise([row])["main"]["tiny"]["steps"]


def test_figures_that_belong_together_are_found_so_and_a_shift_would_have_shown():
    found = served_order.compare(forwards(), steps_of(forwards()))
    assert (found["forwards"], found["matched"], found["not_recorded"]) == (29, 29, 0)
    assert found["batches"] == [1, 2, 3, 4]
    assert found["changes_of_batch"] == 6
    assert found["delay_found_ms"] == pytest.approx(2.0, rel=0.02)
    assert [found[f"wrong_{name}"] for name in ("phase", "batch", "context", "tokens", "time")] == [0] * 5
    assert summary(found)["nothing_is_shifted"]
    assert summary(found)["a_shift_would_show"]
    assert found["wrong_time_if_shifted"] >= 6


@pytest.mark.parametrize("by", [1, 2])
def test_times_of_another_step_are_seen(by):
    found = served_order.compare(forwards(), steps_of(forwards(), seconds_from=by))
    assert found["wrong_time"] >= 3
    assert found["wrong_batch"] == 0
    assert not summary(found)["nothing_is_shifted"]


def test_batches_of_another_step_are_seen():
    found = served_order.compare(forwards(), steps_of(forwards(), figures_from=1))
    assert found["wrong_batch"] == 6
    assert found["wrong_context"] > 20
    assert not summary(found)["nothing_is_shifted"]


def test_steps_that_were_not_recorded_are_counted_and_nothing_at_all_is_no_success():
    notes = forwards()
    found = served_order.compare(notes, steps_of(notes)[:20])
    assert found["not_recorded"] == 9
    assert not summary(served_order.compare(notes, []))["nothing_is_shifted"]


def test_steps_in_another_order_than_their_numbers_are_seen():
    steps = steps_of(forwards())
    steps[3]["number"], steps[4]["number"] = 4, 3
    assert not summary(served_order.compare(forwards(), steps))["nothing_is_shifted"]


def test_a_note_and_a_step_belong_together_if_each_is_the_others_nearest():
    assert match([1.0, 1.01, 1.02], [1.001, 1.0099, 1.5]) == [(0, 0), (1, 1)]
    assert match([1.0, 1.01], [1.0002, 1.001, 1.011]) == [(0, 0), (1, 2)]  # a step that nobody noted
    assert match([1.0, 1.001, 1.01], [1.0009, 1.0101]) == [(1, 0), (2, 1)]  # a note without a step
    assert match([], [1.0]) == match([1.0], []) == []
    assert match([1.0], [1.5]) == []


def test_recordings_of_two_exporters_are_one_after_the_other(tmp_path):
    import datetime

    steps = np.stack(steps_of(forwards()))
    for first, last, minute in ((0, 10, 0), (10, 29, 1)):
        writer = RecordingWriter(tmp_path, "group", 1 << 20, datetime.datetime(2026, 12, 1, 0, minute))
        writer.describe({0: {}})
        writer.append(0, steps[first:last].view(np.uint8).reshape(-1, layout.CELL_BYTES))
        writer.close()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    assert [int(step["number"]) for step, _ in recorded(tmp_path, 0.0)] == list(range(29))
    since = float(steps[5]["wall_time"])
    assert [int(step["number"]) for step, _ in recorded(tmp_path, since, since + 0.03)] == [5, 6, 7]


def test_requests_end_and_begin_one_after_the_other():
    stairs = served_order.Staircase()
    lengths = [request.tokens for request in stairs.down()]
    assert np.diff(lengths).tolist() == [stairs.steps] * (stairs.batch - 1)
    assert len({request.text for request in (*stairs.down(), *stairs.up())}) == 2 * stairs.batch
