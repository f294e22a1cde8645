"""Stripe's objects and rules, as far as an invoice rail needs them."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import stripe

from .strict import BadParam, check

DAY = 86_400
KEY_LIFE = DAY
RETRY_DAYS = (3, 5, 7)
CARDS = {
    "pm_ok": ("visa", "4242", None),
    "pm_decline": ("visa", "0002", "Your card was declined."),
    "pm_3ds": ("visa", "3155", "Your card requires authentication."),
    "pm_decline_after_attach": ("visa", "0341", "Your card has insufficient funds."),
}


class Refusal(Exception):
    """An error answer in Stripe's shape."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        error = {"type": kind, "message": message, "code": code, "param": param}
        self.body = {"error": {name: value for name, value in error.items() if value}}


class ConnectionReset(Exception):
    """Hang up without an answer."""


@dataclass(kw_only=True)
class Fault:
    """What to do to the next matching request. `after`: the call has its effect first."""

    operation: str
    kind: str  # "500", "reset", "429", "409"
    after: bool = False
    times: int = 1


@dataclass(kw_only=True)
class Remembered:
    fingerprint: str
    status: int
    body: Any
    at: float
    is_running: bool = False


@dataclass
class FakeStripe:
    """All state of one fake account. Calls are serialized by one lock."""

    secret: str = "whsec_fake"
    base_url: str = "http://127.0.0.1:12111"
    livemode: bool = False
    offset: float = 0.0
    objects: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    undelivered: list[str] = field(default_factory=list)
    meter_events: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self._ids = itertools.count(1)
        self._keys: dict[str, Remembered] = {}

    # --- Time, ids, events --------------------------------------------------------------------

    def now(self) -> int:
        return int(time.time() + self.offset)

    def advance(self, seconds: float) -> None:
        """Move the clock and do what falls due: payment attempts and their retries."""
        with self.lock:
            self.offset += seconds
            for invoice in list(self.table("invoice").values()):
                while (due := invoice["next_payment_attempt"]) and due <= self.now():
                    self._attempt(invoice)

    def table(self, kind: str) -> dict[str, dict[str, Any]]:
        return self.objects.setdefault(kind, {})

    def _new(self, kind: str, prefix: str, resource: Any, **values: Any) -> dict[str, Any]:
        blank = {name: None for name in resource.__annotations__ if name.islower()}
        blank.pop("deleted", None)
        thing = {
            **blank,
            "id": f"{prefix}_{next(self._ids):06d}",
            "object": kind,
            "created": self.now(),
            "livemode": self.livemode,
            "metadata": {},
            **values,
        }
        self.table(kind)[thing["id"]] = thing
        return thing

    def _get(self, kind: str, thing_id: str) -> dict[str, Any]:
        try:
            return self.table(kind)[thing_id]
        except KeyError:
            raise Refusal(
                404, f"No such {kind}: '{thing_id}'", code="resource_missing", param="id"
            ) from None

    def emit(self, kind: str, thing: dict[str, Any]) -> dict[str, Any]:
        event = {
            "id": f"evt_{next(self._ids):06d}",
            "object": "event",
            "api_version": stripe.api_version,
            "created": self.now(),
            "livemode": self.livemode,
            "type": kind,
            "data": {"object": copy.deepcopy(thing)},
            "pending_webhooks": 1,
            "request": {"id": None, "idempotency_key": None},
        }
        self.events.append(event)
        self.undelivered.append(event["id"])
        return event

    def signed(
        self, event: dict[str, Any], *, secret: str | None = None, age: int = 0
    ) -> tuple[str, str]:
        """Body and signature header of an event. Stripe signs with real time, whatever our
        clock says.
        """
        body = json.dumps(event)
        header = stripe.WebhookSignature.generate_signature_header(
            body, secret or self.secret, int(time.time()) - age
        )
        return body, str(header)

    def take_undelivered(self) -> list[dict[str, Any]]:
        with self.lock:
            ids, self.undelivered = self.undelivered, []
            return [event for event in self.events if event["id"] in ids]

    # --- The wire -----------------------------------------------------------------------------

    def call(
        self, operation: str, args: tuple[str, ...], given: dict[str, Any], *, key: str | None
    ) -> tuple[int, Any]:
        """One API request: faults, idempotency, strict parameters, effect."""
        with self.lock:
            self.requests.append({"operation": operation, "args": args, "key": key})
            fault = self._fault(operation)
            if fault is not None and not fault.after:
                self._fail(fault)
            status, body = self._once(operation, args, given, key)
            if fault is not None:
                self._fail(fault)
            return status, body

    def _fault(self, operation: str) -> Fault | None:
        for fault in self.faults:
            if fault.operation in (operation, "*") and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def _fail(self, fault: Fault) -> None:
        if fault.kind == "reset":
            raise ConnectionReset
        if fault.kind == "429":
            raise Refusal(429, "Too many requests", code="rate_limit")
        if fault.kind == "409":
            raise Refusal(409, "There is a conflicting request", code="lock_timeout")
        raise Refusal(500, "An unknown error occurred", kind="api_error")

    def _once(
        self, operation: str, args: tuple[str, ...], given: dict[str, Any], key: str | None
    ) -> tuple[int, Any]:
        text = json.dumps([operation, args, given], sort_keys=True)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()
        known = self._keys.get(key) if key else None
        if known is not None and self.now() - known.at < KEY_LIFE:
            if known.fingerprint != fingerprint:
                raise Refusal(
                    400,
                    "Keys for idempotent requests can only be used with the same parameters",
                    kind="idempotency_error",
                )
            return known.status, known.body
        try:
            check(operation, {k: v for k, v in given.items() if k != "expand"})
        except BadParam as error:
            # Not kept under the key: the request never began.
            raise Refusal(400, str(error), code=error.code, param=error.param) from None
        action: Callable[..., dict[str, Any]] = getattr(self, operation.replace(".", "_"))
        body = copy.deepcopy(action(*args, **given))
        if key:
            self._keys[key] = Remembered(
                fingerprint=fingerprint, status=200, body=body, at=self.now()
            )
        return 200, body

    def _page(self, rows: list[dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
        rows = sorted(rows, key=lambda row: row["id"], reverse=True)  # newest first
        if after := given.get("starting_after"):
            rows = [row for row in rows if row["id"] < after]
        limit = int(given.get("limit", 10))
        if not 1 <= limit <= 100:
            raise Refusal(400, "Invalid limit", param="limit")
        return {
            "object": "list",
            "url": "/v1/list",
            "has_more": len(rows) > limit,
            "data": rows[:limit],
        }

    # --- Customers and cards ------------------------------------------------------------------

    def customers_create(self, **given: Any) -> dict[str, Any]:
        customer = self._new(
            "customer",
            "cus",
            stripe.Customer,
            **_keep(given, "name", "email", "metadata"),
            invoice_settings={"default_payment_method": None},
        )
        self.emit("customer.created", customer)
        return customer

    def customers_retrieve(self, customer_id: str) -> dict[str, Any]:
        return self._get("customer", customer_id)

    def customers_update(self, customer_id: str, **given: Any) -> dict[str, Any]:
        customer = self._live_customer(customer_id)
        customer["invoice_settings"].update(given.pop("invoice_settings", {}))
        customer.update(_keep(given, "name", "email", "metadata"))
        self.emit("customer.updated", customer)
        return customer

    def customers_delete(self, customer_id: str) -> dict[str, Any]:
        gone = {"id": customer_id, "object": "customer", "deleted": True}
        customer = self._live_customer(customer_id)
        self.emit("customer.deleted", customer)
        self.table("customer")[customer_id] = gone
        return gone

    def customers_search(self, **given: Any) -> dict[str, Any]:
        name, _, value = given["query"].partition(":")
        name, value = name.removeprefix("metadata['").removesuffix("']"), value.strip("'")
        rows = [
            row
            for row in self.table("customer").values()
            if not row.get("deleted") and row["metadata"].get(name) == value
        ]
        return {**self._page(rows, {}), "object": "search_result", "next_page": None}

    def _live_customer(self, customer_id: str) -> dict[str, Any]:
        customer = self._get("customer", customer_id)
        if customer.get("deleted"):
            raise Refusal(404, f"No such customer: '{customer_id}'", code="resource_missing")
        return customer

    def attach_card(self, customer_id: str, card: str) -> dict[str, Any]:
        """What a customer does on a Checkout page. Raises: Refusal for a card that cannot be
        stored.
        """
        brand, last4, problem = CARDS[card]
        if card == "pm_decline":
            raise Refusal(402, problem or "", kind="card_error", code="card_declined")
        with self.lock:
            self._live_customer(customer_id)
            method = self._new(
                "payment_method",
                "pm",
                stripe.PaymentMethod,
                type="card",
                customer=customer_id,
                card={"brand": brand, "last4": last4},
            )
            method["metadata"]["behaves"] = card
            self.emit("payment_method.attached", method)
            return method

    def payment_methods_list(self, **given: Any) -> dict[str, Any]:
        rows = self.table("payment_method").values()
        return self._page([m for m in rows if m["customer"] == given.get("customer")], given)

    def payment_methods_detach(self, method_id: str, **_: Any) -> dict[str, Any]:
        method = self._get("payment_method", method_id)
        customer = self.table("customer").get(method["customer"] or "")
        if customer and customer["invoice_settings"]["default_payment_method"] == method_id:
            customer["invoice_settings"]["default_payment_method"] = None
        self.emit("payment_method.detached", method)
        method["customer"] = None
        return method

    def checkout_sessions_create(self, **given: Any) -> dict[str, Any]:
        if given.get("mode") != "setup":
            raise Refusal(400, "this fake does setup sessions only", param="mode")
        if "currency" not in given and "payment_method_types" not in given:
            raise Refusal(400, "You must provide currency or payment_method_types in setup mode")
        self._live_customer(given["customer"])
        session = self._new(
            "checkout.session",
            "cs",
            stripe.checkout.Session,
            **_keep(given, "mode", "customer", "success_url", "cancel_url", "metadata"),
            status="open",
        )
        session["url"] = f"{self.base_url}/pay/checkout/{session['id']}"
        return session

    def complete_session(self, session_id: str, card: str) -> dict[str, Any]:
        """The customer entered a card and pressed the button."""
        with self.lock:
            session = self._get("checkout.session", session_id)
            if session["status"] != "open":
                raise Refusal(400, "This session is not open any more")
            self.attach_card(session["customer"], card)
            session["status"] = "complete"
            self.emit("checkout.session.completed", session)
            return session

    def billing_portal_sessions_create(self, **given: Any) -> dict[str, Any]:
        self._live_customer(given["customer"])
        session = self._new(
            "billing_portal.session",
            "bps",
            stripe.billing_portal.Session,
            **_keep(given, "customer", "return_url"),
        )
        session["url"] = f"{self.base_url}/pay/portal/{session['id']}"
        return session

    # --- Invoices -----------------------------------------------------------------------------

    def invoices_create(self, **given: Any) -> dict[str, Any]:
        self._live_customer(given["customer"])
        how = given.get("collection_method", "charge_automatically")
        if how == "send_invoice" and not (given.get("days_until_due") or given.get("due_date")):
            raise Refusal(400, "If sending invoices, specify a due date", param="days_until_due")
        if how != "send_invoice" and given.get("days_until_due"):
            raise Refusal(400, "days_until_due needs send_invoice", param="days_until_due")
        invoice = self._new(
            "invoice",
            "in",
            stripe.Invoice,
            **_keep(given, "customer", "currency", "description", "metadata"),
            collection_method=how,
            auto_advance=given.get("auto_advance") == "true",
            status="draft",
            lines={"object": "list", "data": [], "has_more": False, "total_count": 0},
            amount_paid=0,
            attempt_count=0,
            attempted=False,
            next_payment_attempt=None,
            last_error=None,
        )
        self._total(invoice)
        self.emit("invoice.created", invoice)
        return invoice

    def invoices_add_lines(self, invoice_id: str, **given: Any) -> dict[str, Any]:
        invoice = self._get("invoice", invoice_id)
        if invoice["status"] != "draft":
            raise Refusal(400, "Only draft invoices take lines")
        for line in given["lines"]:
            row = {
                "id": f"il_{next(self._ids):06d}",
                "object": "line_item",
                "amount": int(line["amount"]),
                "description": line.get("description"),
                "period": {name: int(at) for name, at in line["period"].items()},
            }
            if row["period"]["end"] < row["period"]["start"]:
                raise Refusal(400, "A period must end after it starts", param="lines[period]")
            invoice["lines"]["data"].append(row)
        invoice["lines"]["total_count"] = len(invoice["lines"]["data"])
        self._total(invoice)
        return invoice

    def _total(self, invoice: dict[str, Any]) -> None:
        total = sum(line["amount"] for line in invoice["lines"]["data"])
        invoice["subtotal"] = invoice["total"] = total
        invoice["amount_due"] = max(total, 0)
        invoice["amount_remaining"] = max(total - invoice["amount_paid"], 0)

    def invoices_retrieve(self, invoice_id: str) -> dict[str, Any]:
        return self._get("invoice", invoice_id)

    def invoices_list(self, **given: Any) -> dict[str, Any]:
        rows = [
            row
            for row in self.table("invoice").values()
            if given.get("customer") in (None, row["customer"])
            and given.get("status") in (None, row["status"])
        ]
        return self._page(rows, given)

    def invoices_finalize(self, invoice_id: str, **given: Any) -> dict[str, Any]:
        invoice = self._get("invoice", invoice_id)
        if invoice["status"] != "draft":
            raise Refusal(
                400,
                "This invoice is already finalized",
                code="invoice_not_editable",
            )
        if "auto_advance" in given:
            invoice["auto_advance"] = given["auto_advance"] == "true"
        invoice["status"] = "open"
        invoice["number"] = f"FAKE-{next(self._ids):04d}"
        invoice["hosted_invoice_url"] = f"{self.base_url}/pay/invoice/{invoice_id}"
        self.emit("invoice.finalized", invoice)
        if invoice["total"] == 0:
            self._pay(invoice, None)
        elif invoice["auto_advance"] and invoice["collection_method"] == "charge_automatically":
            invoice["next_payment_attempt"] = self.now()
        return invoice

    def invoices_pay(self, invoice_id: str, **given: Any) -> dict[str, Any]:
        invoice = self._get("invoice", invoice_id)
        if invoice["status"] not in ("open", "uncollectible"):
            raise Refusal(400, f"Invoice is {invoice['status']}", code="invoice_not_open")
        if given.get("paid_out_of_band") == "true":
            self._pay(invoice, None)
        elif problem := self._attempt(invoice, given.get("payment_method")):
            raise Refusal(402, problem, kind="card_error", code="card_declined")
        return invoice

    def _attempt(self, invoice: dict[str, Any], method_id: str | None = None) -> str | None:
        """Try the card; the reason when it is declined."""
        invoice["attempted"] = True
        invoice["attempt_count"] += 1
        method = self._card_of(invoice, method_id)
        problem = "There is no payment method" if method is None else _problem(method)
        if problem is None:
            self._pay(invoice, method)
            return None
        invoice["last_error"] = problem
        tries = invoice["attempt_count"]
        invoice["next_payment_attempt"] = (
            self.now() + RETRY_DAYS[tries - 1] * DAY if tries <= len(RETRY_DAYS) else None
        )
        self.emit("invoice.payment_failed", invoice)
        return problem

    def _card_of(self, invoice: dict[str, Any], method_id: str | None) -> dict[str, Any] | None:
        customer = self._get("customer", invoice["customer"])
        default = (customer.get("invoice_settings") or {}).get("default_payment_method")
        return self.table("payment_method").get(method_id or default or "")

    def _pay(self, invoice: dict[str, Any], method: dict[str, Any] | None) -> None:
        invoice["status"] = "paid"
        invoice["next_payment_attempt"] = None
        invoice["amount_paid"] = invoice["total"]
        invoice["amount_remaining"] = 0
        if method is not None:
            charge = self._new(
                "charge",
                "ch",
                stripe.Charge,
                amount=invoice["total"],
                amount_refunded=0,
                customer=invoice["customer"],
                payment_intent=f"pi_{next(self._ids):06d}",
                paid=True,
                status="succeeded",
            )
            self._new(
                "invoice_payment",
                "inpay",
                stripe.InvoicePayment,
                invoice=invoice["id"],
                amount_paid=invoice["total"],
                status="paid",
                payment={"type": "payment_intent", "payment_intent": charge["payment_intent"]},
            )
        self.emit("invoice.paid", invoice)
        self.emit("invoice.payment_succeeded", invoice)

    def invoices_void(self, invoice_id: str, **_: Any) -> dict[str, Any]:
        return self._end(invoice_id, "void", "invoice.voided", ("open", "uncollectible"))

    def invoices_mark_uncollectible(self, invoice_id: str, **_: Any) -> dict[str, Any]:
        return self._end(invoice_id, "uncollectible", "invoice.marked_uncollectible", ("open",))

    def _end(
        self, invoice_id: str, status: str, event: str, allowed: tuple[str, ...]
    ) -> dict[str, Any]:
        invoice = self._get("invoice", invoice_id)
        if invoice["status"] not in allowed:
            raise Refusal(400, f"You cannot do this to an invoice that is {invoice['status']}")
        invoice["status"], invoice["next_payment_attempt"] = status, None
        self.emit(event, invoice)
        return invoice

    def invoice_payments_list(self, **given: Any) -> dict[str, Any]:
        rows = list(self.table("invoice_payment").values())
        if "invoice" in given:
            rows = [row for row in rows if row["invoice"] == given["invoice"]]
        if "payment" in given:
            intent = given["payment"]["payment_intent"]
            rows = [row for row in rows if row["payment"]["payment_intent"] == intent]
        return self._page(rows, given)

    # --- Money back ---------------------------------------------------------------------------

    def charges_retrieve(self, charge_id: str) -> dict[str, Any]:
        return self._get("charge", charge_id)

    def refunds_create(self, **given: Any) -> dict[str, Any]:
        charges = self.table("charge").values()
        charge = next(
            (
                row
                for row in charges
                if row["id"] == given.get("charge")
                or row["payment_intent"] == given.get("payment_intent")
            ),
            None,
        )
        if charge is None:
            raise Refusal(404, "No such payment", code="resource_missing")
        left = charge["amount"] - charge["amount_refunded"]
        amount = int(given.get("amount", left))
        if not 0 < amount <= left:
            raise Refusal(400, f"Refund amount is greater than {left}", param="amount")
        refund = self._new(
            "refund",
            "re",
            stripe.Refund,
            amount=amount,
            charge=charge["id"],
            status="succeeded",
            **_keep(given, "metadata"),
        )
        charge["amount_refunded"] += amount
        self.emit("charge.refunded", charge)
        return refund

    def refunds_list(self, **given: Any) -> dict[str, Any]:
        rows = self.table("refund").values()
        return self._page([r for r in rows if r["charge"] == given.get("charge")], given)

    def credit_notes_create(self, **given: Any) -> dict[str, Any]:
        invoice = self._get("invoice", given["invoice"])
        if invoice["status"] not in ("open", "paid"):
            raise Refusal(400, "Credit notes need an open or paid invoice", param="invoice")
        amount = int(given["amount"])
        credited = sum(
            note["amount"]
            for note in self.table("credit_note").values()
            if note["invoice"] == invoice["id"]
        )
        if not 0 < amount <= invoice["total"] - credited:
            raise Refusal(400, "The credit note is larger than the invoice", param="amount")
        if invoice["status"] == "paid" and int(given.get("out_of_band_amount", 0)) != amount:
            raise Refusal(400, "Say where the money of a paid invoice goes", param="amount")
        note = self._new(
            "credit_note",
            "cn",
            stripe.CreditNote,
            **_keep(given, "invoice", "memo", "metadata"),
            amount=amount,
        )
        if invoice["status"] == "open":
            invoice["amount_remaining"] -= amount
            if invoice["amount_remaining"] == 0:
                self._pay(invoice, None)
        self.emit("credit_note.created", note)
        return note

    # --- Events and meters --------------------------------------------------------------------

    def events_list(self, **given: Any) -> dict[str, Any]:
        rows = self.events
        if given.get("delivery_success") == "false":
            rows = [row for row in rows if row["id"] in self.undelivered]
        if since := (given.get("created") or {}).get("gte"):
            rows = [row for row in rows if row["created"] >= int(since)]
        return self._page(rows, given)

    def billing_meter_events_create(self, **given: Any) -> dict[str, Any]:
        identifier, at = given.get("identifier", ""), int(given.get("timestamp", self.now()))
        if not -35 * DAY <= at - self.now() <= 300:
            raise Refusal(400, "The timestamp is out of range", param="timestamp")
        if not given["payload"].get("value", "").isdigit():
            raise Refusal(400, "Values are whole numbers", param="payload[value]")
        known = self.meter_events.get(identifier)
        if known is not None and self.now() - known["created"] < DAY:
            raise Refusal(400, f"An event already exists with identifier {identifier}")
        event = {
            "object": "billing.meter_event",
            "created": self.now(),
            "livemode": self.livemode,
            "event_name": given["event_name"],
            "identifier": identifier,
            "payload": given["payload"],
            "timestamp": at,
        }
        self.meter_events[identifier] = event
        return event


def _keep(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}


def _problem(method: dict[str, Any]) -> str | None:
    return CARDS[method["metadata"]["behaves"]][2]
