import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nodeagent.errors import GuestFault
from nodeagent.guest import frames
from nodeagent.guest.parser import MESSAGES, PIECE_BYTES, FrameParser

kinds = st.sampled_from(sorted(MESSAGES | set(PIECE_BYTES)))
sent = st.lists(st.tuples(kinds, st.binary(max_size=200)), max_size=12)


def joined(found):
    """Content of neighbouring pieces together: how it was cut is no promise."""
    together = []
    for kind, data in found:
        if kind in PIECE_BYTES and together and together[-1][0] == kind:
            together[-1] = (kind, together[-1][1] + data)
        else:
            together.append((kind, data))
    return together


@settings(deadline=None)  # the machine may be busy
@given(sent, st.data())
def test_frames_arrive_whole_however_the_stream_is_cut(sent, data):
    stream = b"".join(frames.pack(kind, payload) for kind, payload in sent)
    parser, found, at = FrameParser(), [], 0
    while at < len(stream):
        size = data.draw(st.integers(1, len(stream) - at))
        found += parser.feed(stream[at : at + size])
        at += size
    expected = [(kind, payload) for kind, payload in sent if payload or kind in MESSAGES]
    assert joined(found) == joined(expected)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.binary(max_size=64), max_size=30))
def test_any_bytes_give_frames_or_a_fault_and_nothing_else(chunks):
    parser = FrameParser()
    try:
        for chunk in chunks:
            for kind, payload in parser.feed(chunk):
                assert kind in MESSAGES or 0 < len(payload) <= PIECE_BYTES[kind]
    except GuestFault:
        pass


@pytest.mark.parametrize("kind", sorted(PIECE_BYTES))
def test_content_comes_in_pieces_of_what_an_event_may_carry(kind):
    found = FrameParser().feed(frames.pack(kind, bytes(100_000)))

    assert sum(len(data) for _, data in found) == 100_000
    assert max(len(data) for _, data in found) <= PIECE_BYTES[kind]


@pytest.mark.parametrize(
    ("kind", "size"),
    [(frames.REPLY, frames.MAX_MESSAGE + 1), (frames.STDOUT, frames.MAX_DATA + 1), (200, 0)],
)
def test_a_size_or_kind_beyond_the_rules_is_refused_from_the_header_alone(kind, size):
    with pytest.raises(GuestFault):
        FrameParser().feed(bytes([kind]) + size.to_bytes(4, "big"))
