"""What every API view shares: parsing into models, errors in E2B's shape, paging."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from datetime import UTC, datetime
from typing import Any, TypeVar

from django.core.exceptions import RequestDataTooBig
from django.http import Http404, HttpResponse, JsonResponse
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError, create_model
from rest_framework import exceptions as drf_exceptions
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.views import APIView

from config.errors import AppError, InvalidArgument, PayloadTooLarge

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=BaseModel)


class Body(BaseModel):
    """Base of request bodies: types are taken as they are, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class JSONBodyParser(BaseParser):
    """JSON whatever the content type says; an empty body is no body."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: Any = None, parser_context: Any = None) -> Any:
        try:
            raw = stream.read()
        except RequestDataTooBig as error:
            raise PayloadTooLarge("request too large") from error
        if not raw.strip():
            return None
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, json.JSONDecodeError) else "it is not JSON"
            raise InvalidArgument(f"Error when parsing request: {reason}") from error


class JSONOnly(BaseContentNegotiation):
    """One shape of answer, whatever a client says it accepts."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        return parsers[0]

    def select_renderer(self, request: Any, renderers: Any, format_suffix: Any = None) -> Any:
        return renderers[0], renderers[0].media_type


class ApiView(APIView):
    """A view that answers JSON, errors included."""

    renderer_classes = [JSONRenderer]
    parser_classes = [JSONBodyParser]
    content_negotiation_class = JSONOnly
    throttle_classes: list[Any] = []


def parse(model: type[M], raw: Any) -> M:
    """`raw`, checked. An absent body counts as an empty object.

    Raises: InvalidArgument naming each field that is wrong.
    """
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise InvalidArgument("validation error: the body must be an object")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InvalidArgument(f"validation error: {_describe(error)}") from error
    except RecursionError as error:
        raise InvalidArgument("validation error: the body is nested too deeply") from error


def _describe(error: ValidationError) -> str:
    parts = []
    for problem in error.errors(include_url=False, include_context=False)[:5]:
        where = ".".join(str(step) for step in problem["loc"])
        parts.append(f"{where}: {problem['msg']}" if where else str(problem["msg"]))
    return "; ".join(parts)


def query_int(
    request: Request, name: str, *, default: int | None, minimum: int, maximum: int
) -> int | None:
    """A whole number of the query string. Raises: InvalidArgument."""
    raw = request.query_params.get(name)
    if raw is None:
        return default
    try:
        value = int(raw)
    except ValueError:
        raise InvalidArgument(f"validation error: {name} must be a whole number") from None
    if not minimum <= value <= maximum:
        raise InvalidArgument(f"validation error: {name} must be between {minimum} and {maximum}")
    return value


def query_words(request: Request, name: str) -> list[str] | None:
    """An array of the query string, comma-joined or repeated; None when it is not given."""
    values = request.query_params.getlist(name)
    if not values:
        return None
    return [word for value in values for word in value.split(",") if word]


def exception_handler(error: Exception, context: dict[str, Any]) -> HttpResponse | None:
    """The table from our errors, and the framework's, to HTTP. Others become a 500 elsewhere."""
    if isinstance(error, AppError):
        if error.http_status >= 500 and error.http_status not in (501, 503, 504):
            logger.error("API request failed: %s", error.message, exc_info=error)
        response = JsonResponse(error.body(), status=error.http_status, headers=error.headers)
        response._has_been_logged = True  # type: ignore[attr-defined]  # or Django does, as error
        return response
    if isinstance(error, drf_exceptions.APIException):
        status = error.status_code
        message = "method not allowed" if status == 405 else _text(error.detail)
        return JsonResponse({"code": status, "message": message}, status=status)
    if isinstance(error, Http404):
        return JsonResponse(
            {"code": 404, "message": "validation error: no matching operation was found"},
            status=404,
        )
    return None


def _text(detail: Any) -> str:
    while isinstance(detail, list | dict) and detail:
        detail = detail[0] if isinstance(detail, list) else next(iter(detail.values()))
    return str(detail)


# --- Times and paging ------------------------------------------------------------------------


def to_wire_time(at: datetime) -> str:
    """RFC 3339 in UTC with microseconds; the same instant always gives the same text."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def from_wire_time(raw: str) -> datetime:
    """Raises: ValueError."""
    # A `+` that a client did not encode has become a space.
    at = datetime.fromisoformat(raw.replace(" ", "+"))
    if at.tzinfo is None:
        raise ValueError("no time zone")
    try:
        return at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("out of range") from error


def encode_cursor(at: datetime, key: str, *, ascending: bool = False) -> str:
    text = f"{to_wire_time(at)}__{key}" + ("__asc" if ascending else "")
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(token: str, *, ascending: bool = False) -> tuple[datetime, str]:
    """Where the last page ended. Raises: InvalidArgument, also for a cursor of the other order."""
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
        parts = text.split("__")
        if len(parts) != (3 if ascending else 2) or (ascending and parts[2] != "asc"):
            raise ValueError("wrong order")
        if not parts[1].isprintable():  # PostgreSQL takes no NUL, and ours have none
            raise ValueError("not a key")
        return from_wire_time(parts[0]), parts[1]
    except (ValueError, binascii.Error, UnicodeError, OverflowError) as error:
        raise InvalidArgument("Invalid next token") from error


# --- Answers ---------------------------------------------------------------------------------


def answer(body: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> HttpResponse:
    """`body` as compact JSON."""
    return HttpResponse(
        json.dumps(body, separators=(",", ":"), ensure_ascii=False),
        status=status,
        headers=headers,
        content_type="application/json",
    )


def no_content() -> HttpResponse:
    return HttpResponse(status=204)


def list_of(item: Any, name: str = "") -> Any:
    """The type of an answer that is a list, in the words that the schema generator knows."""
    return create_model(
        name or f"{item.__name__}List",
        __base__=RootModel[list[item]],
    )
