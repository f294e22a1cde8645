"""The files of a running sandbox: browse, view, edit small text, upload, download, remove."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlencode

import httpx
from django.core.files.uploadedfile import UploadedFile
from django.http import HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_GET, require_POST

from config.errors import AppError, Conflict, InvalidArgument, NotFound, Unavailable
from frontend.doors import door_of
from frontend.envd import CONNECT_TIMEOUT_SECONDS, Door, EnvdError, FileEntry, Files
from frontend.pages import TeamRequest, done, render, team_page
from frontend.views.sandbox import page_context
from sandboxes.access import access_any_sandbox
from sandboxes.lifecycle import RUNNING_STATES
from sandboxes.models import Sandbox

HOME = "/home/user"
MAX_VIEW_BYTES = 512 * 1024
MAX_SHOWN_ENTRIES = 2000
MAX_PATH_LENGTH = 4096


def clean_path(raw: str) -> str:
    """An absolute path without `..`, the empty one being home. Raises: InvalidArgument."""
    if len(raw) > MAX_PATH_LENGTH or "\0" in raw:
        raise InvalidArgument("That is not a path.")
    # "//" at the start means something else to POSIX; to us it is a typing error.
    return "/" + posixpath.normpath("/" + (raw or HOME)).lstrip("/")


def crumbs_of(path: str) -> list[dict[str, str]]:
    parts = [part for part in path.split("/") if part]
    return [
        {"name": part, "path": "/" + "/".join(parts[: index + 1])}
        for index, part in enumerate(parts)
    ]


def refusal_of(error: EnvdError) -> AppError:
    if error.code == "not_found":
        return NotFound(error.message)
    if error.code in ("invalid_argument", "already_exists", "failed_precondition"):
        return Conflict(error.message)
    return Unavailable(error.message)


def folder_url(request: TeamRequest, sandbox: Sandbox, path: str) -> str:
    url = reverse("frontend:files", args=[request.team.slug, sandbox.public_id])
    return f"{url}?{urlencode({'path': path})}"


@require_GET
@team_page(nav="sandboxes")
def browse(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    """A folder's entries, or a file's text."""
    sandbox = access_any_sandbox(request.team, sandbox_id)
    path = clean_path(request.GET.get("path", ""))
    context = page_context(request, sandbox, "files") | {
        "path": path,
        "crumbs": crumbs_of(path),
        "parent": posixpath.dirname(path),
        "may_browse": sandbox.state in RUNNING_STATES,
    }
    if context["may_browse"]:
        try:
            with Files(door_of(sandbox, now=timezone.now())) as files:
                context |= _content(files, path)
        except EnvdError as error:
            context["error"] = error.message
    return render(request, "frontend/sandbox_files.html", context, partial="frontend/_files.html")


def _content(files: Files, path: str) -> dict[str, Any]:
    if path != "/":
        entry = files.stat(path)
        if not entry.is_directory:
            return _file_content(files, entry)
    entries = files.list(path)
    entries.sort(key=lambda entry: (not entry.is_directory, entry.name.lower()))
    return {
        "entries": entries[:MAX_SHOWN_ENTRIES],
        "hidden_count": max(0, len(entries) - MAX_SHOWN_ENTRIES),
    }


def _file_content(files: Files, entry: FileEntry) -> dict[str, Any]:
    data = files.read(entry.path, MAX_VIEW_BYTES + 1)
    context: dict[str, Any] = {"file": entry, "is_too_large": len(data) > MAX_VIEW_BYTES}
    try:
        text = data[:MAX_VIEW_BYTES].decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is not None and "\0" in text:
        text = None
    return context | {"text": text, "is_editable": text is not None and len(data) <= MAX_VIEW_BYTES}


@require_POST
@team_page(nav="sandboxes", needs="change_files")
def save(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    path = clean_path(request.POST.get("path", ""))
    # Browsers send a textarea's lines with CR LF; files of a sandbox have LF.
    text = request.POST.get("text", "").replace("\r\n", "\n")
    _within(sandbox, lambda files: files.write(path, text.encode()))
    return done(
        request, f"Saved {posixpath.basename(path)}.", to=folder_url(request, sandbox, path)
    )


@require_POST
@team_page(nav="sandboxes", needs="change_files")
def upload(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    folder = clean_path(request.POST.get("path", ""))
    uploads = request.FILES.getlist("files")
    if not uploads:
        raise InvalidArgument("Choose a file first.")

    def store(files: Files) -> None:
        for item in uploads:
            # Django keeps only the base name, so a name cannot climb out of the folder.
            files.write(posixpath.join(folder, item.name or "upload"), _chunks(item))

    _within(sandbox, store)
    word = "file" if len(uploads) == 1 else "files"
    return _folder_again(request, sandbox, folder, f"Uploaded {len(uploads)} {word}.")


def _chunks(item: UploadedFile[Any]) -> Any:
    return item.chunks()


@require_POST
@team_page(nav="sandboxes", needs="change_files")
def make_folder(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    folder = clean_path(request.POST.get("path", ""))
    name = request.POST.get("name", "").strip()
    if not name or "/" in name or name in (".", ".."):
        raise InvalidArgument("A name without slashes, please.")
    path = posixpath.join(folder, name)
    if request.POST.get("kind") == "file":
        _within(sandbox, lambda files: _create_file(files, path))
    else:
        _within(sandbox, lambda files: files.make_directory(path))
    return _folder_again(request, sandbox, folder, f"Created {name}.")


def _create_file(files: Files, path: str) -> None:
    """Raises: EnvdError `already_exists`; an empty write would empty what is there."""
    try:
        files.stat(path)
    except EnvdError as error:
        if error.code != "not_found":
            raise
        files.write(path, b"")
        return
    raise EnvdError("already_exists", f"{path} exists already")


@require_POST
@team_page(nav="sandboxes", needs="change_files")
def remove(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    sandbox = access_any_sandbox(request.team, sandbox_id)
    path = clean_path(request.POST.get("path", ""))
    if path == "/":
        raise InvalidArgument("The root stays.")
    _within(sandbox, lambda files: files.remove(path))
    name = posixpath.basename(path)
    return _folder_again(request, sandbox, posixpath.dirname(path), f"Removed {name}.")


@require_GET
@team_page(nav="sandboxes")
def download(request: TeamRequest, sandbox_id: str) -> HttpResponseBase:
    """The file as it is, streamed; always as an attachment, so that nothing in it runs here."""
    sandbox = access_any_sandbox(request.team, sandbox_id)
    path = clean_path(request.GET.get("path", ""))
    door = door_of(sandbox, now=timezone.now())
    try:
        with Files(door) as files:
            entry = files.stat(path)
    except EnvdError as error:
        raise refusal_of(error) from error
    if entry.is_directory:
        raise InvalidArgument("That is a folder.")
    response = StreamingHttpResponse(_stream(door, path), content_type="application/octet-stream")
    name = posixpath.basename(path)
    response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name)}"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


async def _stream(door: Door, path: str) -> AsyncIterator[bytes]:
    timeout = httpx.Timeout(60, connect=CONNECT_TIMEOUT_SECONDS)
    async with (
        httpx.AsyncClient(
            base_url=door.gateway_url, headers=door.headers(), timeout=timeout, trust_env=False
        ) as http,
        http.stream(
            "GET", "/files", params={"path": path}, headers={"Accept-Encoding": "identity"}
        ) as reply,
    ):
        reply.raise_for_status()
        async for chunk in reply.aiter_bytes(64 * 1024):
            yield chunk


def _within(sandbox: Sandbox, work: Any) -> None:
    try:
        with Files(door_of(sandbox, now=timezone.now())) as files:
            work(files)
    except EnvdError as error:
        raise refusal_of(error) from error


def _folder_again(
    request: TeamRequest, sandbox: Sandbox, folder: str, message: str
) -> HttpResponse:
    url = folder_url(request, sandbox, folder)
    response = done(request, message, to=url, changed="files")
    if response.status_code == 302:
        return redirect(url)
    return response
