"""Names, addresses and tax data that coming invoices carry."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from django.core.exceptions import ValidationError
from django.core.validators import validate_email
from django.db import transaction

from billing.models import BillingAccount
from billing.services.accounts import account_of, lock_account
from config.errors import InvalidArgument


def set_details(
    *,
    team_id: int,
    company: str,
    address: str,
    tax_id: str,
    billing_emails: Sequence[str],
    now: datetime,
) -> BillingAccount:
    """Issued invoices keep what they say. Raises: InvalidArgument."""
    limits = (("company", company, 200), ("address", address, 1_000), ("tax id", tax_id, 60))
    for name, value, limit in limits:
        if len(value) > limit or "\x00" in value:
            raise InvalidArgument(f"the {name} must have at most {limit} characters")
    emails = [email.strip() for email in billing_emails if email.strip()]
    if len(emails) > 10:
        raise InvalidArgument("at most 10 billing e-mail addresses")
    for email in emails:
        try:
            validate_email(email)
        except ValidationError:
            raise InvalidArgument(f"{email[:100]!r} is not an e-mail address") from None
    account_of(team_id=team_id, now=now)
    with transaction.atomic():
        account = lock_account(team_id)
        account.company, account.address = company.strip(), address.strip()
        account.tax_id, account.billing_emails = tax_id.strip(), emails
        account.save(update_fields=["company", "address", "tax_id", "billing_emails"])
        return account
