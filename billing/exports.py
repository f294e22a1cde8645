"""Usage, intervals and invoices as rows, for CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from billing.models import BillingAccount, Invoice
from billing.periods import from_ms
from billing.pricing import UNIT, Resource, amount
from billing.services.invoices import amount_due
from billing.services.reports import RatedInterval, quantities, rated_intervals

Row = dict[str, Any]


def usage_rows(
    account: BillingAccount, *, start: datetime, end: datetime, now: datetime
) -> Iterator[Row]:
    """One row per sandbox, hour, resource and price: what invoices are summed from."""
    found, table = quantities(account, start=start, end=end, now=now)
    for (sandbox_id, hour_ms, resource, price_id), quantity in sorted(found.items()):
        unit_price = table.unit_prices[price_id]
        yield {
            "hour": from_ms(hour_ms).isoformat(),
            "sandbox_id": sandbox_id,
            "resource": resource,
            "quantity": quantity,  # milli-vCPU times ms, or MiB times ms
            "unit": UNIT[Resource(resource)],
            "unit_price": f"{unit_price:f}",
            "cost": f"{amount(Resource(resource), quantity, unit_price):f}",
        }


def interval_rows(
    account: BillingAccount, *, start: datetime, end: datetime, now: datetime
) -> Iterator[Row]:
    for row in rated_intervals(account, start=start, end=end, now=now):
        yield interval_row(row)


def interval_row(row: RatedInterval) -> Row:
    return {
        "sandbox_id": row.sandbox_id,
        "state": row.state,
        "started_at": row.started_at.isoformat(timespec="milliseconds"),
        "ended_at": row.ended_at.isoformat(timespec="milliseconds") if row.ended_at else None,
        "vcpu": row.milli_vcpu / 1000,
        "memory_mib": row.memory_mib,
        "disk_mib": row.disk_mib,
        "cost": f"{row.cost:f}",
        "end_reason": row.close_reason,
        "template_id": row.template_id,
        "api_key_id": row.api_key_id,
    }


def invoice_rows(account: BillingAccount) -> Iterator[Row]:
    for invoice in account.invoices.order_by("-issued_at", "-pk"):
        yield invoice_row(invoice)


def invoice_row(invoice: Invoice) -> Row:
    return {
        "id": invoice.public_id,
        "number": invoice.number,
        "kind": invoice.kind,
        "status": invoice.status,
        "currency": invoice.currency,
        "period_start": invoice.period_start.isoformat(),
        "period_end": invoice.period_end.isoformat(),
        "issued_at": invoice.issued_at.isoformat(),
        "due_at": invoice.due_at.isoformat(),
        "paid_at": invoice.paid_at.isoformat() if invoice.paid_at else None,
        "subtotal_minor": invoice.subtotal_minor,
        "credits_minor": invoice.credits_minor,
        "tax_minor": invoice.tax_minor,
        "total_minor": invoice.total_minor,
        "due_minor": max(amount_due(invoice), 0),
        "hosted_url": invoice.hosted_url,
    }


def to_csv(rows: Iterable[Row]) -> Iterator[str]:
    """Line by line, so that a long export needs little memory."""
    sheet = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(sheet, fieldnames=list(row))
            writer.writeheader()
        writer.writerow({name: _harmless(value) for name, value in row.items()})
        yield sheet.getvalue()
        sheet.seek(0)
        sheet.truncate()


def _harmless(value: Any) -> Any:
    """Spreadsheets run text that starts like a formula; a quote before it keeps it text."""
    if isinstance(value, str) and value[:1] in ("=", "+", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value
