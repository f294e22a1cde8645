"""Who belongs to a team: inviting, joining, roles, leaving. Each move leaves an audit line."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction

from accounts.models import Invitation, Membership, Role, Team, User
from accounts.services import Actor, audit, checked_name, create_team, hash_secret
from config.errors import Conflict, InvalidArgument, NotFound, PermissionDenied, QuotaExceeded

INVITATION_DAYS = 14
MAX_OPEN_INVITATIONS = 50
MAX_TEAMS_OWNED = 20
SECRET_PREFIX = "inv_"  # noqa: S105

# Who may hand out or take away which roles.
MAY_MANAGE: dict[str, frozenset[str]] = {
    Role.OWNER: frozenset(Role),
    Role.ADMIN: frozenset({Role.ADMIN, Role.DEVELOPER, Role.VIEWER}),
}


def manageable_roles(role: str) -> frozenset[str]:
    """The roles a member with `role` may give to others and take from them."""
    return MAY_MANAGE.get(role, frozenset())


def invite(
    *, team: Team, email: str, role: str, by: Membership, actor: Actor, now: datetime
) -> tuple[Invitation, str]:
    """An invitation and its secret, which is nowhere kept. A second one replaces the first.

    Raises: InvalidArgument, PermissionDenied, Conflict when they are in the team, QuotaExceeded.
    """
    email = email.strip().lower()
    try:
        validate_email(email)
    except ValidationError as error:
        raise InvalidArgument("That is not an e-mail address.") from error
    _check_may_manage(by, role)
    if Membership.objects.filter(team=team, user__email__iexact=email).exists():
        raise Conflict(f"{email} is in this team already.")
    clear = SECRET_PREFIX + secrets.token_urlsafe(32)
    with transaction.atomic():
        Invitation.objects.filter(team=team, expires_at__lte=now).delete()
        Invitation.objects.filter(team=team, email=email).delete()
        if Invitation.objects.filter(team=team).count() >= MAX_OPEN_INVITATIONS:
            raise QuotaExceeded(f"A team has at most {MAX_OPEN_INVITATIONS} open invitations.")
        invitation = Invitation.objects.create(
            team=team,
            email=email,
            role=role,
            secret_hash=hash_secret(clear),
            invited_by=by.user,
            created_at=now,
            expires_at=now + timedelta(days=INVITATION_DAYS),
        )
        audit(
            team=team, actor=actor, action="member.invited", target=email, data={"role": str(role)}
        )
    return invitation, clear


def find_invitation(*, secret: str, user: User, now: datetime) -> Invitation:
    """The open invitation with that secret, made out to this person. Raises: NotFound."""
    invitation = (
        Invitation.objects.select_related("team", "invited_by")
        .filter(secret_hash=hash_secret(secret), expires_at__gt=now, team__is_banned=False)
        .first()
    )
    if invitation is None or invitation.email != user.email.lower():
        raise NotFound(
            "This invitation was withdrawn, is too old, or was sent to another address than "
            f"{user.email}."
        )
    return invitation


def accept_invitation(*, invitation: Invitation, user: User, actor: Actor) -> Membership:
    """Join the team. Raises: NotFound when somebody was faster."""
    with transaction.atomic():
        if not Invitation.objects.filter(pk=invitation.pk).delete()[0]:
            raise NotFound("This invitation was used already.")
        membership, is_new = Membership.objects.get_or_create(
            team=invitation.team, user=user, defaults={"role": invitation.role}
        )
        if is_new:
            audit(
                team=invitation.team,
                actor=actor,
                action="member.joined",
                target=user.email,
                data={"role": membership.role},
            )
    return membership


def withdraw_invitation(*, invitation: Invitation, by: Membership, actor: Actor) -> None:
    _check_may_manage(by, invitation.role)
    with transaction.atomic():
        if Invitation.objects.filter(pk=invitation.pk).delete()[0]:
            audit(
                team=invitation.team,
                actor=actor,
                action="member.invitation_withdrawn",
                target=invitation.email,
            )


def change_role(*, member: Membership, role: str, by: Membership, actor: Actor) -> None:
    """Raises: PermissionDenied, Conflict when a team would lose its last owner."""
    _check_may_manage(by, role)
    _check_may_manage(by, member.role)
    with transaction.atomic():
        current = _locked(member)
        if current.role == role:
            return
        if current.role == Role.OWNER:
            _check_other_owner(current)
        Membership.objects.filter(pk=current.pk).update(role=role)
        audit(
            team=current.team,
            actor=actor,
            action="member.role_changed",
            target=current.user.email,
            data={"from": current.role, "to": str(role)},
        )
    member.role = role


def remove_member(*, member: Membership, by: Membership, actor: Actor) -> None:
    """Take a person out of the team; anybody may leave. What they made in it stays the team's.

    Raises: PermissionDenied, Conflict for the last owner or somebody's personal team.
    """
    is_leaving = member.pk == by.pk
    if not is_leaving:
        _check_may_manage(by, member.role)
    with transaction.atomic():
        current = _locked(member)
        if current.role == Role.OWNER:
            _check_other_owner(current)
        current.delete()
        audit(
            team=current.team,
            actor=actor,
            action="member.left" if is_leaving else "member.removed",
            target=current.user.email,
        )
        _keep_a_default_team(current.user)


def rename_team(*, team: Team, name: str, actor: Actor) -> None:
    """Its address stays: links and template names hold it. Raises: InvalidArgument."""
    name = checked_name(name)
    with transaction.atomic():
        Team.objects.filter(pk=team.pk).update(name=name)
        audit(
            team=team,
            actor=actor,
            action="team.renamed",
            target=str(team.public_id),
            data={"from": team.name, "to": name},
        )
    team.name = name


def found_team(*, name: str, owner: User) -> Team:
    """A further team of the person. Raises: InvalidArgument, QuotaExceeded."""
    name = checked_name(name)
    owned = Membership.objects.filter(user=owner, role=Role.OWNER).count()
    if owned >= MAX_TEAMS_OWNED:
        raise QuotaExceeded(f"One person owns at most {MAX_TEAMS_OWNED} teams.")
    return create_team(name=name, owner=owner)


def _check_may_manage(by: Membership, role: str) -> None:
    if role not in set(Role):
        raise InvalidArgument("There is no such role.")
    if role not in manageable_roles(by.role):
        raise PermissionDenied("Your role in this team does not allow that.")


def _locked(member: Membership) -> Membership:
    """The row as it is now, and the team's others held still, so that two owners cannot both go."""
    rows = list(
        Membership.objects.select_for_update(of=("self",))
        .select_related("user", "team")
        .filter(team=member.team_id)
        .order_by("pk")
    )
    current = next((row for row in rows if row.pk == member.pk), None)
    if current is None:
        raise NotFound("They are not in this team any more.")
    return current


def _check_other_owner(member: Membership) -> None:
    others = Membership.objects.filter(team=member.team_id, role=Role.OWNER).exclude(pk=member.pk)
    if not others.exists():
        raise Conflict("A team keeps at least one owner. Make somebody else an owner first.")


def _keep_a_default_team(user: User) -> None:
    if Membership.objects.filter(user=user, is_default=True).exists():
        return
    first = Membership.objects.filter(user=user).order_by("pk").first()
    if first is not None:
        Membership.objects.filter(pk=first.pk).update(is_default=True)
