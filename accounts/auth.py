"""Who calls the API: a team's key, a user's token, or the operator, and for which team they act."""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from django.conf import settings
from django.http import HttpRequest
from django.utils import timezone
from rest_framework.request import Request

from accounts.models import AccessToken, APIKey, Membership, Role, Team, User
from accounts.services import SYSTEM, Actor, hash_secret, touch_credential
from config import ids
from config.drf import ApiView
from config.errors import AppError, PermissionDenied, Unauthenticated

BAD_KEY = "Invalid API key, please visit https://e2b.dev/docs/api-key for more information."
BAD_TOKEN = "Invalid Access token, try to login again by running `e2b auth login`."  # noqa: S105
BAD_JWT = "Invalid auth provider token."
BAD_TEAM = "Invalid auth provider token teamID."
BAD_ADMIN = "Invalid Access token.\nInvalid Access token."

_HEX = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who asks. `role` is set when a user acts in the team; keys and operators may do what a key
    may.
    """

    team: Team | None = None
    key: APIKey | None = None
    user: User | None = None
    role: Role | None = None
    is_operator: bool = False

    def actor(self, request: HttpRequest | Request) -> Actor:
        address = request.META.get("REMOTE_ADDR") or None
        if self.key is not None:
            return Actor(key=self.key, label=f"key {self.key.name}", ip_address=address)
        if self.user is not None:
            return Actor.of_user(self.user, ip_address=address)
        if self.is_operator:
            return Actor(label="operator", ip_address=address)
        return SYSTEM


class TeamRequest(Request):
    """A request to a `TeamAPIView`: `team` is the one that `caller` acts for."""

    team: Team
    caller: Caller


Scheme = Callable[[HttpRequest], Caller | None]


def by_key(request: HttpRequest) -> Caller | None:
    clear = request.META.get("HTTP_X_API_KEY")
    if clear is None:
        return None
    digits = _digits(clear, APIKey.PREFIX, f"{BAD_KEY}\nInvalid API key format")
    key: APIKey | None = (
        APIKey.objects.select_related("team")
        .filter(secret_hash=hash_secret(APIKey.PREFIX + digits))
        .first()
    )
    now = timezone.now()
    if key is None or not key.is_usable(now):
        raise Unauthenticated(f"{BAD_KEY}\nCannot get the team for the given API key")
    touch_credential(key, now=now)
    return Caller(team=key.team, key=key)


def by_user_and_team(request: HttpRequest) -> Caller | None:
    """A bearer token together with the team's id."""
    team_id = _team_header(request)
    bearer = _bearer(request)
    if bearer is None or team_id is None:
        return None
    user = _user_of(bearer)
    parsed = ids.parse_uuid(team_id)
    if parsed is None:
        raise Unauthenticated(f"{BAD_TEAM}\nInvalid team ID")
    membership = (
        Membership.objects.select_related("team").filter(user=user, team__public_id=parsed).first()
    )
    if membership is None:
        raise Unauthenticated(f"{BAD_TEAM}\nYou are not a member of this team")
    return Caller(team=membership.team, user=user, role=Role(membership.role))


def by_user(request: HttpRequest) -> Caller | None:
    """A bearer token alone; the team is `teamID` of the query, or the user's default."""
    bearer = _bearer(request)
    return None if bearer is None else Caller(user=_user_of(bearer))


def by_admin_and_team(request: HttpRequest) -> Caller | None:
    if not _is_admin(request):
        return None
    parsed = ids.parse_uuid(_team_header(request) or "")
    team = Team.objects.filter(public_id=parsed).first() if parsed else None
    if team is None:
        raise Unauthenticated("Invalid admin token teamID.\nInvalid team ID")
    return Caller(team=team, is_operator=True)


def by_admin(request: HttpRequest) -> Caller | None:
    return Caller(is_operator=True) if _is_admin(request) else None


TEAM: tuple[Scheme, ...] = (by_key, by_user_and_team, by_admin_and_team)
TEAM_OR_TOKEN: tuple[Scheme, ...] = (by_key, by_user_and_team, by_user, by_admin_and_team)
USER_IN_TEAM: tuple[Scheme, ...] = (by_user_and_team, by_admin_and_team)
USER: tuple[Scheme, ...] = (by_user,)
ADMIN: tuple[Scheme, ...] = (by_admin,)


def authenticate(request: HttpRequest, schemes: tuple[Scheme, ...]) -> Caller:
    """The caller by the first scheme that succeeds; else the first scheme's error whose header is
    there.

    Raises: Unauthenticated.
    """
    first_error: AppError | None = None
    for scheme in schemes:
        try:
            caller = scheme(request)
        except Unauthenticated as error:
            first_error = first_error or error
            continue
        if caller is not None:
            return caller
    raise first_error or Unauthenticated("authorization header is missing")


