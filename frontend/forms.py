from __future__ import annotations

from collections.abc import Container
from datetime import datetime, timedelta
from typing import Any, cast

from django import forms

from accounts.models import Role

EXPIRY_CHOICES = [
    ("", "Never"),
    ("7", "In 7 days"),
    ("30", "In 30 days"),
    ("90", "In 90 days"),
    ("365", "In a year"),
]


class KeyForm(forms.Form):
    name = forms.CharField(
        max_length=100, help_text="Where you will use it: laptop, CI, production."
    )
    expires_in_days = forms.ChoiceField(label="Expires", choices=EXPIRY_CHOICES, required=False)

    def expires_at(self, now: datetime) -> datetime | None:
        days = self.cleaned_data["expires_in_days"]
        return now + timedelta(days=int(days)) if days else None


class InviteForm(forms.Form):
    email = forms.EmailField(
        label="E-mail address", help_text="They need no account yet; the mail leads them to one."
    )
    role = forms.ChoiceField()

    def __init__(self, *arguments: Any, roles: Container[str], **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        choices = [(role.value, role.label) for role in Role if role in roles]
        field = cast(forms.ChoiceField, self.fields["role"])
        field.choices = choices
        field.initial = Role.DEVELOPER
