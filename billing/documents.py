"""Invoices for people: one page of HTML that prints well, and the same as PDF."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.template.loader import render_to_string

from billing.models import Invoice, InvoiceLine
from billing.models.documents import LedgerKind
from billing.money import format_minor
from billing.pricing import UNIT, UNIT_QUANTITY, Resource
from billing.services.invoices import amount_due


def invoice_html(invoice: Invoice, *, nonce: str = "") -> str:
    """`nonce`: what the page's content security policy wants of its style sheet."""
    return render_to_string("billing/invoice.html", {**invoice_context(invoice), "nonce": nonce})


def invoice_pdf(invoice: Invoice) -> bytes:
    from weasyprint import HTML  # takes half a second to import, and few processes need it

    document: bytes = HTML(string=invoice_html(invoice), url_fetcher=_no_fetch).write_pdf()
    return document


def _no_fetch(url: str, *_: Any, **__: Any) -> Any:
    """The page needs nothing from outside; a name or address on it must not make us fetch."""
    raise ValueError(f"invoices load nothing: {url}")


def invoice_context(invoice: Invoice) -> dict[str, Any]:
    currency = invoice.currency
    ledger = invoice.ledger.exclude(kind=LedgerKind.INVOICE).order_by("pk")
    return {
        "invoice": invoice,
        "seller": invoice.snapshot["seller"],
        "buyer": invoice.snapshot["buyer"],
        "tax": invoice.snapshot["tax"],
        "lines": [line_context(line, currency) for line in invoice.lines.all()],
        "subtotal": format_minor(invoice.subtotal_minor, currency),
        "credits": format_minor(-invoice.credits_minor, currency),
        "tax_amount": format_minor(invoice.tax_minor, currency),
        "total": format_minor(invoice.total_minor, currency),
        "movements": [
            {
                "label": entry.get_kind_display(),
                "at": entry.created_at,
                "amount": format_minor(entry.amount_minor, currency),
            }
            for entry in ledger
        ],
        "due": format_minor(max(amount_due(invoice), 0), currency),
    }


def line_context(line: InvoiceLine, currency: str) -> dict[str, Any]:
    return {
        "position": line.position,
        "description": line.description,
        "start": line.period_start,
        "end": line.period_end,
        "quantity": shown_quantity(line),
        "unit_price": None if line.unit_price is None else f"{line.unit_price:f}",
        "exact": f"{line.exact_amount:f}",
        "amount": format_minor(line.amount_minor, currency),
        "has_intervals": line.quantity is not None,
    }


def shown_quantity(line: InvoiceLine) -> str:
    """In the unit of the price: `28,794 vCPU-seconds`, with as many decimals as there are."""
    if line.quantity is None:
        return ""
    resource = Resource(line.resource)
    units = line.quantity / Decimal(UNIT_QUANTITY[resource])
    rounded = units.quantize(Decimal("0.001")).normalize()
    return f"{rounded:,f} {UNIT[resource]}s"
