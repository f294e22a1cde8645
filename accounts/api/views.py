"""Teams, API keys and access tokens."""

from __future__ import annotations

from django.http import HttpResponse
from django.utils import timezone
from drf_spectacular.utils import extend_schema

from accounts.access import access_access_token, access_api_key, access_team_as_operator
from accounts.api.serializers import (
    CreatedAccessToken,
    CreatedTeamAPIKey,
    NameInput,
    TeamAPIKey,
    TeamEntry,
    access_token_json,
    api_key_json,
)
from accounts.auth import (
    USER_IN_TEAM,
    AdminAPIView,
    TeamAPIView,
    TeamRequest,
    UserAPIView,
    refuse_banned_or_blocked,
)
from accounts.models import APIKey, Membership, Role
from accounts.services import (
    create_access_token,
    create_api_key,
    rename_api_key,
    revoke_access_token,
    revoke_api_key,
)
from config.drf import answer, list_of, no_content, parse

CLI_KEY_NAME = "CLI login"


class TeamList(UserAPIView):
    """GET /teams"""

    @extend_schema(responses={200: list_of(TeamEntry)}, operation_id="listTeams")
    def get(self, request: TeamRequest) -> HttpResponse:
        """The caller's teams, each with a fresh key that works: the CLI keeps it after login."""
        user = request.caller.user
        assert user is not None
        memberships = (
            Membership.objects.select_related("team")
            .filter(user=user, team__is_banned=False)
            .order_by("-is_default", "pk")
        )
        entries = []
        for index, membership in enumerate(memberships):
            clear = ""
            if membership.role != Role.VIEWER:
                _, clear = create_api_key(
                    team=membership.team,
                    name=CLI_KEY_NAME,
                    created_by=user,
                    actor=request.caller.actor(request),
                )
            entries.append(
                {
                    "teamID": str(membership.team.public_id),
                    "name": membership.team.name,
                    "apiKey": clear,
                    "isDefault": index == 0,
                }
            )
        return answer(entries)


class APIKeyList(TeamAPIView):
    """GET, POST /api-keys"""

    schemes = USER_IN_TEAM
    allowed_when_blocked = frozenset({"GET"})

    @extend_schema(responses={200: list_of(TeamAPIKey)}, operation_id="listAPIKeys")
    def get(self, request: TeamRequest) -> HttpResponse:
        keys = APIKey.objects.active().filter(team=request.team).select_related("created_by")
        return answer([api_key_json(key) for key in keys.order_by("created_at", "pk")])

    @extend_schema(
        request=NameInput, responses={201: CreatedTeamAPIKey}, operation_id="createAPIKey"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        body = parse(NameInput, request.data)
        key, clear = create_api_key(
            team=request.team,
            name=body.name,
            created_by=request.caller.user,
            actor=request.caller.actor(request),
        )
        return answer(api_key_json(key, clear=clear), status=201)


class APIKeyDetail(TeamAPIView):
    """PATCH, DELETE /api-keys/{apiKeyID}"""

    schemes = USER_IN_TEAM
    allowed_when_blocked = frozenset({"DELETE"})

    @extend_schema(request=NameInput, responses={202: None}, operation_id="renameAPIKey")
    def patch(self, request: TeamRequest, key_id: str) -> HttpResponse:
        key = access_api_key(request.team, key_id)
        body = parse(NameInput, request.data)
        rename_api_key(key=key, name=body.name, actor=request.caller.actor(request))
        return HttpResponse(status=202)

    @extend_schema(responses={204: None}, operation_id="deleteAPIKey")
    def delete(self, request: TeamRequest, key_id: str) -> HttpResponse:
        key = access_api_key(request.team, key_id)
        revoke_api_key(key=key, actor=request.caller.actor(request), now=timezone.now())
        return no_content()


class AccessTokenList(UserAPIView):
    """POST /access-tokens"""

    @extend_schema(
        request=NameInput, responses={201: CreatedAccessToken}, operation_id="createAccessToken"
    )
    def post(self, request: TeamRequest) -> HttpResponse:
        body = parse(NameInput, request.data)
        assert request.caller.user is not None
        token, clear = create_access_token(user=request.caller.user, name=body.name)
        return answer(access_token_json(token, clear=clear), status=201)


class AccessTokenDetail(UserAPIView):
    """DELETE /access-tokens/{accessTokenID}"""

    @extend_schema(responses={204: None}, operation_id="deleteAccessToken")
    def delete(self, request: TeamRequest, token_id: str) -> HttpResponse:
        assert request.caller.user is not None
        token = access_access_token(request.caller.user, token_id)
        revoke_access_token(token=token, now=timezone.now())
        return no_content()


class AdminAPIKeyList(AdminAPIView):
    """POST /admin/teams/{teamID}/api-keys"""

    @extend_schema(
        request=NameInput, responses={201: CreatedTeamAPIKey}, operation_id="adminCreateAPIKey"
    )
    def post(self, request: TeamRequest, team_id: str) -> HttpResponse:
        team = access_team_as_operator(team_id)
        refuse_banned_or_blocked(team, allows_blocked=False)
        body = parse(NameInput, request.data)
        key, clear = create_api_key(team=team, name=body.name, actor=request.caller.actor(request))
        return answer(api_key_json(key, clear=clear), status=201)


class AdminAPIKeyDetail(AdminAPIView):
    """DELETE /admin/teams/{teamID}/api-keys/{apiKeyID}"""

    @extend_schema(responses={204: None}, operation_id="adminDeleteAPIKey")
    def delete(self, request: TeamRequest, team_id: str, key_id: str) -> HttpResponse:
        team = access_team_as_operator(team_id)
        key = access_api_key(team, key_id, not_found="API key not found")
        revoke_api_key(key=key, actor=request.caller.actor(request), now=timezone.now())
        return no_content()
