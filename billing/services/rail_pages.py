"""Sending a customer to Stripe's pages, and paying an invoice from ours."""

from __future__ import annotations

import secrets
from datetime import datetime

from django.conf import settings

from billing import outbox, stripe_client
from billing.models import BillingAccount, Invoice
from billing.models.accounts import Rail
from billing.models.documents import InvoiceStatus
from billing.stripe_client import StripeDown, StripeRefused
from config.errors import Conflict, Unavailable


def payment_method_page(*, account: BillingAccount, return_url: str) -> str:
    """Where the customer stores a card. The way back is only a hint; a webhook tells what happened.

    Raises: Conflict without Stripe, Unavailable.
    """
    _needs_stripe(account)
    try:
        return stripe_client.client().setup_page(
            customer_id=outbox.ensure_customer(account),
            success_url=f"{return_url}?card=saved",
            cancel_url=return_url,
            key=f"setup:{secrets.token_hex(16)}",
        )
    except (StripeDown, StripeRefused) as error:
        raise Unavailable("Stripe is not answering right now, please try again") from error


def portal_page(*, account: BillingAccount, return_url: str) -> str:
    """Stripe's page for cards and receipts. Raises: Conflict without Stripe, Unavailable."""
    _needs_stripe(account)
    try:
        return stripe_client.client().portal_page(
            customer_id=outbox.ensure_customer(account), return_url=return_url
        )
    except (StripeDown, StripeRefused) as error:
        raise Unavailable("Stripe is not answering right now, please try again") from error


def pay_invoice(*, invoice: Invoice, now: datetime) -> str:
    """Charge the stored card now, or say where to pay. A double click charges once.

    Returns the address of Stripe's page for the invoice, "" when the card is being charged.
    Raises: Conflict unless the invoice is open and on Stripe's rail.
    """
    if invoice.status != InvoiceStatus.OPEN:
        raise Conflict(f"invoice {invoice.number} is {invoice.status}")
    _needs_stripe(invoice.account)
    if not invoice.account.has_payment_method:
        if not invoice.hosted_url:
            raise Conflict("the invoice is being prepared, please try again in a minute")
        return invoice.hosted_url
    attempt = invoice.attempts.count()
    outbox.order(
        key=f"invoice:{invoice.pk}:pay:{attempt}",
        kind="pay_now",
        payload={"invoice_id": invoice.pk},
        now=now,
    )
    return ""


def refresh_card(*, account: BillingAccount, now: datetime) -> None:
    """Ask Stripe for the card; without an answer, what we know stays."""
    if not stripe_client.is_enabled() or not account.stripe_customer_id:
        return
    try:
        outbox.refresh_payment_method(account, now=now)
    except (StripeDown, StripeRefused):
        return


def _needs_stripe(account: BillingAccount) -> None:
    if account.rail != Rail.STRIPE or not settings.STRIPE_SECRET_KEY:
        raise Conflict("this installation bills by invoice; there is no card to manage")
