from __future__ import annotations

import asyncio
import os

import pytest

from nodeagent.errors import InvalidArgument, NotFound


@pytest.fixture
def place(tmp_path):
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.fixture
async def watch(guest, place):
    channels = []

    async def watch(path=place, **options):
        defaults = {
            "user": "user",
            "default_workdir": "",
            "recursive": False,
            "include_entry": False,
            "allow_network_mounts": False,
            "keep": True,
        }
        channel = await guest.watch(path=str(path), **{**defaults, **options})
        channels.append(channel)
        return channel

    yield watch
    for channel in channels:
        channel.close()
    await asyncio.sleep(0)  # transports close in the loop's next turn


async def upload(guest, path, data):
    writer = await guest.open_write(user="user", path=str(path), default_workdir="", metadata={})
    for at in range(0, len(data), 2):
        await writer.write(data[at : at + 2])
    await writer.finish()


def told(events):
    return [(event["name"], event["type"].removeprefix("EVENT_TYPE_")) for event in events]


async def test_an_upload_is_three_events_however_it_was_cut(watch, guest, place):
    channel = await watch()

    await upload(guest, place / "f", b"hello world")
    assert told(await channel.drain()) == [("f", "CREATE"), ("f", "CHMOD"), ("f", "WRITE")]

    await upload(guest, place / "f", b"other")
    assert told(await channel.drain()) == [("f", "CHMOD"), ("f", "WRITE"), ("f", "WRITE")]
    assert await channel.drain() == []


async def test_each_change_has_its_type(watch, place):
    (place / "f").touch()
    (place / "sub").mkdir()
    channel = await watch()

    with (place / "f").open("a") as file:
        file.write("x")
    (place / "f").chmod(0o600)
    (place / "f").rename(place / "g")
    (place / "g").unlink()
    (place / "sub/unseen").touch()
    place.chmod(0o700)

    assert told(await channel.drain()) == [
        ("f", "WRITE"),
        ("f", "CHMOD"),
        ("f", "RENAME"),
        ("g", "CREATE"),
        ("g", "REMOVE"),
        (".", "CHMOD"),
    ]


async def test_the_end_of_the_root_is_reported(watch, place):
    root = place / "root"
    root.mkdir()
    channel = await watch(root)

    root.rmdir()
    assert ((".", "REMOVE")) in told(await channel.drain())


async def test_new_directories_are_watched_with_what_came_into_them(watch, place):
    channel = await watch(recursive=True)

    (place / "a/b").mkdir(parents=True)
    (place / "a/b/f").write_text("x")
    early = told(await channel.drain())
    (place / "a/b/g").touch()
    late = told(await channel.drain())

    for expected in (("a", "CREATE"), ("a/b", "CREATE"), ("a/b/f", "CREATE"), ("a/b/f", "WRITE")):
        assert early.count(expected) == 1
    assert ("a/b/g", "CREATE") in late


async def test_moved_directories_go_on_under_their_new_name(watch, place):
    (place / "a/sub").mkdir(parents=True)
    outside = place.parent / (place.name + "-outside")
    channel = await watch(recursive=True)

    (place / "a").rename(place / "b")
    (place / "b/sub/f").touch()
    moved = told(await channel.drain())
    (place / "b").rename(outside)
    (outside / "sub/g").touch()
    left = told(await channel.drain())
    outside.rename(place / "c")
    (place / "c/sub/h").touch()
    back = told(await channel.drain())

    assert moved[:3] == [("a", "RENAME"), ("b", "CREATE"), ("b/sub/f", "CREATE")]
    assert left == [("b", "RENAME")]
    assert back[0] == ("c", "CREATE")


async def test_entries_come_where_there_is_something_to_describe(watch, place):
    channel = await watch(recursive=True, include_entry=True)
    (place / "f").mkdir()
    (place / "f").rmdir()
    (place / "g").write_text("x")

    events = await channel.drain()
    kinds = {event["type"] for event in events if "entry" not in event}
    entry = next(event["entry"] for event in events if event["name"] == "g")
    assert (entry["path"], entry["type"]) == (str(place / "g"), "FILE_TYPE_FILE")
    assert "EVENT_TYPE_REMOVE" in kinds
    assert "EVENT_TYPE_WRITE" not in kinds


async def test_a_stream_of_events_comes_as_they_happen(watch, place):
    channel = await watch(keep=False)

    (place / "f").touch()
    assert told([await anext(channel)]) == [("f", "CREATE")]


async def test_a_kept_watcher_outlives_its_agent(watch, guest, place):
    channel = await watch()
    channel.close()
    (place / "f").mkdir()

    again = await guest.attach_watcher(channel.watcher_id)
    assert told(await again.drain()) == [("f", "CREATE")]

    await guest.call("remove_watcher", watcher_id=channel.watcher_id)
    for gone in ("remove_watcher", "attach_watcher"):
        with pytest.raises(NotFound, match=f"^watcher with id {channel.watcher_id} not found$"):
            await guest.call(gone, watcher_id=channel.watcher_id)


async def test_more_events_than_fit_a_frame_arrive_in_order(watch, place):
    channel = await watch()
    names = [f"{n:04}-{'x' * 100}" for n in range(3000)]
    for name in names:
        os.mkdir(place / name)

    assert [event["name"] for event in await channel.drain()] == names


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("none", NotFound, "path .* not found: "),
        ("f", InvalidArgument, "path .* not a directory: "),
    ],
)
async def test_only_a_directory_is_watched(watch, place, path, error, message):
    (place / "f").touch()
    with pytest.raises(error, match=f"^{message}"):
        await watch(place / path)


async def test_a_link_to_a_directory_is_followed(watch, place):
    (place / "d").mkdir()
    (place / "link").symlink_to("d")
    channel = await watch(place / "link")

    (place / "d/f").mkdir()
    assert told(await channel.drain()) == [("f", "CREATE")]