def team_of_user(user: User, wanted: str | None) -> Membership:
    """The team a user-level call is about. Raises: PermissionDenied."""
    memberships = Membership.objects.select_related("team").filter(user=user)
    if wanted:
        parsed = ids.parse_uuid(wanted)
        membership = memberships.filter(team__public_id=parsed).first() if parsed else None
        if membership is None:
            raise PermissionDenied("You are not allowed to access this team")
        return membership
    membership = memberships.order_by("-is_default", "pk").first()
    if membership is None:
        raise PermissionDenied("You don't have access to any teams")
    return membership


def refuse_banned_or_blocked(team: Team, *, allows_blocked: bool) -> None:
    """Raises: PermissionDenied."""
    if team.is_banned:
        raise PermissionDenied("team is banned")
    if team.is_blocked and not allows_blocked:
        reason = f": {team.blocked_reason}" if team.blocked_reason else ""
        raise PermissionDenied(f"team is blocked{reason}")


class CallerView(ApiView):
    """A view that knows its caller before it looks at anything else of the request."""

    schemes: tuple[Scheme, ...] = TEAM
    # Methods that read or clean up, so that a blocked team keeps them.
    allowed_when_blocked: frozenset[str] = frozenset()

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        renderer = self.get_renderers()[0]
        request.accepted_renderer = renderer
        request.accepted_media_type = renderer.media_type
        caller = authenticate(request._request, self.schemes)
        if caller.team is None and caller.user is not None and self.needs_team:
            membership = team_of_user(caller.user, request.query_params.get("teamID"))
            caller = Caller(team=membership.team, user=caller.user, role=Role(membership.role))
        if caller.team is not None:
            refuse_banned_or_blocked(
                caller.team, allows_blocked=request.method in self.allowed_when_blocked
            )
        if caller.role is Role.VIEWER and request.method not in ("GET", "HEAD", "OPTIONS"):
            raise PermissionDenied("Your role in this team does not allow that")
        own = cast(TeamRequest, request)
        own.caller = caller
        if caller.team is not None:
            own.team = caller.team

    needs_team = True


class TeamAPIView(CallerView):
    """A view for a team's key, a member of it, or the operator acting as it."""


class UserAPIView(CallerView):
    schemes = USER
    needs_team = False


class AdminAPIView(CallerView):
    schemes = ADMIN
    needs_team = False


def _digits(clear: str, prefix: str, not_hex: str) -> str:
    if not clear.startswith(prefix):
        raise Unauthenticated("authorization header is malformed")
    digits = clear[len(prefix) :]
    if not _HEX.fullmatch(digits):
        raise Unauthenticated(not_hex)
    return digits


def _bearer(request: HttpRequest) -> str | None:
    header = request.META.get("HTTP_AUTHORIZATION")
    if header is None:
        # The pair's former names, which older clients still send.
        former: str | None = request.META.get("HTTP_X_SUPABASE_TOKEN")
        return former
    scheme, _, token = str(header).partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthenticated("authorization header is malformed")
    return token.strip()


def _team_header(request: HttpRequest) -> str | None:
    team_id: str | None = request.META.get("HTTP_X_TEAM_ID") or request.META.get(
        "HTTP_X_SUPABASE_TEAM"
    )
    return team_id


def _user_of(bearer: str) -> User:
    if not bearer.startswith(AccessToken.PREFIX):
        raise Unauthenticated(f"{BAD_JWT}\nBackend authentication failed")
    digits = _digits(bearer, AccessToken.PREFIX, f"{BAD_TOKEN}\nInvalid access token format")
    token: AccessToken | None = (
        AccessToken.objects.select_related("user")
        .filter(secret_hash=hash_secret(AccessToken.PREFIX + digits))
        .first()
    )
    now = timezone.now()
    if token is None or not token.is_usable(now) or not token.user.is_active:
        raise Unauthenticated(f"{BAD_TOKEN}\nCannot get the user for the given access token")
    touch_credential(token, now=now)
    return token.user


def _is_admin(request: HttpRequest) -> bool:
    given = request.META.get("HTTP_X_ADMIN_TOKEN")
    if given is None:
        return False
    wanted = settings.ADMIN_TOKEN
    if not wanted or not hmac.compare_digest(given.encode(), wanted.encode()):
        raise Unauthenticated(BAD_ADMIN)
    return True
