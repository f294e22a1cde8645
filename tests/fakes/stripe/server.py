"""The fake on a port: Stripe's API, three small pages for people, and control routes for tests."""

from __future__ import annotations

import html
import json
import re
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .state import CARDS, ConnectionReset, FakeStripe, Fault, Refusal
from .strict import decode_form

ROUTES = [
    (method, re.compile(f"^/v1/{pattern}$"), operation)
    for method, pattern, operation in (
        ("POST", "customers", "customers.create"),
        ("GET", "customers/search", "customers.search"),
        ("GET", "customers/([^/]+)", "customers.retrieve"),
        ("POST", "customers/([^/]+)", "customers.update"),
        ("DELETE", "customers/([^/]+)", "customers.delete"),
        ("GET", "payment_methods", "payment_methods.list"),
        ("POST", "payment_methods/([^/]+)/detach", "payment_methods.detach"),
        ("POST", "checkout/sessions", "checkout.sessions.create"),
        ("POST", "billing_portal/sessions", "billing_portal.sessions.create"),
        ("POST", "invoices", "invoices.create"),
        ("GET", "invoices", "invoices.list"),
        ("GET", "invoices/([^/]+)", "invoices.retrieve"),
        ("POST", "invoices/([^/]+)/add_lines", "invoices.add_lines"),
        ("POST", "invoices/([^/]+)/finalize", "invoices.finalize"),
        ("POST", "invoices/([^/]+)/pay", "invoices.pay"),
        ("POST", "invoices/([^/]+)/void", "invoices.void"),
        ("POST", "invoices/([^/]+)/mark_uncollectible", "invoices.mark_uncollectible"),
        ("GET", "invoice_payments", "invoice_payments.list"),
        ("GET", "charges/([^/]+)", "charges.retrieve"),
        ("POST", "refunds", "refunds.create"),
        ("GET", "refunds", "refunds.list"),
        ("POST", "credit_notes", "credit_notes.create"),
        ("GET", "events", "events.list"),
        ("POST", "billing/meter_events", "billing.meter_events.create"),
    )
]
PAGE = (
    "<!doctype html><meta charset=utf-8><link rel=icon href='data:,'><title>{title}</title>"
    "<h1>{title}</h1>{body}"
)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, state: FakeStripe, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.state = state
        state.base_url = f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return self.state.base_url

    def start(self) -> None:
        threading.Thread(target=self.serve_forever, name="fake-stripe", daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def do_DELETE(self) -> None:
        self._serve("DELETE")

    def log_message(self, *_: Any) -> None:
        """Quiet."""

    def _serve(self, method: str) -> None:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        try:
            if parts.path.startswith("/v1/"):
                self._api(method, parts.path, parts.query if method == "GET" else body)
            elif parts.path.startswith("/pay/"):
                self._page(method, parts.path, body)
            else:
                self._control(method, parts.path, body)
        except ConnectionReset:
            self.close_connection = True
            self.connection.close()
        except Refusal as error:
            self._json(error.status, error.body, error.headers)

    def _api(self, method: str, path: str, text: str) -> None:
        if not self.headers.get("Authorization", "").startswith("Bearer sk_"):
            raise Refusal(401, "Invalid API Key provided")
        for wanted, pattern, operation in ROUTES:
            match = pattern.match(path)
            if wanted == method and match:
                key = self.headers.get("Idempotency-Key")
                given = decode_form(text)
                given.pop("expand", None)
                self._json(*self.server.state.call(operation, match.groups(), given, key=key))
                return
        raise Refusal(404, f"Unrecognized request URL ({method}: {path})")

    # --- Pages a customer sees ----------------------------------------------------------------

    def _page(self, method: str, path: str, body: str) -> None:
        _, _, kind, thing_id = path.split("/", 3)
        form = {name: values[0] for name, values in parse_qs(body).items()}
        state = self.server.state
        if kind == "checkout":
            session = state._get("checkout.session", thing_id)
            if method == "POST":
                self._pay_checkout(session, form)
                return
            self._html("Add a card", _buttons(cards=True))
        elif kind == "portal":
            session = state._get("billing_portal.session", thing_id)
            if method == "POST":
                self._portal(session, form)
                return
            self._html("Your billing details", _buttons(cards=True, detach=True))
        else:
            invoice = state._get("invoice", thing_id)
            if method == "POST":
                state.invoices_pay(thing_id, paid_out_of_band="true")
            total = f"{invoice['total'] / 100:.2f} {invoice['currency'].upper()}"
            rows = "".join(
                f"<li>{html.escape(row['description'] or '')}: {row['amount'] / 100:.2f}</li>"
                for row in invoice["lines"]["data"]
            )
            body = f"<p>{invoice['status']}</p><ul>{rows}</ul><p>Total {total}</p>"
            self._html(
                f"Invoice {invoice['number']}",
                body + "<form method=post><button name=do value=pay>Pay</button></form>",
            )

    def _pay_checkout(self, session: dict[str, Any], form: dict[str, str]) -> None:
        if form.get("do") == "cancel":
            self._redirect(session["cancel_url"])
            return
        try:
            self.server.state.complete_session(session["id"], form.get("card", "pm_ok"))
        except Refusal as error:
            self._html("Add a card", f"<p role=alert>{error}</p>" + _buttons(cards=True))
            return
        self._redirect(session["success_url"])

    def _portal(self, session: dict[str, Any], form: dict[str, str]) -> None:
        state = self.server.state
        if form.get("do") == "detach":
            for method in list(state.table("payment_method").values()):
                if method["customer"] == session["customer"]:
                    state.payment_methods_detach(method["id"])
        elif form.get("do") == "save":
            state.attach_card(session["customer"], form.get("card", "pm_ok"))
        self._redirect(session["return_url"])

    # --- Control ------------------------------------------------------------------------------

    def _control(self, method: str, path: str, body: str) -> None:
        state, given = self.server.state, json.loads(body or "{}")
        if (method, path) == ("GET", "/"):
            self._html("Fake Stripe", "<p>Nothing here is real.</p>")
        elif (method, path) == ("POST", "/_fake/clock"):
            state.advance(float(given.get("advance", 0)))
            self._json(200, {"now": state.now()})
        elif (method, path) == ("POST", "/_fake/faults"):
            state.faults.append(Fault(**given))
            self._json(200, {})
        elif (method, path) == ("GET", "/_fake/state"):
            self._json(200, {"objects": state.objects, "events": len(state.events)})
        else:
            raise Refusal(404, "no such page")

    # --- Answers ------------------------------------------------------------------------------

    def _json(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(body).encode(), "application/json", headers or {})

    def _html(self, title: str, body: str) -> None:
        text = PAGE.format(title=html.escape(title), body=body)
        self._send(200, text.encode(), "text/html; charset=utf-8", {})

    def _redirect(self, url: str) -> None:
        self._send(303, b"", "text/plain", {"Location": url})

    def _send(self, status: int, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Request-Id", "req_fake")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _buttons(*, cards: bool = False, detach: bool = False) -> str:
    options = "".join(f"<option>{name}</option>" for name in CARDS)
    choice = f"<label>Card <select name=card>{options}</select></label>" if cards else ""
    remove = "<button name=do value=detach>Remove card</button>" if detach else ""
    return (
        f"<form method=post>{choice}<button name=do value=save>Save card</button>"
        f"<button name=do value=cancel>Cancel</button>{remove}</form>"
    )


def deliver_forever(state: FakeStripe, url: str, *, stop: threading.Event) -> None:
    """Post events to a webhook endpoint, again and again until each is accepted, and let the
    clock run.
    """
    waiting: list[tuple[float, int, dict[str, Any]]] = []
    while not stop.wait(0.5):
        state.advance(0)
        waiting += [(0.0, 0, event) for event in state.take_undelivered()]
        later = []
        for at, tries, event in waiting:
            if at > time.monotonic() or _post(state, url, event):
                if at > time.monotonic():
                    later.append((at, tries, event))
                continue
            later.append((time.monotonic() + min(2**tries, 300), tries + 1, event))
        waiting = later


def _post(state: FakeStripe, url: str, event: dict[str, Any]) -> bool:
    body, header = state.signed(event)
    request = urllib.request.Request(
        url,
        data=body.encode(),
        headers={"Content-Type": "application/json", "Stripe-Signature": header},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return 200 <= answer.status < 300
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
