"""Bodies of the accounts API, and our rows as E2B's objects."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from accounts.models import AccessToken, APIKey, Credential
from config.drf import Body, to_wire_time


class NameInput(Body):
    name: str = Field(min_length=1, max_length=100)


class Mask(BaseModel):
    prefix: str
    valueLength: int
    maskedValuePrefix: str
    maskedValueSuffix: str


class TeamUser(BaseModel):
    id: str
    email: str | None


class TeamAPIKey(BaseModel):
    id: str
    name: str
    mask: Mask
    createdAt: str
    createdBy: TeamUser | None = None
    lastUsed: str | None = None


class CreatedTeamAPIKey(TeamAPIKey):
    key: str


class CreatedAccessToken(BaseModel):
    id: str
    name: str
    token: str
    mask: Mask
    createdAt: str


class TeamEntry(BaseModel):
    teamID: str
    name: str
    apiKey: str
    isDefault: bool


def mask_json(credential: Credential) -> dict[str, Any]:
    return {
        "prefix": credential.PREFIX,
        "valueLength": 40,
        "maskedValuePrefix": credential.mask_prefix,
        "maskedValueSuffix": credential.mask_suffix,
    }


def api_key_json(key: APIKey, *, clear: str | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": str(key.public_id),
        "name": key.name,
        "mask": mask_json(key),
        "createdAt": to_wire_time(key.created_at),
    }
    if key.created_by is not None:
        body["createdBy"] = {"id": str(key.created_by.public_id), "email": key.created_by.email}
    if key.last_used_at is not None:
        body["lastUsed"] = to_wire_time(key.last_used_at)
    if clear is not None:
        body["key"] = clear
    return body


def access_token_json(token: AccessToken, *, clear: str) -> dict[str, Any]:
    return {
        "id": str(token.public_id),
        "name": token.name,
        "token": clear,
        "mask": mask_json(token),
        "createdAt": to_wire_time(token.created_at),
    }
