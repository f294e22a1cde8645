"""Who may use this installation: users, their teams, and the credentials of both."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models
from django.db.models import Q
from django.utils import timezone

from config import ids


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        user = self.model(email=self.normalize_email(email).lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> User:
        return self.get(email__iexact=username)


class User(AbstractBaseUser, PermissionsMixin):
    """A person who logs in with an e-mail address."""

    public_id = models.UUIDField(default=ids.new_uuid, unique=True, editable=False)
    email = models.EmailField(unique=True)
    name = models.CharField(max_length=150, blank=True)
    is_staff = models.BooleanField(default=False)
    is_active = models.BooleanField(default=True)
    date_joined = models.DateTimeField(default=timezone.now)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    def __str__(self) -> str:
        return self.email

    def get_full_name(self) -> str:
        return self.name or self.email

    def get_short_name(self) -> str:
        return self.name or self.email.partition("@")[0]


class Team(models.Model):
    """The owner of sandboxes, templates, keys and bills."""

    public_id = models.UUIDField(default=ids.new_uuid, unique=True, editable=False)
    name = models.CharField(max_length=100)
    slug = models.SlugField(max_length=64, unique=True)
    is_personal = models.BooleanField(default=False)
    is_blocked = models.BooleanField(default=False)
    blocked_reason = models.CharField(max_length=200, blank=True)
    is_banned = models.BooleanField(default=False)
    created_at = models.DateTimeField(default=timezone.now)
    members = models.ManyToManyField(User, through="Membership", related_name="teams")

    def __str__(self) -> str:
        return self.slug


class Role(models.TextChoices):
    OWNER = "owner", "Owner"
    ADMIN = "admin", "Admin"
    DEVELOPER = "developer", "Developer"
    VIEWER = "viewer", "Viewer"


class Membership(models.Model):
    """One user's place in one team."""

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role, default=Role.DEVELOPER)
    is_default = models.BooleanField(default=False)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["team", "user"], name="membership_once_per_team"),
            models.UniqueConstraint(
                fields=["user"], condition=Q(is_default=True), name="membership_one_default"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user_id}@{self.team_id} ({self.role})"


class Invitation(models.Model):
    """An offer of a place in a team, to whoever holds the mailbox; it may have no account yet."""

    public_id = models.UUIDField(default=ids.new_uuid, unique=True, editable=False)
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=16, choices=Role, default=Role.DEVELOPER)
    secret_hash = models.CharField(max_length=64, unique=True, editable=False)
    invited_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["team", "email"], name="invitation_once_per_mailbox")
        ]

    def __str__(self) -> str:
        return f"{self.email} to {self.team_id} ({self.role})"


class Credential(models.Model):
    """What API keys and access tokens share: a keyed hash, a mask, and their life."""

    public_id = models.UUIDField(default=ids.new_uuid, unique=True, editable=False)
    name = models.CharField(max_length=100)
    secret_hash = models.CharField(max_length=64, unique=True, editable=False)
    mask_prefix = models.CharField(max_length=8, editable=False)  # first 2 hex digits
    mask_suffix = models.CharField(max_length=8, editable=False)  # last 4 hex digits
    created_at = models.DateTimeField(default=timezone.now)
    last_used_at = models.DateTimeField(null=True, blank=True)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    PREFIX: ClassVar[str] = ""

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.mask

    @property
    def mask(self) -> str:
        return f"{self.PREFIX}{self.mask_prefix}…{self.mask_suffix}"

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= timezone.now()

    def is_usable(self, now: datetime) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class CredentialQuerySet(models.QuerySet[Any]):
    def active(self) -> CredentialQuerySet:
        """Not revoked; an expired one is still listed, so that people see why it fails."""
        return self.filter(revoked_at=None)


class APIKey(Credential):
    """A team's key: `e2b_` and 40 hex digits, shown once."""

    PREFIX = "e2b_"

    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="api_keys")
    created_by = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )

    objects: ClassVar[Any] = CredentialQuerySet.as_manager()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["team", "created_at"])]


class AccessToken(Credential):
    """A user's personal token: `sk_e2b_` and 40 hex digits, shown once."""

    PREFIX = "sk_e2b_"

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="access_tokens")

    objects: ClassVar[Any] = CredentialQuerySet.as_manager()


class AuditEvent(models.Model):
    """One thing somebody did to a team; written, never changed."""

    team = models.ForeignKey(
        Team, on_delete=models.CASCADE, null=True, blank=True, related_name="audit_events"
    )
    at = models.DateTimeField(default=timezone.now)
    actor_user = models.ForeignKey(
        User, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    actor_key = models.ForeignKey(
        APIKey, on_delete=models.SET_NULL, null=True, blank=True, related_name="+"
    )
    actor_label = models.CharField(max_length=200)  # readable after the actor is gone
    action = models.CharField(max_length=64)  # "api_key.created"
    target = models.CharField(max_length=200, blank=True)
    ip_address = models.GenericIPAddressField(null=True, blank=True)
    data = models.JSONField(default=dict, blank=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["team", "-at"])]

    def __str__(self) -> str:
        return f"{self.action} {self.target} by {self.actor_label}"
