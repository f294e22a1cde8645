import pytest

from nodeagent import events as events_module
from nodeagent.events import EventSpool
from nodeagent.wire import EventKind


@pytest.fixture
def open_spool():
    """Opens spools, and at the end leaves each as a killed agent would: as it is."""
    opened = []

    def open_one(path):
        opened.append(EventSpool(path))
        return opened[-1]

    yield open_one
    for spool in opened:
        spool._file.close()


def fill(spool, count, kind=EventKind.LOG):
    for number in range(count):
        spool.append(kind, f"s{number}", at=float(number))


def test_events_are_numbered_without_gaps_across_restarts(open_spool, tmp_path):
    path = tmp_path / "events.jsonl"
    fill(open_spool(path), 3)

    spool = open_spool(path)
    spool.append(EventKind.ENDED, "s", at=9.0, data={"reason": "oom"})

    assert [event.seq for event in spool.pending(10)] == [1, 2, 3, 4]
    assert spool.pending(10)[-1].data == {"reason": "oom"}


def test_acknowledged_events_are_forgotten_but_not_their_numbers(open_spool, tmp_path):
    path = tmp_path / "events.jsonl"
    spool = open_spool(path)
    fill(spool, 3)
    spool.ack(3)
    spool.close()

    again = open_spool(path)
    assert again.pending(10) == []
    assert again.append(EventKind.LOG, "s", at=0.0).seq == 4


def test_an_acknowledgement_lost_in_a_crash_only_repeats_events(open_spool, tmp_path):
    path = tmp_path / "events.jsonl"
    spool = open_spool(path)
    fill(spool, 3)
    spool.ack(2)  # not compacted: the file still holds all three

    assert [event.seq for event in open_spool(path).pending(10)] == [1, 2, 3]


def test_a_line_cut_short_is_skipped(open_spool, tmp_path):
    path = tmp_path / "events.jsonl"
    fill(open_spool(path), 2)
    text = path.read_text()
    path.write_text(text[:-10])

    spool = open_spool(path)
    assert [event.seq for event in spool.pending(10)] == [1]


def test_a_new_line_after_one_cut_short_is_not_lost(open_spool, tmp_path):
    path = tmp_path / "events.jsonl"
    fill(open_spool(path), 2)
    path.write_text(path.read_text()[:-10])
    open_spool(path).append(EventKind.ENDED, "s", at=1.0)

    assert [event.kind for event in open_spool(path).pending(10)] == ["log", "ended"]


def test_numbering_goes_on_after_what_the_control_plane_knows(open_spool, tmp_path):
    spool = open_spool(tmp_path / "events.jsonl")
    fill(spool, 2)
    spool.ack(500)

    assert [event.seq for event in spool.pending(10)] == [501, 502]
    assert spool.append(EventKind.LOG, "s", at=0.0).seq == 503


def test_a_full_spool_drops_logs_and_keeps_ends(open_spool, tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "MAX_EVENTS", 10)
    spool = open_spool(tmp_path / "events.jsonl")
    spool.append(EventKind.ENDED, "s", at=0.0)
    fill(spool, 10)

    assert [event.kind for event in spool.pending(20)] == [EventKind.ENDED]


def test_the_file_is_compacted_when_it_has_grown(open_spool, tmp_path, monkeypatch):
    monkeypatch.setattr(events_module, "COMPACT_BYTES", 1000)
    path = tmp_path / "events.jsonl"
    spool = open_spool(path)
    fill(spool, 100)
    spool.ack(99)

    assert path.stat().st_size < 1000
    assert [event.seq for event in open_spool(path).pending(10)] == [100]


def test_a_listener_hears_of_every_event(open_spool, tmp_path):
    heard = []
    spool = open_spool(tmp_path / "events.jsonl")
    spool.on_event(lambda event: heard.append(event.seq))
    fill(spool, 2)
    assert heard == [1, 2]
