from __future__ import annotations

import os
import socket
import stat

import pytest

from nodeagent.errors import AgentError, AlreadyExists, Conflict, InvalidArgument, NoSpace, NotFound
from nodeagent.guest.entries import permissions, timestamp

USER = {"user": "user", "default_workdir": ""}


@pytest.fixture
def place(home):
    """An empty directory, /home/…/files of the user."""
    place = home / "files"
    place.mkdir()
    os.chown(place, 4321, 4321)
    yield place
    os.system(f"rm -rf {place}")


async def upload(guest, path, data=b"", *, user="user", metadata=None, pieces=1):
    writer = await guest.open_write(
        user=user, path=str(path), default_workdir="", metadata=metadata or {}
    )
    size = -(-len(data) // pieces) or 1
    for at in range(0, len(data), size):
        await writer.write(data[at : at + size])
    return await writer.finish()


async def download(guest, path, **options):
    reader = await guest.open_read(path=str(path), **USER, **options)
    return b"".join([piece async for piece in reader])


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        (stat.S_IFREG | 0o644, "-rw-r--r--"),
        (stat.S_IFLNK | 0o777, "Lrwxrwxrwx"),
        (stat.S_IFDIR | 0o1777, "dtrwxrwxrwx"),
        (stat.S_IFCHR | 0o666, "Dcrw-rw-rw-"),
        (stat.S_IFREG | 0o4755, "urwxr-xr-x"),
        (stat.S_IFREG | 0o2755, "grwxr-xr-x"),
        (stat.S_IFBLK | 0o660, "Drw-rw----"),
        (stat.S_IFIFO | 0o600, "prw-------"),
        (stat.S_IFSOCK | 0o600, "Srw-------"),
    ],
)
def test_permissions_read_as_in_go(mode, shown):
    assert permissions(mode) == shown


@pytest.mark.parametrize(
    ("nanoseconds", "shown"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_500_000_000_000_000_001, "2017-07-14T02:40:00.000000001Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (10**30, "9999-12-31T23:59:59Z"),
    ],
)
def test_times_read_as_rfc_3339(nanoseconds, shown):
    assert timestamp(nanoseconds)[:20] == shown[:20].replace("Z", timestamp(nanoseconds)[19])


async def test_a_file_comes_back_as_it_was_written(guest, place):
    data = os.urandom(3_000_001)

    entry = await upload(guest, "files/new/deep/file.bin", data, pieces=7)

    path = place / "new/deep/file.bin"
    assert (entry["path"], entry["size"], entry["mode"]) == (str(path), "3000001", 0o644)
    assert (entry["owner"], entry["group"], entry["type"]) == ("user", "user", "FILE_TYPE_FILE")
    assert await download(guest, path) == data
    for made in (place / "new", place / "new/deep", path):
        assert (made.stat().st_uid, made.stat().st_gid) == (4321, 4321)
    assert (place / "new").stat().st_mode & 0o7777 == 0o755


async def test_parts_of_a_file_can_be_read(guest, place):
    await upload(guest, place / "f", b"0123456789")

    assert await download(guest, place / "f", offset=3) == b"3456789"
    assert await download(guest, place / "f", offset=3, length=4) == b"3456"
    assert await download(guest, place / "f", length=0) == b""
    assert await download(guest, place / "f", offset=99) == b""


async def test_a_pseudo_file_has_content_although_no_size(guest):
    reader = await guest.open_read(path="/proc/version", **USER)

    assert reader.size_bytes == 0
    assert b"Linux" in b"".join([piece async for piece in reader])


async def test_overwriting_keeps_mode_and_takes_ownership(guest, place):
    path = place / "f"
    path.write_text("long old content")
    path.chmod(0o751)

    await upload(guest, path, b"new")

    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == 0o751
    assert path.stat().st_uid == 4321


async def test_an_upload_broken_off_leaves_what_was_written(guest, place):
    writer = await guest.open_write(path=str(place / "f"), metadata={}, **USER)
    await writer.write(b"part")
    writer.close()

    while await download(guest, place / "f") != b"part":
        pass


async def test_a_link_is_followed_in_both_directions(guest, place):
    (place / "link").symlink_to("target")
    await upload(guest, place / "link", b"x")

    assert (place / "target").read_bytes() == b"x"
    assert await download(guest, place / "link") == b"x"


