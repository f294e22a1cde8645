"""The only module that imports Stripe. It speaks plain values; the rest of billing never sees
Stripe's objects.

Facts behind the code (stripe 16, API 2026-10-28.endive): `StripeClient` retries nothing unless
told to; its own random idempotency key protects only the retries inside one call, so every POST
here carries ours; keys are forgotten after a day, so what may be retried later is looked up
before it is created.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import stripe
from django.conf import settings
from django.db import transaction

API_VERSION = stripe.api_version
TOLERANCE_SECONDS = 300
LINES_PER_CALL = 100


class StripeDown(Exception):
    """Stripe did not answer, or asked us to slow down: try again later."""


class StripeRefused(Exception):
    """Stripe understood and said no; trying the same again is useless."""


class BadSignature(Exception):
    """A webhook that is not Stripe's, or too old."""


@dataclass(frozen=True, kw_only=True)
class RemoteLine:
    description: str
    amount_minor: int
    start: datetime
    end: datetime


@dataclass(frozen=True, kw_only=True)
class RemoteInvoice:
    """What Stripe says of an invoice right now."""

    id: str
    customer_id: str
    local_id: str  # our id, from metadata; "" when it is not ours
    status: str  # draft, open, paid, void, uncollectible
    total_minor: int
    paid_minor: int
    attempts: int
    is_attempted: bool
    line_count: int
    hosted_url: str
    error: str


@dataclass(frozen=True, kw_only=True)
class RemotePaymentMethod:
    id: str
    label: str


@dataclass(frozen=True, kw_only=True)
class RemoteRefund:
    id: str
    amount_minor: int
    status: str


@dataclass(frozen=True, kw_only=True)
class WebhookEvent:
    id: str
    type: str
    api_version: str
    object_id: str
    payload: dict[str, Any]


def is_enabled() -> bool:
    return bool(settings.STRIPE_SECRET_KEY)


def client() -> StripeDoor:
    return _door(settings.STRIPE_SECRET_KEY, settings.STRIPE_API_BASE)


@lru_cache(maxsize=4)
def _door(key: str, base: str) -> StripeDoor:
    return StripeDoor(key, base)


