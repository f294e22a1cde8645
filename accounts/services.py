"""Business verbs on users, teams and credentials."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.text import slugify

from accounts.models import (
    AccessToken,
    APIKey,
    AuditEvent,
    Credential,
    Membership,
    Role,
    Team,
    User,
)
from config.errors import InvalidArgument, NotFound

SECRET_HEX_DIGITS = 40


@dataclass(frozen=True)
class Actor:
    """Who does something, for the audit log."""

    user: User | None = None
    key: APIKey | None = None
    label: str = "system"
    ip_address: str | None = None

    @classmethod
    def of_user(cls, user: User, *, ip_address: str | None = None) -> Actor:
        return cls(user=user, label=user.email, ip_address=ip_address)


SYSTEM = Actor()


def hash_secret(clear: str) -> str:
    """The keyed hash a credential is found by. A stolen table alone lets nobody test guesses."""
    return hmac.new(settings.API_KEY_SECRET.encode(), clear.encode(), hashlib.sha256).hexdigest()


def _new_secret(prefix: str) -> tuple[str, dict[str, str]]:
    digits = secrets.token_hex(SECRET_HEX_DIGITS // 2)
    clear = prefix + digits
    return clear, {
        "secret_hash": hash_secret(clear),
        "mask_prefix": digits[:2],
        "mask_suffix": digits[-4:],
    }


def create_api_key(
    *,
    team: Team,
    name: str,
    created_by: User | None = None,
    expires_at: datetime | None = None,
    actor: Actor | None = None,
    now: datetime | None = None,
) -> tuple[APIKey, str]:
    """A new key of the team and its clear value, which is nowhere kept.

    Raises: InvalidArgument when the name is empty or too long.
    """
    clear, stored = _new_secret(APIKey.PREFIX)
    times = {"created_at": now} if now else {}
    with transaction.atomic():
        key = APIKey.objects.create(
            team=team,
            name=checked_name(name),
            created_by=created_by,
            expires_at=expires_at,
            **stored,
            **times,
        )
        audit(
            team=team,
            actor=actor or (Actor.of_user(created_by) if created_by else SYSTEM),
            action="api_key.created",
            target=str(key.public_id),
            data={"name": key.name},
        )
    return key, clear


def rename_api_key(*, key: APIKey, name: str, actor: Actor) -> None:
    with transaction.atomic():
        key.name = checked_name(name)
        key.save(update_fields=["name"])
        audit(
            team=key.team,
            actor=actor,
            action="api_key.renamed",
            target=str(key.public_id),
            data={"name": key.name},
        )


def revoke_api_key(*, key: APIKey, actor: Actor, now: datetime) -> None:
    """From now on the key opens nothing. Revoking again changes nothing."""
    with transaction.atomic():
        if APIKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now):
            key.revoked_at = now
            audit(
                team=key.team,
                actor=actor,
                action="api_key.revoked",
                target=str(key.public_id),
                data={"name": key.name},
            )


def create_access_token(
    *, user: User, name: str, expires_at: datetime | None = None
) -> tuple[AccessToken, str]:
    """A new token of the user and its clear value, which is nowhere kept."""
    clear, stored = _new_secret(AccessToken.PREFIX)
    token = AccessToken.objects.create(
        user=user, name=checked_name(name), expires_at=expires_at, **stored
    )
    return token, clear


def revoke_access_token(*, token: AccessToken, now: datetime) -> None:
    AccessToken.objects.filter(pk=token.pk, revoked_at=None).update(revoked_at=now)


def touch_credential(credential: Credential, *, now: datetime) -> None:
    """Note a use, at most once a minute: a busy key must not turn every read into a write."""
    last = credential.last_used_at
    if last is None or (now - last).total_seconds() >= 60:
        type(credential)._default_manager.filter(pk=credential.pk).update(last_used_at=now)
        credential.last_used_at = now


def create_personal_team(*, user: User) -> Team:
    """The team every user has from the start. A user who has one gets the same again."""
    existing = Membership.objects.filter(user=user, team__is_personal=True).first()
    if existing is not None:
        return existing.team
    name = user.get_short_name()
    return create_team(name=f"{name}'s team"[:100], owner=user, slug_hint=name, is_personal=True)


def create_team(*, name: str, owner: User, slug_hint: str = "", is_personal: bool = False) -> Team:
    """A team owned by `owner`, with a slug that is free."""
    base = slugify(slug_hint or name)[:48].strip("-_") or "team"
    with transaction.atomic():
        team = None
        for attempt in range(8):
            slug = base if attempt == 0 else f"{base}-{secrets.token_hex(3)}"
            try:
                with transaction.atomic():
                    team = Team.objects.create(
                        name=checked_name(name), slug=slug, is_personal=is_personal
                    )
                break
            except IntegrityError:
                continue
        if team is None:
            raise RuntimeError("no free team slug was found")
        has_default = Membership.objects.filter(user=owner, is_default=True).exists()
        Membership.objects.create(
            team=team, user=owner, role=Role.OWNER, is_default=not has_default
        )
        audit(
            team=team, actor=Actor.of_user(owner), action="team.created", target=str(team.public_id)
        )
    return team


def find_membership(*, user: User, team_id: Any) -> Membership:
    """Raises: NotFound when the user is not in that team, or it does not exist."""
    membership = (
        Membership.objects.filter(user=user, team__public_id=team_id).select_related("team").first()
    )
    if membership is None:
        raise NotFound("team not found")
    return membership


def audit(
    *,
    team: Team | None,
    actor: Actor,
    action: str,
    target: str = "",
    data: dict[str, Any] | None = None,
) -> AuditEvent:
    """Record what `actor` did. Never put secrets into `data`."""
    return AuditEvent.objects.create(
        team=team,
        actor_user=actor.user,
        actor_key=actor.key,
        actor_label=actor.label[:200],
        action=action,
        target=target[:200],
        ip_address=actor.ip_address,
        data=data or {},
    )


def checked_name(name: str) -> str:
    name = re.sub(r"\s+", " ", name).strip()
    if not name or len(name) > 100 or not name.isprintable():
        raise InvalidArgument("a name must have 1 to 100 printable characters")
    return name
