"""A create that is sent twice with the same Idempotency-Key makes one sandbox."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from django.db import IntegrityError, transaction
from django.http import HttpResponse

from accounts.models import Team
from config.drf import answer
from config.errors import AppError, Conflict, InvalidArgument
from sandboxes.models import IdempotencyRecord

RETENTION = timedelta(hours=24)
OUTCOME_UNKNOWN_AFTER = timedelta(minutes=5)

_KEY = re.compile(r"[a-z0-9-]{1,255}")


def once(
    *,
    team: Team,
    key: str,
    request_body: Any,
    work: Callable[[], HttpResponse],
    now: datetime,
) -> HttpResponse:
    """The answer of `work`, or the stored one of the first request with this key.

    A request that fails before a sandbox exists releases the key.
    Raises: InvalidArgument, Conflict, AppError (422) when the key came with another request.
    """
    if not _KEY.fullmatch(key):
        raise InvalidArgument(
            "validation error: Idempotency-Key must be 1 to 255 of a-z, 0-9 and dashes"
        )
    canonical = json.dumps(request_body, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()
    IdempotencyRecord.objects.filter(team=team, key=key, created_at__lt=now - RETENTION).delete()
    try:
        with transaction.atomic():
            record = IdempotencyRecord.objects.create(
                team=team, key=key, request_hash=digest, created_at=now
            )
    except IntegrityError:
        return _replay(team, key, digest, now=now)
    try:
        response = work()
    except BaseException:
        record.delete()
        raise
    IdempotencyRecord.objects.filter(pk=record.pk).update(response=json.loads(response.content))
    return response


def _replay(team: Team, key: str, digest: str, *, now: datetime) -> HttpResponse:
    record = IdempotencyRecord.objects.filter(team=team, key=key).first()
    if record is None:
        raise _in_progress()
    if record.request_hash != digest:
        raise AppError(
            "The Idempotency-Key was used with a different request",
            error_code="idempotency_request_mismatch",
            http_status=422,
        )
    if record.response is None:
        if now - record.created_at > OUTCOME_UNKNOWN_AFTER:
            raise Conflict(
                "The outcome of the first request with this Idempotency-Key is not known",
                error_code="idempotency_outcome_unknown",
                headers={"Should-Retry": "false"},
            )
        raise _in_progress()
    return answer(record.response, status=201)


def _in_progress() -> Conflict:
    return Conflict(
        "The first request with this Idempotency-Key is still running",
        error_code="idempotency_in_progress",
        headers={"Should-Retry": "true", "Retry-After": "1"},
    )
