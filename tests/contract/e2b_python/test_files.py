from __future__ import annotations

import io
import urllib.error
import urllib.request

import pytest
from e2b import FilesystemEventType, FileType, NotFoundException, Sandbox, SandboxException


def test_text_bytes_and_file_objects_are_written_and_read(shared: Sandbox, folder: str) -> None:
    for name, data, expected in (
        ("text", "grüße\n", "grüße\n".encode()),
        ("bytes", bytes(range(256)) * 300, bytes(range(256)) * 300),
        ("object", io.BytesIO(b"from an object"), b"from an object"),
        ("empty", "", b""),
    ):
        info = shared.files.write(f"{folder}/{name}", data)
        assert (info.name, info.path) == (name, f"{folder}/{name}")
        assert bytes(shared.files.read(f"{folder}/{name}", format="bytes")) == expected
        stream = shared.files.read(f"{folder}/{name}", format="stream")
        assert b"".join(stream) == expected
    assert shared.files.read(f"{folder}/text") == "grüße\n"


def test_parents_are_made_and_files_replaced(shared: Sandbox, folder: str) -> None:
    path = f"{folder}/a/b/c.txt"
    shared.files.write(path, "long content")
    shared.files.write(path, "short")
    assert shared.files.read(path) == "short"


def test_a_missing_file_is_not_found(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.files.read("/home/user/no-such-file")
    with pytest.raises(NotFoundException):
        shared.files.read("/home/user/no-such-file", format="stream")
    with pytest.raises(NotFoundException):
        shared.files.get_info("/home/user/no-such-file")
    assert shared.files.exists("/home/user/no-such-file") is False


def test_many_files_are_written_in_one_call(shared: Sandbox, folder: str) -> None:
    files = [{"path": f"{folder}/{n}/file", "data": f"content {n}"} for n in range(10)]
    infos = shared.files.write_files(files)
    assert [info.path for info in infos] == [f"{folder}/{n}/file" for n in range(10)]
    assert shared.commands.run(f"cat {folder}/*/file").stdout == "".join(
        f"content {n}" for n in range(10)
    )
    assert shared.files.write_files([]) == []


def test_entries_tell_type_size_mode_and_owner(shared: Sandbox, folder: str) -> None:
    shared.files.write(f"{folder}/file", "12345")
    shared.files.make_dir(f"{folder}/dir")
    shared.commands.run(f"ln -s file {folder}/link")
    entries = {entry.name: entry for entry in shared.files.list(folder)}
    assert set(entries) == {"file", "dir", "link"}
    file = entries["file"]
    assert (file.type, file.size, file.mode, file.permissions) == (
        FileType.FILE,
        5,
        0o644,
        "-rw-r--r--",
    )
    assert (file.owner, file.group) == ("user", "user")
    assert file.modified_time.tzinfo is not None
    assert entries["dir"].type == FileType.DIR
    assert shared.files.get_info(f"{folder}/link").symlink_target == f"{folder}/file"


def test_lists_go_as_deep_as_asked(shared: Sandbox, folder: str) -> None:
    shared.files.write(f"{folder}/one/two/three.txt", "")
    names = [entry.name for entry in shared.files.list(folder, depth=1)]
    assert names == ["one"]
    deep = {entry.path for entry in shared.files.list(folder, depth=3)}
    assert deep == {f"{folder}/one", f"{folder}/one/two", f"{folder}/one/two/three.txt"}
    with pytest.raises(NotFoundException):
        shared.files.list(f"{folder}/missing")


def test_folders_are_made_once_renamed_and_removed(shared: Sandbox, folder: str) -> None:
    assert shared.files.make_dir(f"{folder}/x/y") is True
    assert shared.files.make_dir(f"{folder}/x/y") is False
    moved = shared.files.rename(f"{folder}/x", f"{folder}/z")
    assert moved.path == f"{folder}/z"
    assert shared.files.exists(f"{folder}/z/y")
    shared.files.remove(f"{folder}/z")
    assert not shared.files.exists(f"{folder}/z")
    shared.files.remove(f"{folder}/z")
    with pytest.raises(NotFoundException):
        shared.files.rename(f"{folder}/z", f"{folder}/w")


def test_root_writes_to_its_own_home(shared: Sandbox) -> None:
    info = shared.files.write("from-root", "x", user="root")
    assert info.path == "/root/from-root"
    assert shared.files.write("from-user", "x").path == "/home/user/from-user"


def test_proc_files_can_be_read(shared: Sandbox) -> None:
    assert shared.files.read("/proc/self/status").startswith("Name:")


def test_a_watch_tells_what_happens_in_a_folder(shared: Sandbox, folder: str) -> None:
    handle = shared.files.watch_dir(folder)
    shared.files.write(f"{folder}/new", "1")
    events = handle.get_new_events()
    assert (events[0].name, events[0].type) == ("new", FilesystemEventType.CREATE)
    assert FilesystemEventType.WRITE in [event.type for event in events]
    handle.stop()
    with pytest.raises(SandboxException):
        handle.get_new_events()


def test_a_recursive_watch_sees_new_folders(shared: Sandbox, folder: str) -> None:
    handle = shared.files.watch_dir(folder, recursive=True)
    shared.files.make_dir(f"{folder}/sub")
    shared.files.write(f"{folder}/sub/file", "1")
    names = {event.name for event in handle.get_new_events()}
    handle.stop()
    assert {"sub", "sub/file"} <= names


def test_watching_a_missing_folder_is_not_found(shared: Sandbox) -> None:
    with pytest.raises(NotFoundException):
        shared.files.watch_dir("/no/such/folder")


def _status(url: str, data: bytes | None = None, headers: dict[str, str] | None = None) -> int:
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_signed_urls_carry_a_file_both_ways(shared: Sandbox, folder: str) -> None:
    shared.files.write(f"{folder}/signed", "by url")
    url = shared.download_url(f"{folder}/signed", use_signature_expiration=60)
    with urllib.request.urlopen(url) as answer:
        assert answer.read() == b"by url"
    body = (
        b'--sep\r\nContent-Disposition: form-data; name="file"; filename="up"\r\n\r\n'
        b"uploaded\r\n--sep--\r\n"
    )
    target = shared.upload_url(f"{folder}/up", use_signature_expiration=60)
    assert _status(target, body, {"Content-Type": "multipart/form-data; boundary=sep"}) == 200
    assert shared.files.read(f"{folder}/up") == "uploaded"


def test_a_wrong_or_late_signature_is_refused(shared: Sandbox, folder: str) -> None:
    shared.files.write(f"{folder}/secret", "x")
    url = shared.download_url(f"{folder}/secret")
    assert _status(url) == 200
    assert _status(url.replace("secret", "other")) == 401
    late = shared.download_url(f"{folder}/secret", use_signature_expiration=-10)
    assert _status(late) == 401
