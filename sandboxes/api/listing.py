"""Lists of sandboxes: the query string, filters and pages."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote_plus

from django.db.models import Q
from rest_framework.request import Request

from accounts.models import Team
from config.drf import decode_cursor, encode_cursor, from_wire_time, query_int, query_words
from config.errors import InvalidArgument
from sandboxes.models import Sandbox, SandboxQuerySet
from templates_app.access import find_template
from templates_app.references import parse_reference

STATES = ("running", "paused")


@dataclass(frozen=True, kw_only=True)
class ListQuery:
    states: frozenset[str]
    metadata: dict[str, str]
    started_after: datetime | None
    template: str | None
    ascending: bool
    limit: int
    next_token: str | None


def parse_list_query(request: Request) -> ListQuery:
    """Raises: InvalidArgument."""
    params = request.query_params
    states = query_words(request, "state")
    if states is not None and not set(states) <= set(STATES):
        raise InvalidArgument("validation error: state must be running or paused")
    order = params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise InvalidArgument(f"Invalid order parameter: {order[:20]}")
    started_after = None
    if raw := params.get("startedAfter"):
        try:
            started_after = from_wire_time(raw)
        except ValueError:
            raise InvalidArgument(
                "validation error: startedAfter must be an RFC 3339 time"
            ) from None
    return ListQuery(
        states=frozenset(states or STATES),
        metadata=metadata_filter(params.get("metadata")),
        started_after=started_after,
        template=params.get("template") or None,
        ascending=order == "asc",
        limit=query_int(request, "limit", default=100, minimum=1, maximum=100) or 100,
        next_token=params.get("nextToken") or None,
    )


def metadata_filter(raw: str | None) -> dict[str, str]:
    """The pairs of the filter, whose keys and values clients encode twice. Raises:
    InvalidArgument.
    """
    if not raw:
        return {}
    pairs = {}
    try:
        for part in _unescape(raw).split("&"):
            key, equals, value = part.partition("=")
            if not equals:
                raise ValueError("a pair without '='")
            pairs[_unescape(key)] = _unescape(value)
    except ValueError as error:
        raise InvalidArgument(f"Error parsing metadata: {error}") from error
    if any("\x00" in key or "\x00" in value for key, value in pairs.items()):
        raise InvalidArgument("Error parsing metadata: a NUL character")
    return pairs


def _unescape(text: str) -> str:
    """Raises: ValueError for a `%` that begins no escape, and for bytes that are not UTF-8."""
    for index, char in enumerate(text):
        if char == "%":
            digits = text[index + 1 : index + 3]
            if len(digits) < 2 or any(digit not in "0123456789abcdefABCDEF" for digit in digits):
                raise ValueError(f"invalid URL escape {text[index : index + 3]!r}")
    return unquote_plus(text, errors="strict")


def list_page(team: Team, query: ListQuery, *, now: datetime) -> tuple[list[Sandbox], str | None]:
    """One page, and the token of the next when there is one."""
    found = _matching(team, query, now=now)
    if found is None:
        return [], None
    if query.next_token:
        at, sandbox_id = decode_cursor(query.next_token, ascending=query.ascending)
        if query.ascending:
            found = found.filter(Q(started_at__gt=at) | Q(started_at=at, public_id__lt=sandbox_id))
        else:
            found = found.filter(Q(started_at__lt=at) | Q(started_at=at, public_id__gt=sandbox_id))
    order = ("started_at", "-public_id") if query.ascending else ("-started_at", "public_id")
    page = list(found.select_related("template").order_by(*order)[: query.limit + 1])
    if len(page) <= query.limit:
        return page, None
    page = page[: query.limit]
    last = page[-1]
    assert last.started_at is not None
    return page, encode_cursor(last.started_at, last.public_id, ascending=query.ascending)


def total_running(team: Team, query: ListQuery, *, now: datetime) -> int:
    """How many running ones match, over all pages."""
    only_running = ListQuery(**{**vars(query), "states": frozenset({"running"})})
    found = _matching(team, only_running, now=now)
    return 0 if found is None else found.count()


def _matching(team: Team, query: ListQuery, *, now: datetime) -> SandboxQuerySet | None:
    """None when the filter names a template that does not exist."""
    if query.states == {"running"}:
        found: SandboxQuerySet = Sandbox.objects.shown_running(now)
    elif query.states == {"paused"}:
        found = Sandbox.objects.shown_paused(now)
    else:
        found = Sandbox.objects.present(now)
    found = found.filter(team=team).with_metadata(query.metadata)
    if query.started_after is not None:
        found = found.filter(started_at__gte=query.started_after)
    if query.template is not None:
        try:
            reference = parse_reference(query.template)
        except InvalidArgument as error:
            raise InvalidArgument(f"Invalid template: {error.message}") from error
        if ":" in query.template:
            raise InvalidArgument(
                "Invalid template: tags are not supported here because sandboxes are not tag-scoped"
            )
        template = find_template(team, reference)
        if template is None:
            return None
        found = found.filter(template=template)
    return found