class StripeDoor:
    """Calls to Stripe. None may run inside a database transaction: it would hold locks while
    the network waits.

    Every method raises StripeDown or StripeRefused.
    """

    def __init__(self, key: str, base: str = "") -> None:
        addresses: Any = {"api": base, "files": base, "meter_events": base} if base else {}
        self._stripe = stripe.StripeClient(
            key,
            stripe_version=API_VERSION,
            base_addresses=addresses,
            max_network_retries=2,
            http_client=stripe.RequestsClient(timeout=20),
        )

    # --- Customers ----------------------------------------------------------------------------

    def find_customer(self, *, team_id: str) -> str | None:
        query = f"metadata['team_id']:'{team_id}'"
        with _errors():
            found = self._stripe.v1.customers.search({"query": query, "limit": 1})
        return found.data[0].id if found.data else None

    def create_customer(self, *, team_id: str, name: str, email: str, key: str) -> str:
        params: Any = {"name": name, "metadata": {"team_id": team_id}}
        if email:
            params["email"] = email
        with _errors():
            return self._stripe.v1.customers.create(params, {"idempotency_key": key}).id

    def customer_exists(self, customer_id: str) -> bool:
        try:
            with _errors():
                customer = self._stripe.v1.customers.retrieve(customer_id)
        except StripeRefused:
            return False
        return not getattr(customer, "deleted", False)

    def payment_method(self, customer_id: str) -> RemotePaymentMethod | None:
        """The method that invoices are charged to; the newest becomes it when none is."""
        with _errors():
            customer = self._stripe.v1.customers.retrieve(customer_id)
            if getattr(customer, "deleted", False):
                return None
            methods = self._stripe.v1.payment_methods.list({"customer": customer_id, "limit": 10})
            chosen = getattr(customer.invoice_settings, "default_payment_method", None)
            method = next((m for m in methods.data if m.id == chosen), None)
            if method is None and methods.data:
                method = methods.data[0]
                self._stripe.v1.customers.update(
                    customer_id, {"invoice_settings": {"default_payment_method": method.id}}
                )
        return None if method is None else _payment_method(method)

    # --- Pages at Stripe ----------------------------------------------------------------------

    def setup_page(self, *, customer_id: str, success_url: str, cancel_url: str, key: str) -> str:
        """A Checkout page that stores a card."""
        params: Any = {
            "mode": "setup",
            "customer": customer_id,
            "currency": "usd",
            "success_url": success_url,
            "cancel_url": cancel_url,
        }
        with _errors():
            session = self._stripe.v1.checkout.sessions.create(params, {"idempotency_key": key})
        return session.url or ""

    def portal_page(self, *, customer_id: str, return_url: str) -> str:
        with _errors():
            session = self._stripe.v1.billing_portal.sessions.create(
                {"customer": customer_id, "return_url": return_url}
            )
        return session.url

    # --- Invoices -----------------------------------------------------------------------------

    def find_invoice(self, *, customer_id: str, local_id: str) -> RemoteInvoice | None:
        for invoice in self.invoices_of(customer_id):
            if invoice.local_id == local_id:
                return invoice
        return None

    def invoices_of(self, customer_id: str) -> Iterator[RemoteInvoice]:
        with _errors():
            page = self._stripe.v1.invoices.list({"customer": customer_id, "limit": 100})
            rows = list(page.auto_paging_iter())
        for row in rows:
            yield _invoice(row)

    def create_invoice(
        self,
        *,
        customer_id: str,
        currency: str,
        local_id: str,
        number: str,
        days_until_due: int,
        is_charged: bool,
        key: str,
    ) -> RemoteInvoice:
        """An empty draft. It does not advance by itself: half built, it would be finalized
        after an hour.
        """
        params: Any = {
            "customer": customer_id,
            "currency": currency.lower(),
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "collection_method": "charge_automatically" if is_charged else "send_invoice",
            "metadata": {"local_invoice_id": local_id, "number": number},
            "description": f"Invoice {number}",
        }
        if not is_charged:
            params["days_until_due"] = days_until_due
        with _errors():
            row = self._stripe.v1.invoices.create(params, {"idempotency_key": key})
        return _invoice(row)

    def add_lines(self, invoice_id: str, lines: list[RemoteLine], *, key: str) -> RemoteInvoice:
        row: Any = None
        for first in range(0, len(lines), LINES_PER_CALL):
            some: Any = [
                {
                    "description": line.description,
                    "amount": line.amount_minor,
                    "period": {
                        "start": int(line.start.timestamp()),
                        "end": int(line.end.timestamp()),
                    },
                }
                for line in lines[first : first + LINES_PER_CALL]
            ]
            with _errors():
                row = self._stripe.v1.invoices.add_lines(
                    invoice_id, {"lines": some}, {"idempotency_key": f"{key}:{first}"}
                )
        return _invoice(row)

    def finalize_invoice(self, invoice_id: str, *, key: str) -> RemoteInvoice:
        with _errors():
            row = self._stripe.v1.invoices.finalize_invoice(
                invoice_id, {"auto_advance": True}, {"idempotency_key": key}
            )
        return _invoice(row)

    def invoice(self, invoice_id: str) -> RemoteInvoice:
        with _errors():
            return _invoice(self._stripe.v1.invoices.retrieve(invoice_id))

    def pay_out_of_band(self, invoice_id: str, *, key: str) -> None:
        with _errors():
            self._stripe.v1.invoices.pay(
                invoice_id, {"paid_out_of_band": True}, {"idempotency_key": key}
            )

    def pay_now(self, invoice_id: str, *, key: str) -> RemoteInvoice:
        with _errors():
            row = self._stripe.v1.invoices.pay(invoice_id, {}, {"idempotency_key": key})
        return _invoice(row)

    def void_invoice(self, invoice_id: str, *, key: str) -> None:
        with _errors():
            self._stripe.v1.invoices.void_invoice(invoice_id, {}, {"idempotency_key": key})

    def credit_note(
        self, *, invoice_id: str, amount_minor: int, is_paid: bool, memo: str, key: str
    ) -> str:
        """Of an open invoice it lowers what is due; of a paid one our own credit made up for it."""
        params: Any = {"invoice": invoice_id, "memo": memo, "metadata": {"key": key}}
        params["amount"] = amount_minor
        if is_paid:
            params["out_of_band_amount"] = amount_minor
        with _errors():
            return self._stripe.v1.credit_notes.create(params, {"idempotency_key": key}).id

    # --- Money back ---------------------------------------------------------------------------

    def refund_invoice(self, invoice_id: str, *, amount_minor: int, key: str) -> str:
        intent = self._intent_of(invoice_id)
        if intent is None:
            raise StripeRefused("the invoice was not paid by card")
        params: Any = {"payment_intent": intent, "amount": amount_minor, "metadata": {"key": key}}
        with _errors():
            return self._stripe.v1.refunds.create(params, {"idempotency_key": key}).id

    def _intent_of(self, invoice_id: str) -> str | None:
        with _errors():
            payments = self._stripe.v1.invoice_payments.list({"invoice": invoice_id})
        for row in payments.data:
            intent = getattr(row.payment, "payment_intent", None)
            if intent:
                return str(intent)
        return None

    def refunds_of_charge(self, charge_id: str) -> tuple[str | None, list[RemoteRefund]]:
        """The invoice a charge paid, and the refunds of the charge."""
        with _errors():
            charge = self._stripe.v1.charges.retrieve(charge_id)
            refunds = self._stripe.v1.refunds.list({"charge": charge_id, "limit": 100})
            intent = getattr(charge, "payment_intent", None)
            invoice_id = None
            if intent:
                payment: Any = {"type": "payment_intent", "payment_intent": str(intent)}
                found = self._stripe.v1.invoice_payments.list({"payment": payment})
                invoice_id = str(found.data[0].invoice) if found.data else None
        rows = [
            RemoteRefund(id=row.id, amount_minor=row.amount, status=row.status or "")
            for row in refunds.data
        ]
        return invoice_id, rows

    # --- Events and meters --------------------------------------------------------------------

    def undelivered_events(self, *, since: datetime) -> list[WebhookEvent]:
        params: Any = {
            "delivery_success": False,
            "created": {"gte": int(since.timestamp())},
            "limit": 100,
        }
        with _errors():
            rows = list(self._stripe.v1.events.list(params).auto_paging_iter())
        return [_event(row.to_dict()) for row in rows]

    def meter_event(
        self, *, name: str, customer_id: str, value: int, at: datetime, identifier: str
    ) -> None:
        params: Any = {
            "event_name": name,
            "identifier": identifier,
            "timestamp": int(at.timestamp()),
            "payload": {"stripe_customer_id": customer_id, "value": str(value)},
        }
        with _errors():
            self._stripe.v1.billing.meter_events.create(params, {"idempotency_key": identifier})


