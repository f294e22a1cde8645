"""The only way a request gets a billing row: absent and foreign answer alike."""

from __future__ import annotations

from billing.models import Invoice, InvoiceLine
from config.errors import NotFound


def access_invoice(team_id: int, invoice_id: str) -> Invoice:
    """By public id or number. Raises: NotFound."""
    rows = Invoice.objects.filter(account_id=team_id).select_related("account__team")
    invoice = rows.filter(public_id=invoice_id).first() or rows.filter(number=invoice_id).first()
    if invoice is None:
        raise NotFound("invoice not found")
    return invoice


def access_line(team_id: int, invoice_id: str, position: int) -> InvoiceLine:
    invoice = access_invoice(team_id, invoice_id)
    line = invoice.lines.select_related("invoice__account").filter(position=position).first()
    if line is None:
        raise NotFound("invoice line not found")
    return line
