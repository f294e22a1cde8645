"""Scheduled work of billing; each is safe to run twice and at any time."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from django.utils import timezone

from billing.invariants import check_books
from billing.services.credits import expire_credits
from billing.services.invoices import close_due_periods
from billing.services.notices import mail_notices
from billing.services.payments import run_dunning
from billing.services.rollup import roll_due
from billing.services.spend import sweep_spend


@shared_task
def sweep_spend_limits(**_: Any) -> None:
    sweep_spend(now=timezone.now())


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
def check_the_books(**_: Any) -> None:
    check_books(now=timezone.now())
