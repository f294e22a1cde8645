"""Ways in which files travel: compressed, as a plain stream, with metadata, watched."""

from __future__ import annotations

import io
import os
import time

import pytest
from e2b import InvalidArgumentException, Sandbox
from e2b.sandbox.filesystem.filesystem import WriteEntry

DATA = os.urandom(100_000) + b"a" * 100_000


@pytest.mark.parametrize("writes", ["plain", "gzip", "octet-stream"])
@pytest.mark.parametrize("reads", ["plain", "gzip"])
def test_content_is_the_same_however_it_travels(
    shared: Sandbox, folder: str, writes: str, reads: str
) -> None:
    path = f"{folder}/data"
    options = {
        "plain": {},
        "gzip": {"gzip": True},
        "octet-stream": {"use_octet_stream": True},
    }[writes]
    info = shared.files.write(path, DATA, **options)
    assert (info.name, info.path) == ("data", path)
    assert bytes(shared.files.read(path, format="bytes", gzip=reads == "gzip")) == DATA
    assert shared.files.get_info(path).size == len(DATA)


def test_a_file_object_is_streamed_and_a_stream_may_be_abandoned(
    shared: Sandbox, folder: str
) -> None:
    path = f"{folder}/large"
    shared.files.write(path, io.BytesIO(DATA * 20))
    stream = shared.files.read(path, format="stream")
    assert next(iter(stream))
    del stream
    assert b"".join(shared.files.read(path, format="stream")) == DATA * 20


def test_metadata_stays_with_its_file(shared: Sandbox, folder: str) -> None:
    first, second = f"{folder}/a", f"{folder}/b"
    shared.files.write(first, "a", metadata={"Colour": "blue", "size": "1"})
    assert shared.files.get_info(first).metadata == {"colour": "blue", "size": "1"}
    shared.files.rename(first, second)
    assert shared.files.get_info(second).metadata == {"colour": "blue", "size": "1"}
    listed = {entry.name: entry.metadata for entry in shared.files.list(folder)}
    assert listed["b"] == {"colour": "blue", "size": "1"}
    shared.files.write(second, "without")
    assert not shared.files.get_info(second).metadata
    several = [WriteEntry(path=f"{folder}/{name}", data=name) for name in "xy"]
    shared.files.write_files(several, metadata={"by": "all"}, use_octet_stream=True)
    assert [shared.files.get_info(f"{folder}/{name}").metadata for name in "xy"] == [
        {"by": "all"},
        {"by": "all"},
    ]
    with pytest.raises(InvalidArgumentException):
        shared.files.write(first, "a", metadata={"a key": "x"})


def test_the_first_poll_of_a_watch_tells_an_upload_in_three_events(
    shared: Sandbox, folder: str
) -> None:
    watch = shared.files.watch_dir(folder, recursive=True, include_entry=True)
    shared.files.write(f"{folder}/new.txt", "x")
    events = watch.get_new_events()
    assert [(event.name, event.type.value) for event in events] == [
        ("new.txt", "create"),
        ("new.txt", "chmod"),
        ("new.txt", "write"),
    ]
    assert events[0].entry is not None
    assert events[0].entry.path == f"{folder}/new.txt"
    shared.files.make_dir(f"{folder}/deep/er")
    shared.files.write(f"{folder}/deep/er/file", "x")
    names: set[str] = set()
    while "deep/er/file" not in names:  # the test's own time limit bounds it
        names |= {event.name for event in watch.get_new_events()}
        time.sleep(0.02)
    watch.stop()


def test_input_of_any_bytes_reaches_a_process(shared: Sandbox) -> None:
    handle = shared.commands.run("od -An -v -tx1 | tr -d ' \\n'", background=True, stdin=True)
    sent = bytes(range(256)) * 4
    handle.send_stdin(sent)
    handle.send_stdin("zażółć\n")
    handle.close_stdin()
    assert handle.wait().stdout == (sent + "zażółć\n".encode()).hex()
