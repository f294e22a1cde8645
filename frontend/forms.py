from __future__ import annotations

from datetime import datetime, timedelta

from django import forms

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
