"""The files pages against a sandbox in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client

from accounts.models import Team
from frontend.envd import Door, EnvdError, FileEntry
from frontend.views import files as files_views
from sandboxes.models import Sandbox

pytestmark = pytest.mark.django_db

EVIL = "<img src=x onerror=alert(1)>"


class MemoryFiles:
    """The client of envd's files, over a dictionary."""

    content: dict[str, bytes | None] = {}

    def __init__(self, door: Door) -> None:
        self.door = door

    def __enter__(self) -> MemoryFiles:
        return self

    def __exit__(self, *_: object) -> None: ...

    def _entry(self, path: str) -> FileEntry:
        data = self.content[path]
        return FileEntry(
            name=path.rsplit("/", 1)[1],
            path=path,
            is_directory=data is None,
            is_symlink=False,
            size_bytes=len(data or b""),
            permissions="-rw-r--r--",
            owner="user",
            modified_at=datetime(2026, 1, 1, tzinfo=UTC),
        )

    def stat(self, path: str) -> FileEntry:
        if path not in self.content:
            raise EnvdError("not_found", f"file not found: {path}")
        return self._entry(path)

    def list(self, path: str) -> list[FileEntry]:
        inside = [each for each in self.content if each.rsplit("/", 1)[0] == path.rstrip("/")]
        return [self._entry(each) for each in inside]

    def read(self, path: str, max_bytes: int) -> bytes:
        return (self.content[path] or b"")[:max_bytes]

    def write(self, path: str, body: Iterator[bytes] | bytes) -> None:
        self.content[path] = body if isinstance(body, bytes) else b"".join(body)

    def make_directory(self, path: str) -> None:
        if path in self.content:
            raise EnvdError("already_exists", f"directory already exists: {path}")
        self.content[path] = None

    def remove(self, path: str) -> None:
        self.content.pop(path, None)


@pytest.fixture
def content(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes | None]:
    content: dict[str, bytes | None] = {"/home": None, "/home/user": None}
    monkeypatch.setattr(MemoryFiles, "content", content)
    monkeypatch.setattr(files_views, "Files", MemoryFiles)
    return content


@pytest.fixture
def base(team: Team, sandbox: Sandbox) -> str:
    return f"/t/{team.slug}/sandboxes/{sandbox.public_id}/files"


def page_of(client: Client, base: str, path: str = "") -> str:
    return client.get(base, {"path": path} if path else {}).content.decode()


def test_a_folder_lists_folders_first(as_alice: Client, base: str, content: dict[str, Any]) -> None:
    content |= {"/home/user/a.txt": b"x", "/home/user/zoo": None}
    text = page_of(as_alice, base)
    assert text.index("zoo/") < text.index("a.txt")


def test_names_and_text_are_never_markup(
    as_alice: Client, base: str, content: dict[str, Any]
) -> None:
    content |= {f"/home/user/{EVIL}": EVIL.encode() + b"</textarea>" + EVIL.encode()}
    assert "<img src=x" not in page_of(as_alice, base)
    text = page_of(as_alice, base, f"/home/user/{EVIL}")
    assert "<img src=x" not in text
    assert text.count("</textarea>") == 1


def test_binary_and_large_files_are_not_offered_for_editing(
    as_alice: Client, base: str, content: dict[str, Any]
) -> None:
    content |= {"/b": bytes(range(256)), "/n": b"a\0b", "/l": b"x" * (600 * 1024)}
    assert "is not text" in page_of(as_alice, base, "/b")
    assert "is not text" in page_of(as_alice, base, "/n")
    large = page_of(as_alice, base, "/l")
    assert "Only the first 512 KB" in large
    assert "<textarea" not in large


def test_text_is_saved_with_unix_lines(
    as_alice: Client, base: str, content: dict[str, Any]
) -> None:
    as_alice.post(f"{base}/save", {"path": "/home/user/a", "text": "one\r\ntwo\r\n"})
    assert content["/home/user/a"] == b"one\ntwo\n"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("", "/home/user"),
        ("/", "/"),
        ("//etc//passwd", "/etc/passwd"),
        ("/home/user/../../etc", "/etc"),
        ("../../../x", "/x"),
        ("relative", "/relative"),
    ],
)
def test_paths_are_absolute_and_plain(given: str, meant: str) -> None:
    assert files_views.clean_path(given) == meant


@pytest.mark.parametrize("path", ["a\0b", "/" + "x" * 5000])
def test_what_is_no_path_is_refused(path: str, as_alice: Client, base: str) -> None:
    assert as_alice.post(f"{base}/remove", {"path": path}).status_code == 400


def test_an_upload_stays_in_its_folder(
    as_alice: Client, base: str, content: dict[str, Any]
) -> None:
    file = SimpleUploadedFile("../../etc/evil.txt", b"data")
    response = as_alice.post(f"{base}/upload", {"path": "/home/user", "files": file})
    assert response.status_code == 302
    assert content["/home/user/evil.txt"] == b"data"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b"])
def test_a_new_entry_wants_a_plain_name(
    name: str, as_alice: Client, base: str, content: dict[str, Any]
) -> None:
    before = dict(content)
    response = as_alice.post(f"{base}/new", {"path": "/home/user", "name": name, "kind": "file"})
    assert response.status_code == 400
    assert content == before


def test_a_new_file_does_not_empty_an_old_one(
    as_alice: Client, base: str, content: dict[str, Any]
) -> None:
    content["/home/user/a"] = b"precious"
    form = {"path": "/home/user", "name": "a", "kind": "file"}
    assert as_alice.post(f"{base}/new", form).status_code == 409
    assert content["/home/user/a"] == b"precious"


def test_the_root_is_not_removed(as_alice: Client, base: str, content: dict[str, Any]) -> None:
    assert as_alice.post(f"{base}/remove", {"path": "/../"}).status_code == 400


def test_a_missing_file_is_said_to_be_missing(
    as_alice: Client, base: str, content: dict[str, Any]
) -> None:
    assert "file not found" in page_of(as_alice, base, "/nope")


def test_files_of_an_ended_sandbox_are_gone(
    as_alice: Client, base: str, sandbox: Sandbox, content: dict[str, Any]
) -> None:
    sandbox.state, sandbox.ended_at, sandbox.end_reason = "ended", sandbox.created_at, "killed"
    sandbox.save()
    assert "Its files are gone" in page_of(as_alice, base)
    assert as_alice.post(f"{base}/save", {"path": "/a", "text": "x"}).status_code == 409


def test_a_viewer_reads_but_sees_no_editor(
    as_vera: Client, base: str, content: dict[str, Any]
) -> None:
    content["/home/user/a"] = b"hello"
    text = page_of(as_vera, base, "/home/user/a")
    assert "hello" in text
    assert "<textarea" not in text
