"""Errors of billing that are not in `config.errors`."""

from __future__ import annotations

from django.conf import settings

from billing.models.accounts import BlockReason
from config.errors import PermissionDenied


class TeamBlocked(PermissionDenied):
    """403: the team may not start billable work. Reads, logs, kill and delete stay open."""

    error_code = "team_blocked"

    def __init__(self, reason: BlockReason) -> None:
        self.reason = reason
        super().__init__(
            f"team is blocked: {reason.label}. Please visit '{settings.BILLING_PAGE_URL}'"
        )

    def body(self) -> dict[str, object]:
        return {**super().body(), "reason": self.reason.value, "url": settings.BILLING_PAGE_URL}


class PaymentRequired(PermissionDenied):
    """403: the step needs a payment method first."""

    error_code = "payment_method_missing"
