"""What ran, for how long, and how big it was. Facts are appended, never edited; the database
refuses edits.
"""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from billing.metering import MeterState, UsageKind
from billing.models.accounts import BillingAccount
from billing.pricing import Resource


class UsageEvent(models.Model):
    """One change in the life of one execution, as told. (execution_id, seq) makes a repeat
    harmless.
    """

    account = models.ForeignKey(
        BillingAccount, on_delete=models.PROTECT, null=True, related_name="+"
    )  # None: a later number came first, so the start that names the team is still missing
    sandbox_id = models.CharField(max_length=64)
    execution_id = models.CharField(max_length=80)
    seq = models.PositiveIntegerField()
    kind = models.CharField(max_length=10, choices=[(k.value, k.value) for k in UsageKind])
    at_ms = models.BigIntegerField()
    received_ms = models.BigIntegerField()
    elapsed_ms = models.BigIntegerField(null=True)  # since start or resume, by the node's clock
    milli_vcpu = models.PositiveIntegerField(null=True)
    memory_mib = models.PositiveIntegerField(null=True)
    disk_mib = models.PositiveIntegerField(null=True)
    reason = models.CharField(max_length=40, blank=True)
    node_id = models.CharField(max_length=64, blank=True)
    template_id = models.CharField(max_length=64, blank=True)
    api_key_id = models.CharField(max_length=64, blank=True)
    labels = models.JSONField(default=dict)  # the sandbox's metadata, for break-downs
    is_applied = models.BooleanField(default=False)  # False: an earlier number is still missing

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["execution_id", "seq"], name="one_event_per_seq"),
            models.CheckConstraint(name="event_seq_from_one", condition=Q(seq__gte=1)),
        ]
        indexes = [
            models.Index(
                fields=["received_ms"], condition=Q(is_applied=False), name="held_usage_events"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.execution_id}/{self.seq}"


class UsageInterval(models.Model):
    """A stretch of time in which one sandbox had one size and one state; `ended_ms` None while it
    lasts.

    `confirmed_until_ms` is the last proof of life; an open interval is billed no further than that.
    """

    account = models.ForeignKey(BillingAccount, on_delete=models.PROTECT, related_name="intervals")
    sandbox_id = models.CharField(max_length=64)
    execution_id = models.CharField(max_length=80)
    state = models.CharField(max_length=10, choices=[(s.value, s.value) for s in MeterState])
    started_ms = models.BigIntegerField()
    ended_ms = models.BigIntegerField(null=True)
    run_started_ms = models.BigIntegerField()  # when it last started or resumed
    confirmed_until_ms = models.BigIntegerField()
    milli_vcpu = models.PositiveIntegerField()  # as billed: zero while paused
    memory_mib = models.PositiveIntegerField()  # as billed: zero while paused
    disk_mib = models.PositiveIntegerField()
    size_milli_vcpu = models.PositiveIntegerField()  # as allocated
    size_memory_mib = models.PositiveIntegerField()
    template_id = models.CharField(max_length=64, blank=True)
    api_key_id = models.CharField(max_length=64, blank=True)
    node_id = models.CharField(max_length=64, blank=True)
    labels = models.JSONField(default=dict)
    open_event = models.ForeignKey(UsageEvent, on_delete=models.PROTECT, related_name="+")
    close_event = models.ForeignKey(
        UsageEvent, on_delete=models.PROTECT, related_name="+", null=True
    )
    close_reason = models.CharField(max_length=40, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["sandbox_id"],
                condition=Q(ended_ms__isnull=True),
                name="one_open_interval_per_sandbox",
            ),
            models.UniqueConstraint(
                fields=["sandbox_id", "open_event"], name="an_event_opens_one_interval"
            ),
            models.CheckConstraint(
                name="interval_runs_forward",
                condition=Q(ended_ms__isnull=True) | Q(ended_ms__gte=F("started_ms")),
            ),
            models.CheckConstraint(
                name="paused_holds_disk_only",
                condition=~Q(state=MeterState.PAUSED) | Q(milli_vcpu=0, memory_mib=0),
            ),
        ]
        indexes = [
            models.Index(fields=["account", "started_ms"], name="intervals_by_start"),
            models.Index(fields=["account", "ended_ms"], name="intervals_by_end"),
            models.Index(fields=["sandbox_id", "started_ms"], name="intervals_of_sandbox"),
            models.Index(
                fields=["account"], condition=Q(ended_ms__isnull=True), name="open_intervals"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.state} {self.sandbox_id} [{self.started_ms}, {self.ended_ms})"


class UsageHour(models.Model):
    """A sandbox's quantity of one resource in one UTC hour under one price; frozen once on an
    invoice.
    """

    account = models.ForeignKey(BillingAccount, on_delete=models.PROTECT, related_name="hours")
    sandbox_id = models.CharField(max_length=64)
    hour_ms = models.BigIntegerField()
    resource = models.CharField(max_length=20, choices=[(r.value, r.value) for r in Resource])
    price = models.ForeignKey("billing.Price", on_delete=models.PROTECT, related_name="+")
    quantity = models.BigIntegerField()  # size times ms, exact
    invoice_line = models.ForeignKey(
        "billing.InvoiceLine", on_delete=models.PROTECT, null=True, related_name="hours"
    )

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["sandbox_id", "hour_ms", "resource", "price"], name="one_usage_hour"
            ),
            models.CheckConstraint(name="hour_not_negative", condition=Q(quantity__gte=0)),
        ]
        indexes = [models.Index(fields=["account", "hour_ms"], name="hours_of_account")]

    def __str__(self) -> str:
        return f"{self.quantity} {self.resource} of {self.sandbox_id} at {self.hour_ms}"


class UsageAdjustment(models.Model):
    """A later correction of an hour that is on an invoice already; billed or credited with the next
    one.
    """

    account = models.ForeignKey(
        BillingAccount, on_delete=models.PROTECT, related_name="adjustments"
    )
    sandbox_id = models.CharField(max_length=64)
    hour_ms = models.BigIntegerField()
    resource = models.CharField(max_length=20, choices=[(r.value, r.value) for r in Resource])
    price = models.ForeignKey("billing.Price", on_delete=models.PROTECT, related_name="+")
    quantity = models.BigIntegerField()  # signed
    reason = models.CharField(max_length=200)
    actor = models.CharField(max_length=120, blank=True)
    created_at = models.DateTimeField()
    invoice_line = models.ForeignKey(
        "billing.InvoiceLine", on_delete=models.PROTECT, null=True, related_name="adjustments"
    )

    class Meta:
        indexes = [models.Index(fields=["account", "hour_ms"], name="adjustments_of_account")]

    def __str__(self) -> str:
        return f"{self.quantity:+} {self.resource} of {self.sandbox_id} at {self.hour_ms}"


class DirtyHour(models.Model):
    """An hour that was rolled up already and must be computed again, because a late fact touched
    it.
    """

    account = models.ForeignKey(BillingAccount, on_delete=models.CASCADE, related_name="+")
    hour_ms = models.BigIntegerField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["account", "hour_ms"], name="one_dirty_hour")
        ]

    def __str__(self) -> str:
        return f"{self.account_id} at {self.hour_ms}"
