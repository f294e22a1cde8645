"""Scheduled work of billing; each is safe to run twice and at any time."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from django.utils import timezone

from billing.handlers import handle_webhook, sweep_webhooks
from billing.invariants import check_books
from billing.outbox import drain_outbox
from billing.reconcile import mirror_usage, reconcile_stripe
from billing.services.credits import expire_credits
from billing.services.dunning import run_dunning
from billing.services.invoices import close_due_periods
from billing.services.notices import mail_notices
from billing.services.rollup import roll_due


@shared_task
def roll_up_usage(**_: Any) -> None:
    roll_due(now=timezone.now())


@shared_task
def close_periods(**_: Any) -> None:
    now = timezone.now()
    expire_credits(now=now)
    close_due_periods(now=now)
    run_dunning(now=now)


@shared_task
def send_notices(**_: Any) -> None:
    mail_notices(now=timezone.now())


@shared_task
def apply_webhook(*, webhook_id: int, **_: Any) -> None:
    handle_webhook(webhook_id=webhook_id, now=timezone.now())


@shared_task
def talk_to_stripe(**_: Any) -> None:
    """What the outbox holds, and webhooks that no task handled."""
    now = timezone.now()
    drain_outbox(now=now)
    sweep_webhooks(now=now)


@shared_task
def reconcile_with_stripe(**_: Any) -> None:
    now = timezone.now()
    reconcile_stripe(now=now)
    mirror_usage(now=now)


@shared_task
def check_the_books(**_: Any) -> None:
    check_books(now=timezone.now())
