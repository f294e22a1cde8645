"""The door to Stripe: what came in, what must go out, and whether both sides agree."""

from __future__ import annotations

from django.db import models
from django.db.models import Q


class InboundWebhook(models.Model):
    """One verified event, stored before it is handled. Its id makes a repeat harmless."""

    source = models.CharField(max_length=20, default="stripe")
    event_id = models.CharField(max_length=255)
    type = models.CharField(max_length=100)
    api_version = models.CharField(max_length=40, blank=True)
    payload = models.JSONField()
    received_at = models.DateTimeField()
    attempts = models.PositiveIntegerField(default=0)
    handled_at = models.DateTimeField(null=True, blank=True)
    error = models.TextField(blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["source", "event_id"], name="one_webhook_per_event")
        ]
        indexes = [
            models.Index(
                fields=["received_at"],
                condition=Q(handled_at__isnull=True),
                name="unhandled_webhooks",
            )
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"


class Outbox(models.Model):
    """One call to make at Stripe, written in the transaction that made it necessary. `key` is also
    the idempotency key of the call.
    """

    key = models.CharField(max_length=160, unique=True)
    kind = models.CharField(max_length=40)
    payload = models.JSONField()
    attempts = models.PositiveIntegerField(default=0)
    next_at = models.DateTimeField()
    done_at = models.DateTimeField(null=True, blank=True)
    failed_at = models.DateTimeField(null=True, blank=True)  # given up; the operator is told
    error = models.TextField(blank=True)

    class Meta:
        indexes = [
            models.Index(
                fields=["next_at"],
                condition=Q(done_at__isnull=True, failed_at__isnull=True),
                name="outbox_due",
            )
        ]

    def __str__(self) -> str:
        return self.key


class ReconcileRun(models.Model):
    """One comparison of our books with themselves or with Stripe's, and what did not match."""

    kind = models.CharField(max_length=40)
    started_at = models.DateTimeField()
    checked = models.PositiveIntegerField(default=0)
    mismatches = models.PositiveIntegerField(default=0)
    details = models.JSONField(default=list)

    class Meta:
        ordering = ["-started_at"]

    def __str__(self) -> str:
        return f"{self.kind} at {self.started_at}"
