"""The pure parts: signatures, negotiation, multipart, the bounded queue."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.envd import negotiation
from nodeagent.envd.multipart import MultipartError, MultipartReader, Part, parameters_of
from nodeagent.envd.queue import EventQueue
from nodeagent.envd.signing import sign


@pytest.mark.parametrize(
    ("path", "operation", "user", "expiration", "signature"),
    [
        ("notes/a b.txt", "read", "", None, "v1_kJrtzBDgkgkxnR5Eh4fe0c1A+k4bxH3k/d3D7i3x+oI"),
        (
            "notes/a b.txt",
            "read",
            "root",
            1900000000,
            "v1_9Rt76AJiR/8N3KidLvEZZYU7Bi5fT1QwuhOwnXVDOaA",
        ),
        ("", "write", "", 1900000000, "v1_19nMUaqX61munQS3IrEvapjFY4CTWQ2a0NHaROq3Dh8"),
    ],
)
def test_signatures_are_those_of_the_sdks(path, operation, user, expiration, signature) -> None:
    token = "k" * 64
    assert (
        sign(path=path, operation=operation, username=user, token=token, expiration=expiration)
        == signature
    )


@pytest.mark.parametrize(
    ("accept", "encoding"),
    [
        (None, "identity"),
        ("", "identity"),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("gzip, deflate, br", "gzip"),
        ("br", "identity"),
        ("identity, gzip", "identity"),
        ("gzip;q=0.5, identity", "identity"),
        ("gzip;q=0", "identity"),
        ("*", "identity"),
        ("*, identity;q=0", "gzip"),
        ("gzip;q=nonsense", "identity"),
        (",;q=1,,", "identity"),
    ],
)
def test_encoding_choice(accept, encoding) -> None:
    assert negotiation.choose_encoding(accept, needs_identity=False) == encoding


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.txt", "inline; filename=a.txt"),
        ("a b.txt", 'inline; filename="a b.txt"'),
        ('a"b', 'inline; filename="a\\"b"'),
        ("ü.txt", "inline; filename*=utf-8''%C3%BC.txt"),
        ("a\r\nX: y", "inline; filename*=utf-8''a%0D%0AX%3A%20y"),
    ],
)
def test_content_disposition(name, header) -> None:
    assert negotiation.content_disposition(name) == header


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.json", "application/json"),
        ("a.png", "image/png"),
        ("a.tar.gz", "application/gzip"),
        ("a.unknownext", None),
        ("a", None),
    ],
)
def test_type_by_name(name, kind) -> None:
    assert negotiation.type_by_name(name) == kind


def test_type_by_content() -> None:
    assert negotiation.type_by_content(b"plain\n") == "text/plain; charset=utf-8"
    assert negotiation.type_by_content(b"\x00\x01") == "application/octet-stream"
    assert negotiation.type_by_content(b"\x89PNG\r\n\x1a\n...") == "image/png"


@given(st.text(max_size=40), st.integers(0, 1000), st.floats(0, 2e9))
def test_ranges_never_leave_the_file(header: str, size: int, modified: float) -> None:
    for value in (header, f"bytes={header}"):
        for offset, length in negotiation.wanted_ranges({"range": value}, size, modified) or []:
            assert offset >= 0
            assert length > 0
            assert offset + length <= size


@given(st.text(max_size=60))
def test_any_accept_encoding_is_understood_or_refused(accept: str) -> None:
    with contextlib.suppress(negotiation.NotAcceptable):
        assert negotiation.choose_encoding(accept, needs_identity=False) in ("gzip", "identity")


@pytest.mark.parametrize(
    ("header", "filename"),
    [
        ('form-data; name="file"; filename="a/b/c.txt"', "a/b/c.txt"),
        ('form-data; name="file"; filename="C:\\dir\\x"', "C:\\dir\\x"),
        ('form-data; name="file"; filename="q\\"uote"', 'q"uote'),
        ('form-data; name="file"; filename="semi;colon=1"', "semi;colon=1"),
        ("form-data; name=file; filename=token", "token"),
        ("form-data; name=file; filename*=UTF-8''%e2%82%ac%2Fx", "€/x"),
        ("form-data; name=file; filename=a; filename*=utf-8''b", "b"),
        ('form-data; name=file; filename*0="a/"; filename*1="b"', "a/b"),
        ('form-data; name="file"; filename="ünï/x"', "ünï/x"),
        ('form-data; name="file"', None),
        ('form-data; name="file"; filename=""', ""),
    ],
)
def test_file_names_in_headers(header, filename) -> None:
    found = parameters_of(header)
    assert (found["name"], found.get("filename")) == ("file", filename)


@given(st.text(max_size=100))
def test_any_header_can_be_read(header: str) -> None:
    parameters_of(header)


@given(
    st.lists(st.tuples(st.sampled_from(["file", "x"]), st.binary(max_size=300)), max_size=5),
    st.integers(1, 64),
)
def test_forms_survive_any_cutting(parts: list[tuple[str, bytes]], step: int) -> None:
    boundary = "boundary-0123456789-which-is-not-inside"
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n".encode()
        + content
        + b"\r\n"
        for name, content in parts
    )
    body += f"--{boundary}--\r\n".encode()
    reader = MultipartReader(f"multipart/form-data; boundary={boundary}")
    found: list[tuple[str, bytes]] = []
    for at in range(0, len(body), step):
        for event in reader.feed(body[at : at + step]):
            if isinstance(event, Part):
                found.append((event.name, b""))
            elif event is not None:
                found[-1] = (found[-1][0], found[-1][1] + event)
    reader.finish()
    assert found == parts


@given(st.binary(max_size=400), st.integers(1, 50))
def test_any_body_is_a_form_or_a_multipart_error(body: bytes, step: int) -> None:
    prefix = b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n'
    for start in (b"", prefix, prefix + b"\r\n"):
        reader = MultipartReader("multipart/form-data; boundary=b")
        data = start + body
        try:
            for at in range(0, len(data), step):
                reader.feed(data[at : at + step])
            reader.finish()
        except MultipartError:
            pass


def test_a_part_header_is_bounded() -> None:
    reader = MultipartReader("multipart/form-data; boundary=b")
    reader.feed(b"--b\r\nX: ")
    with pytest.raises(MultipartError):
        reader.feed(b"x" * 100_000)


async def test_queue_holds_back_and_lets_go() -> None:
    queue: EventQueue[int] = EventQueue(limit=2)
    await queue.put(1)
    await queue.put(2)
    writing = asyncio.create_task(queue.put(3))
    await asyncio.sleep(0)
    assert not writing.done()
    assert await queue.get(1) == 1
    await writing
    assert [queue.get_nowait(), queue.get_nowait(), queue.get_nowait()] == [2, 3, None]
    await queue.put(4)
    await queue.put(5)
    writing = asyncio.create_task(queue.put(6))
    await asyncio.sleep(0)
    queue.close()
    await writing
    assert len(queue) == 0


async def test_queue_says_when_nothing_came() -> None:
    queue: EventQueue[int] = EventQueue()
    assert await queue.get(0.01) is None
    reading = asyncio.create_task(queue.get(5))
    await asyncio.sleep(0)
    await queue.put(7)
    assert await reading == 7


async def test_a_cancelled_writer_does_not_block_the_others() -> None:
    queue: EventQueue[int] = EventQueue(limit=1)
    await queue.put(1)
    first = asyncio.create_task(queue.put(2))
    second = asyncio.create_task(queue.put(3))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert await queue.get(1) == 1
    await second
    assert await queue.get(1) == 3