def read_webhook(payload: bytes, header: str, secrets: list[str]) -> WebhookEvent:
    """Verify a webhook with any of the secrets in force and read it. Raises: BadSignature."""
    if not secrets:
        raise BadSignature("no webhook secret is configured")
    for secret in secrets:
        try:
            stripe.WebhookSignature.verify_header(payload, header, secret, TOLERANCE_SECONDS)
        except (stripe.SignatureVerificationError, UnicodeDecodeError):
            continue
        _refuse_future(header)
        event = stripe.Webhook.construct_event(payload, header, secret)
        return _event(event.to_dict())
    raise BadSignature("the signature does not match, or it is too old")


def _refuse_future(header: str) -> None:
    """The library accepts a timestamp ahead of us; a stolen secret could then sign for years."""
    stamps = [part[2:] for part in header.split(",") if part.startswith("t=")]
    if int(stamps[0]) > time.time() + TOLERANCE_SECONDS:
        raise BadSignature("the timestamp is in the future")


def sign_webhook(payload: str, secret: str, *, timestamp: int | None = None) -> str:
    """The header that a webhook with this body needs; for the self-test of an installation."""
    header = stripe.WebhookSignature.generate_signature_header(payload, secret, timestamp)
    return str(header)


def is_live_key() -> bool:
    return "_live_" in settings.STRIPE_SECRET_KEY


def _event(raw: dict[str, Any]) -> WebhookEvent:
    thing = (raw.get("data") or {}).get("object") or {}
    return WebhookEvent(
        id=str(raw["id"]),
        type=str(raw["type"]),
        api_version=str(raw.get("api_version") or ""),
        object_id=str(thing.get("id") or ""),
        payload=raw,
    )


def _invoice(row: Any) -> RemoteInvoice:
    metadata = row.metadata.to_dict() if getattr(row, "metadata", None) else {}
    lines = getattr(row, "lines", None)
    error = getattr(row, "last_finalization_error", None)
    return RemoteInvoice(
        id=row.id,
        customer_id=str(row.customer),
        local_id=metadata.get("local_invoice_id", ""),
        status=row.status or "",
        total_minor=row.total,
        paid_minor=row.amount_paid,
        attempts=row.attempt_count,
        is_attempted=bool(row.attempted),
        line_count=getattr(lines, "total_count", None) or len(getattr(lines, "data", [])),
        hosted_url=getattr(row, "hosted_invoice_url", None) or "",
        error=str(getattr(error, "message", "") or ""),
    )


def _payment_method(row: Any) -> RemotePaymentMethod:
    card = getattr(row, "card", None)
    label = f"{card.brand} ···· {card.last4}" if card is not None else str(row.type)
    return RemotePaymentMethod(id=row.id, label=label[:60])


class _errors:
    """Refuse to run in a transaction, and turn Stripe's errors into ours."""

    def __enter__(self) -> None:
        blocks = transaction.get_connection().atomic_blocks
        if any(not getattr(block, "_from_testcase", False) for block in blocks):
            raise RuntimeError("Stripe must not be called inside a database transaction")

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        match error:
            case stripe.APIConnectionError() | stripe.RateLimitError():
                raise StripeDown(str(error)) from error
            case stripe.IdempotencyError():
                raise StripeRefused(f"idempotency: {error}") from error
            case stripe.StripeError():
                status = error.http_status or 500
                if status >= 500 or status == 409:
                    raise StripeDown(str(error)) from error
                raise StripeRefused(str(error)) from error
