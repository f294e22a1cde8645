"""`manage.py ensure_account`: a user, the personal team and a key that is known in the clear."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.validators import validate_email
from django.db import IntegrityError
from django.utils import timezone

from accounts.models import APIKey, Team, User
from accounts.services import SYSTEM, create_api_key, create_personal_team, hash_secret

KEY_NAME = "make env"


class Command(BaseCommand):
    help = (
        "Create a user, the personal team and an API key where missing; print the key's settings."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--email", required=True)
        parser.add_argument("--password", help="also set this password")
        parser.add_argument("--operator", action="store_true", help="may use the operator's pages")
        parser.add_argument("--print-env", action="store_true", help="print export lines only")

    def handle(self, *args: Any, **options: Any) -> None:
        email = options["email"].strip().lower()
        try:
            validate_email(email)
        except ValidationError as error:
            raise CommandError(f"{email!r} is not an e-mail address") from error
        user = self._user(email)
        if options["password"]:
            user.set_password(options["password"])
            user.save(update_fields=["password"])
        if options["operator"] and not user.is_staff:
            user.is_staff = user.is_superuser = True
            user.save(update_fields=["is_staff", "is_superuser"])
        team = create_personal_team(user=user)
        clear = self._key(user, team)
        if options["print_env"]:
            for name, value in (
                ("E2B_API_URL", settings.PUBLIC_URL),
                ("E2B_SANDBOX_URL", settings.SANDBOX_URL),
                ("E2B_API_KEY", clear),
                ("E2B_DOMAIN", settings.DOMAIN),
            ):
                self.stdout.write(f"export {name}={value}")
        else:
            self.stdout.write(f"{email}: team {team.slug}, key {clear}")

    def _user(self, email: str) -> User:
        user = User.objects.filter(email__iexact=email).first()
        if user is None:
            try:
                user = User.objects.create_user(email)
            except IntegrityError:  # the same command at the same moment
                user = User.objects.get(email=email)
        return user

    def _key(self, user: User, team: Team) -> str:
        """The key kept beside the database, or a new one. The database itself knows only hashes."""
        path = (
            Path(settings.STATE_DIR) / "env" / f"{re.sub(r'[^a-z0-9@._+-]', '_', user.email)}.key"
        )
        try:
            clear = path.read_text().strip()
        except FileNotFoundError:
            clear = ""
        if clear:
            key = APIKey.objects.filter(team=team, secret_hash=hash_secret(clear)).first()
            if key is not None and key.is_usable(timezone.now()):
                return clear
        _, clear = create_api_key(team=team, name=KEY_NAME, created_by=user, actor=SYSTEM)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(clear + "\n")
        fresh.replace(path)
        return clear
