"""What happens while an invoice is not paid: reminders, then no new sandboxes, then pauses,
then the plan ends.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Min

from billing.models import BillingAccount, Invoice, Subscription
from billing.models.accounts import BlockReason, StopAction
from billing.models.documents import InvoiceStatus
from billing.models.plans import SubscriptionStatus
from billing.periods import to_ms
from billing.services.accounts import (
    default_plan,
    live_subscription,
    lock_account,
    refresh_limits,
)
from billing.services.notices import tell
from billing.services.plans import begin_term
from billing.services.spend import set_block

# Days after the due date (local) or the first failed try (Stripe): what happens then.
REMIND_DAYS = (0, 3, 5)
BLOCK_AFTER = timedelta(days=7)
PAUSE_AFTER = timedelta(days=14)
CANCEL_AFTER = timedelta(days=30)


def run_dunning(*, now: datetime) -> int:
    """Remind, block, pause and finally cancel, for every account with an overdue invoice; returns
    how many.
    """
    overdue = Invoice.objects.filter(status=InvoiceStatus.OPEN)
    ids = set(overdue.filter(due_at__lte=now).values_list("account_id", flat=True))
    ids |= set(overdue.filter(attempts__is_success=False).values_list("account_id", flat=True))
    for team_id in sorted(ids):
        with transaction.atomic():
            refresh_dunning(lock_account(team_id), now)
    return len(ids)


def overdue_since(account: BillingAccount, *, now: datetime) -> datetime | None:
    """Since when something is overdue: a due date that passed, or a first failed try on Stripe's
    rail.
    """
    unpaid = account.invoices.filter(status=InvoiceStatus.OPEN)
    passed = unpaid.filter(due_at__lte=now).aggregate(at=Min("due_at"))["at"]
    failed = unpaid.filter(attempts__is_success=False).aggregate(at=Min("attempts__at"))["at"]
    known = [at for at in (passed, failed) if at is not None]
    return min(known) if known else None


def refresh_dunning(account: BillingAccount, now: datetime) -> None:
    """Bring status and block to what the oldest overdue invoice says. Safe to run at any time."""
    since = overdue_since(account, now=now)
    late = timedelta(0) if since is None else now - since
    subscription = live_subscription(account)
    if since is None:
        status = SubscriptionStatus.ACTIVE
    else:
        status = SubscriptionStatus.UNPAID if late >= BLOCK_AFTER else SubscriptionStatus.PAST_DUE
        _remind(account, since, late, now)
    if subscription.status != status:
        subscription.status = status
        subscription.save(update_fields=["status"])
    set_block(
        account,
        BlockReason.PAYMENT_FAILED,
        is_on=late >= BLOCK_AFTER,
        action=StopAction.PAUSE_RUNNING if late >= PAUSE_AFTER else StopAction.BLOCK_NEW,
        now=now,
    )
    if late >= CANCEL_AFTER:
        _cancel(account, subscription, now)


def _remind(account: BillingAccount, since: datetime, late: timedelta, now: datetime) -> None:
    steps = [(timedelta(days=days), f"is overdue (day {days})") for days in REMIND_DAYS]
    steps += [
        (BLOCK_AFTER, "is unpaid: new sandboxes are blocked"),
        (PAUSE_AFTER, "is unpaid: running sandboxes are paused"),
        (CANCEL_AFTER, "is unpaid: your plan was cancelled"),
    ]
    due = [(after, text) for after, text in steps if late >= after]
    if due:
        after, text = due[-1]
        tell(
            account=account,
            key=f"dunning:{account.pk}:{since:%Y%m%d%H%M%S}:{after.days}",
            subject=f"Sandlot: an invoice {text}",
            body=f"An invoice of your team {text}.\n{settings.BILLING_PAGE_URL}",
            now=now,
        )


def _cancel(account: BillingAccount, subscription: Subscription, now: datetime) -> None:
    """Leave the paid plan; nothing is billed ahead any more. Blocks and data stay as they are."""
    plan = default_plan()
    if subscription.plan.base_fee_minor and subscription.plan_id != plan.pk:
        subscription.plan, subscription.pending_plan = plan, None
        subscription.save()
        begin_term(account, plan, to_ms(now))
        refresh_limits(account=account)