async def test_metadata_is_replaced_as_a_whole(guest, place):
    path = place / "f"
    assert (await upload(guest, path, metadata={"a": "1", "b": "2"}))["metadata"] == {
        "a": "1",
        "b": "2",
    }
    assert (await upload(guest, path, metadata={"b": "3"}))["metadata"] == {"b": "3"}
    os.setxattr(path, "user.e2b.own", b"set inside")
    os.setxattr(path, "user.e2b.bytes", b"\xff")
    os.setxattr(path, "user.other", b"x")

    entry = (await guest.call("stat", path=str(path), **USER))["entry"]
    assert entry["metadata"] == {"b": "3", "own": "set inside"}
    assert "metadata" not in await upload(guest, path)


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("/no/such", NotFound, "path '/no/such' does not exist"),
        ("files", InvalidArgument, "path '{home}/files' is a directory"),
        ("~other/x", InvalidArgument, "cannot expand user-specific home dir"),
        ("a\0b", InvalidArgument, "invalid path: it contains a NUL byte"),
        ("\ud800", InvalidArgument, ""),
    ],
)
async def test_what_cannot_be_read(guest, place, home, path, error, message):
    with pytest.raises(error) as caught:
        await guest.open_read(path=path, **USER)

    assert caught.value.message.startswith(message.format(home=home))


async def test_what_cannot_be_written(guest, place, home):
    (place / "plain").touch()
    with pytest.raises(InvalidArgument, match=f"^path is a directory: {place}$"):
        await upload(guest, "files")
    with pytest.raises(AgentError):
        await upload(guest, place / "plain/below")


async def test_make_dir_makes_what_is_missing_once(guest, place):
    path = place / "a/b"
    entry = (await guest.call("make_dir", path=str(path), **USER))["entry"]

    assert (entry["type"], entry["name"], entry["mode"]) == ("FILE_TYPE_DIRECTORY", "b", 0o755)
    assert (place / "a").stat().st_uid == 4321
    with pytest.raises(AlreadyExists, match=f"^directory already exists: {path}$"):
        await guest.call("make_dir", path=str(path), **USER)
    (place / "f").touch()
    with pytest.raises(InvalidArgument, match="^path already exists but it is not a directory"):
        await guest.call("make_dir", path=str(place / "f"), **USER)
    with pytest.raises(AgentError) as caught:
        await guest.call("make_dir", path=str(place / "f/x"), **USER)
    assert caught.value.connect_code == "internal"


async def test_list_dir_walks_in_order_to_the_depth(guest, place):
    for name in ("b/x", "b/y/z", "a", "c", "B"):
        (place / name).mkdir(parents=True)
    (place / "link").symlink_to("b")
    (place / "broken").symlink_to("nowhere")

    async def names(depth, path=place):
        reply = await guest.call("list_dir", path=str(path), depth=depth, **USER)
        return [os.path.relpath(entry["path"], path) for entry in reply["entries"]]

    assert await names(0) == await names(1) == ["B", "a", "b", "broken", "c", "link"]
    assert await names(2) == ["B", "a", "b", "b/x", "b/y", "broken", "c", "link"]
    assert "b/y/z" in await names(3)
    assert await names(2, place / "link") == ["x", "y", "y/z"]


async def test_what_cannot_be_listed(guest, place):
    (place / "f").touch()
    (place / "loop").symlink_to("loop")
    for path, error, message in (
        ("none", NotFound, "path not found: "),
        ("f", InvalidArgument, "path is not a directory: "),
        ("loop", Conflict, "cyclic symlink or chain >255 links at "),
    ):
        with pytest.raises(error, match=f"^{message}"):
            await guest.call("list_dir", path=str(place / path), depth=1, **USER)


async def test_a_long_listing_arrives_whole(guest, place):
    for number in range(1200):
        (place / f"{number:04}-{'x' * 200}").touch()

    reply = await guest.call("list_dir", path=str(place), depth=1, **USER)
    assert len(reply["entries"]) == 1200


async def test_links_are_described_by_what_they_lead_to(guest, place):
    (place / "f").write_text("four")
    (place / "f").chmod(0o600)
    (place / "link").symlink_to("f")
    (place / "broken").symlink_to("nowhere")

    async def entry(name):
        return (await guest.call("stat", path=str(place / name), **USER))["entry"]

    link, broken = await entry("link"), await entry("broken")
    assert (link["type"], link["mode"], link["size"]) == ("FILE_TYPE_FILE", 0o600, "1")
    assert (link["permissions"], link["symlinkTarget"]) == ("Lrwxrwxrwx", str(place / "f"))
    assert "type" not in broken
    assert "mode" not in broken
    assert broken["symlinkTarget"] == str(place / "broken")
    with pytest.raises(NotFound, match="^file not found: "):
        await entry("none")


async def test_names_that_are_no_unicode_are_shown_with_replacements(guest, place):
    os.mkdir(os.fsencode(place) + b"/\xff")

    reply = await guest.call("list_dir", path=str(place), depth=1, **USER)
    assert reply["entries"][0]["name"] == "\ufffd"


