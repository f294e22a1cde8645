"""The only way a request gets a key or token row: absent and foreign answer alike."""

from __future__ import annotations

from accounts.models import AccessToken, APIKey, Team, User
from config import ids
from config.errors import InvalidArgument, NotFound


def access_api_key(team: Team, key_id: str, *, not_found: str = "id not found") -> APIKey:
    parsed = ids.parse_uuid(key_id)
    if parsed is None:
        raise InvalidArgument("Error when parsing API key ID: it is not a UUID")
    key: APIKey | None = APIKey.objects.active().filter(team=team, public_id=parsed).first()
    if key is None:
        raise NotFound(not_found)
    key.team = team
    return key


def access_access_token(user: User, token_id: str) -> AccessToken:
    parsed = ids.parse_uuid(token_id)
    if parsed is None:
        raise InvalidArgument("Error when parsing access token ID: it is not a UUID")
    token: AccessToken | None = (
        AccessToken.objects.active().filter(user=user, public_id=parsed).first()
    )
    if token is None:
        raise NotFound("id not found")
    return token


def access_team_as_operator(team_id: str) -> Team:
    parsed = ids.parse_uuid(team_id)
    team = Team.objects.filter(public_id=parsed).first() if parsed else None
    if team is None:
        raise NotFound("Team not found")
    return team
