"""Archives of COPY steps: signed upload addresses, and receiving what comes to them.

The content is opaque here: a node checks it when it is used. A file is complete before its row says
so, and the row before the client hears of success.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings
from django.core import signing
from django.utils import timezone

from accounts.models import Team
from config.errors import InvalidArgument
from templates_app.models import FileArchive

logger = logging.getLogger(__name__)

UPLOAD_PATH = "/template-uploads/"
UPLOAD_SECONDS = 3600
RETENTION = timedelta(days=14)

_SALT = "template-upload"
_HASH = re.compile(r"[0-9a-f]{64}")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def check_files_hash(raw: str) -> str:
    """Raises: InvalidArgument."""
    if not _HASH.fullmatch(raw):
        raise InvalidArgument("Invalid files hash")
    return raw


def upload_token(team: Team, files_hash: str) -> str:
    """What makes an address good for one archive of one team, for an hour."""
    return signing.dumps({"team": team.pk, "hash": files_hash}, salt=_SALT)


def archive_path(team_id: int, files_hash: str) -> Path:
    return Path(settings.UPLOADS_DIR) / str(team_id) / check_files_hash(files_hash)


def is_present(team: Team, files_hash: str) -> bool:
    known = FileArchive.objects.filter(team=team, files_hash=files_hash).exists()
    return known and archive_path(team.pk, files_hash).exists()


def record_archive(*, team_id: int, files_hash: str, size_bytes: int, now: datetime) -> None:
    FileArchive.objects.update_or_create(
        team_id=team_id,
        files_hash=files_hash,
        defaults={"size_bytes": size_bytes, "created_at": now, "used_at": now},
    )


def note_use(team: Team, files_hash: str, *, now: datetime) -> None:
    FileArchive.objects.filter(team=team, files_hash=files_hash).update(used_at=now)


def forget_unused_archives(*, now: datetime) -> int:
    """Delete what no build has asked for in a while. Returns how many."""
    unused = list(FileArchive.objects.filter(used_at__lt=now - RETENTION)[:500])
    for archive in unused:
        archive_path(archive.team_id, archive.files_hash).unlink(missing_ok=True)
        archive.delete()
    return len(unused)


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


async def receive_upload(scope: Scope, receive: Receive, send: Send) -> None:
    """PUT /template-uploads/<token>, as an ASGI application: the body goes straight to the disk."""
    try:
        if scope["method"] != "PUT":
            raise _Refused(405, "method not allowed")
        team_id, files_hash = _opened(scope["path"].removeprefix(UPLOAD_PATH))
        size_bytes = await _store(receive, archive_path(team_id, files_hash))
        await database_sync_to_async(record_archive)(
            team_id=team_id, files_hash=files_hash, size_bytes=size_bytes, now=timezone.now()
        )
    except _Refused as refusal:
        if refusal.status:
            body = f'{{"code":{refusal.status},"message":"{refusal.message}"}}'.encode()
            await _respond(send, refusal.status, body)
        return
    await _respond(send, 200, b"")


def _opened(token: str) -> tuple[int, str]:
    try:
        opened = signing.loads(token, salt=_SALT, max_age=UPLOAD_SECONDS)
        return int(opened["team"]), check_files_hash(str(opened["hash"]))
    except signing.SignatureExpired:
        raise _Refused(403, "this upload address has expired") from None
    except (signing.BadSignature, KeyError, TypeError, ValueError, InvalidArgument):
        raise _Refused(403, "this is not an upload address") from None


async def _store(receive: Receive, path: Path) -> int:
    """The whole body, in place of what was there. Returns its size. Raises: _Refused."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
    size = 0
    try:
        # A write to a local file is short; handing each to a thread would cost more.
        with partial.open("wb") as file:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise _Refused(0, "the client went away")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > settings.MAX_UPLOAD_BYTES:
                    raise _Refused(413, "the archive is too large")
                file.write(chunk)
                if not message.get("more_body", False):
                    break
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        logger.exception("An upload could not be stored.")
        raise _Refused(507, "the archive could not be stored") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return size


async def _respond(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    if body:
        headers.append((b"content-type", b"application/json"))
    if status == 413:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