async def test_unusual_files_have_no_type(guest, place):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "s"))
    os.mkfifo(place / "p")

    entries = (await guest.call("list_dir", path=str(place), depth=1, **USER))["entries"]
    assert [(entry["permissions"][0], "type" in entry) for entry in entries] == [
        ("p", False),
        ("S", False),
    ]


async def test_move_replaces_and_makes_parents(guest, place):
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    moved = {"source": str(place / "a"), **USER}

    entry = (await guest.call("move", destination=str(place / "b"), **moved))["entry"]
    assert (entry["name"], (place / "b").read_text()) == ("b", "a")
    with pytest.raises(NotFound, match="^source file not found"):
        await guest.call("move", destination=str(place / "x"), **moved)
    await guest.call("move", source=str(place / "b"), destination=str(place / "n/m"), **USER)
    assert (place / "n").stat().st_uid == 4321
    (place / "full/x").mkdir(parents=True)
    with pytest.raises(AgentError, match="^error renaming: "):
        await guest.call("move", source=str(place / "n"), destination=str(place / "full"), **USER)


async def test_remove_takes_trees_and_leaves_what_links_lead_to(guest, place):
    (place / "keep").mkdir()
    (place / "keep/f").touch()
    deep = place / "tree"
    for _ in range(60):
        deep /= "d"
    deep.mkdir(parents=True)
    (deep / "f").touch()
    (place / "tree/link").symlink_to(place / "keep")

    for name in ("tree", "tree", "none/below"):
        await guest.call("remove", path=str(place / name), **USER)

    assert os.listdir(place) == ["keep"]
    assert (place / "keep/f").exists()
    with pytest.raises(AgentError, match="^error removing file or directory"):
        await guest.call("remove", path="/", **USER)


async def test_compose_joins_files_and_removes_them(guest, place):
    for name in ("1", "2"):
        (place / name).write_text(name)
    sources = [str(place / "1"), str(place / "2")]

    entry = (await guest.call("compose", sources=sources, destination="files/sum", **USER))["entry"]

    assert entry["path"] == str(place / "sum")
    assert (place / "sum").read_text() == "12"
    assert (place / "sum").stat().st_uid == 4321
    assert os.listdir(place) == ["sum"]


async def test_a_failed_compose_changes_nothing(guest, place):
    (place / "1").write_text("1")
    one = str(place / "1")
    for sources, destination, error in (
        ([one, str(place / "none")], "files/sum", NotFound),
        ([one, one], one, InvalidArgument),
        ([one, str(place)], "files/sum", InvalidArgument),
    ):
        with pytest.raises(error):
            await guest.call("compose", sources=sources, destination=destination, **USER)
    assert os.listdir(place) == ["1"]


@pytest.mark.parametrize(
    ("path", "default_workdir", "expected"),
    [
        ("", "", "{home}"),
        ("", "/work", "/work"),
        ("~", "/work", "{home}"),
        ("~/a/../b", "", "{home}/b"),
        ("a/./b", "/work", "{home}/a/b"),
        ("/a/../b", "", "/a/../b"),
    ],
)
async def test_paths_start_where_the_user_is(guest, home, path, default_workdir, expected):
    reply = await guest.call(
        "resolve_path", user="user", path=path, default_workdir=default_workdir
    )
    assert reply["path"] == expected.format(home=home)


async def test_users_are_those_of_the_sandbox(guest, home):
    reply = await guest.call("resolve_user", user="user")
    assert reply == {
        "uid": 4321,
        "gid": 4321,
        "groups": [4321, 4400],
        "home": str(home),
        "name": "user",
    }
    assert (await guest.call("resolve_user", user="4321"))["name"] == "user"
    assert (await guest.call("resolve_user", user="77"))["uid"] == 77
    assert (await guest.call("resolve_user", user=None))["name"] == "root"
    for name in ("ghost", "numbers", ""):
        with pytest.raises(AgentError) as caught:
            await guest.call("resolve_user", user=name)
        assert caught.value.error_code == "unknown_user"


async def test_the_disk_is_measured(guest):
    reply = await guest.call("disk_usage")
    assert 0 < reply["used"] < reply["total"]


async def test_an_unknown_operation_is_unimplemented(guest):
    with pytest.raises(AgentError) as caught:
        await guest.call("no_such_thing")
    assert caught.value.connect_code == "unimplemented"


async def test_a_failed_write_says_why_although_more_was_on_its_way(guest):
    for _ in range(10):
        writer = await guest.open_write(path="/dev/full", metadata={}, **USER)
        with pytest.raises(NoSpace):
            for _ in range(100):
                await writer.write(bytes(300_000))
            await writer.finish()
