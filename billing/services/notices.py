"""Messages to an account's people: written once, mailed once."""

from __future__ import annotations

import logging
from datetime import datetime

from django.core.mail import send_mail

from accounts.models import Membership, Role
from billing.models import BillingAccount, Notice

log = logging.getLogger(__name__)


def tell(*, account: BillingAccount, key: str, subject: str, body: str, now: datetime) -> Notice:
    """Write a notice once per key; `mail_notices` sends it."""
    notice, _is_new = Notice.objects.get_or_create(
        key=key,
        defaults={"account": account, "subject": subject[:200], "body": body, "created_at": now},
    )
    return notice


def mail_notices(*, now: datetime) -> int:
    """Mail what waits. A notice is claimed before it is sent: a crash in between loses one mail,
    and never sends two.
    """
    sent = 0
    for notice in Notice.objects.filter(mailed_at__isnull=True).select_related("account__team"):
        if not Notice.objects.filter(pk=notice.pk, mailed_at__isnull=True).update(mailed_at=now):
            continue  # another worker has it
        to = recipients(notice.account)
        if to:
            try:
                send_mail(notice.subject, notice.body, None, to)
            except OSError as error:
                Notice.objects.filter(pk=notice.pk).update(mailed_at=None)
                log.warning("cannot send mail: %s", error, extra={"team_id": notice.account_id})
                return sent
        sent += 1
    return sent


def recipients(account: BillingAccount) -> list[str]:
    """Billing addresses if the team named any, else its owners."""
    if account.billing_emails:
        return list(account.billing_emails)
    owners = Membership.objects.filter(team_id=account.pk, role=Role.OWNER, user__is_active=True)
    return list(owners.order_by("pk").values_list("user__email", flat=True))
