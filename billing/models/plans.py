"""What a team may do and what it pays for it."""

from __future__ import annotations

from django.db import models
from django.db.models import F, Q

from billing.fields import ExactDecimalField
from billing.models.accounts import BillingAccount
from billing.pricing import UNIT, Resource


class Plan(models.Model):
    """One version of a plan. Never edited once used: a change is the next version."""

    code = models.SlugField(max_length=40)
    version = models.PositiveIntegerField(default=1)
    name = models.CharField(max_length=80)
    currency = models.CharField(max_length=3, default="USD")
    base_fee_minor = models.BigIntegerField(default=0)  # per period, in advance
    included_usage_minor = models.BigIntegerField(null=True, blank=True, default=0)  # None: all
    trial_credit_minor = models.BigIntegerField(default=0)  # once per team
    needs_credit = models.BooleanField(default=False)  # stops without credit or payment method
    max_concurrent = models.PositiveIntegerField()
    max_length_seconds = models.PositiveIntegerField()
    creates_per_second = models.PositiveIntegerField()
    max_milli_vcpu = models.PositiveIntegerField(default=8_000)
    max_memory_mib = models.PositiveIntegerField(default=8_192)
    max_disk_mib = models.PositiveIntegerField(default=10_240)
    concurrent_builds = models.PositiveIntegerField(default=20)
    log_days = models.PositiveIntegerField(default=7)
    is_public = models.BooleanField(default=True)  # teams may choose it themselves
    is_addon_allowed = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)
    retired_at = models.DateTimeField(null=True, blank=True)  # a newer version took over

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["code", "version"], name="one_plan_per_version"),
            models.UniqueConstraint(
                fields=["code"], condition=Q(retired_at__isnull=True), name="one_current_plan"
            ),
            models.CheckConstraint(
                name="plan_sums_not_negative",
                condition=Q(base_fee_minor__gte=0, trial_credit_minor__gte=0)
                & (Q(included_usage_minor__isnull=True) | Q(included_usage_minor__gte=0)),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.code} v{self.version}"


class Price(models.Model):
    """Price of one resource for [from_ms, to_ms); of one plan, or of every plan without its own."""

    plan = models.ForeignKey(
        Plan, on_delete=models.PROTECT, null=True, blank=True, related_name="prices"
    )
    resource = models.CharField(max_length=20, choices=[(r.value, r.value) for r in Resource])
    currency = models.CharField(max_length=3, default="USD")
    unit_price = ExactDecimalField(max_digits=20, decimal_places=12)
    from_ms = models.BigIntegerField(default=0)
    to_ms = models.BigIntegerField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["plan", "resource", "currency"],
                condition=Q(to_ms__isnull=True, plan__isnull=False),
                name="one_current_price_of_a_plan",
            ),
            models.UniqueConstraint(
                fields=["resource", "currency"],
                condition=Q(to_ms__isnull=True, plan__isnull=True),
                name="one_current_price",
            ),
            models.CheckConstraint(
                name="price_span", condition=Q(to_ms__isnull=True) | Q(to_ms__gt=F("from_ms"))
            ),
        ]

    def __str__(self) -> str:
        unit = UNIT[Resource(self.resource)]
        return f"{self.unit_price} {self.currency} per {unit} of {self.resource}"


class SubscriptionStatus(models.TextChoices):
    ACTIVE = "active", "Active"
    PAST_DUE = "past_due", "Past due"
    UNPAID = "unpaid", "Unpaid"
    CANCELED = "canceled", "Canceled"


class Subscription(models.Model):
    """An account's running contract: its plan and its current period [period_start, period_end)."""

    account = models.ForeignKey(
        BillingAccount, on_delete=models.PROTECT, related_name="subscriptions"
    )
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="subscriptions")
    status = models.CharField(
        max_length=20, choices=SubscriptionStatus, default=SubscriptionStatus.ACTIVE
    )
    period_start = models.DateTimeField()
    period_end = models.DateTimeField()
    pending_plan = models.ForeignKey(
        Plan, on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )  # takes over at period_end
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account"],
                condition=~Q(status=SubscriptionStatus.CANCELED),
                name="one_live_subscription",
            ),
            models.CheckConstraint(
                name="subscription_period", condition=Q(period_end__gt=F("period_start"))
            ),
        ]

    def __str__(self) -> str:
        return f"{self.plan_id} of {self.account_id}, {self.status}"


class PlanTerm(models.Model):
    """Which plan's prices an account paid for [from_ms, to_ms). Rated hours never change with a new
    plan.
    """

    account = models.ForeignKey(BillingAccount, on_delete=models.PROTECT, related_name="terms")
    plan = models.ForeignKey(Plan, on_delete=models.PROTECT, related_name="+")
    from_ms = models.BigIntegerField()
    to_ms = models.BigIntegerField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account"], condition=Q(to_ms__isnull=True), name="one_open_term"
            ),
            models.CheckConstraint(
                name="term_span", condition=Q(to_ms__isnull=True) | Q(to_ms__gte=F("from_ms"))
            ),
        ]

    def __str__(self) -> str:
        return f"plan {self.plan_id} of {self.account_id} from {self.from_ms}"


class AddOn(models.Model):
    """Extra limit, bought per period on top of a plan."""

    account = models.ForeignKey(BillingAccount, on_delete=models.PROTECT, related_name="addons")
    kind = models.CharField(max_length=20, default="concurrency")
    quantity = models.PositiveIntegerField()  # extra concurrent sandboxes
    fee_minor = models.BigIntegerField()  # per period, in advance
    from_at = models.DateTimeField()
    to_at = models.DateTimeField(null=True, blank=True)
    idempotency_key = models.CharField(max_length=120, unique=True)

    def __str__(self) -> str:
        return f"+{self.quantity} {self.kind} of {self.account_id}"


class EffectiveLimits(models.Model):
    """What a team may do right now, resolved from plan, add-ons and blocks. The create path reads
    this one row.
    """

    account = models.OneToOneField(
        BillingAccount, on_delete=models.CASCADE, primary_key=True, related_name="limits"
    )
    plan_code = models.CharField(max_length=40)
    max_concurrent = models.PositiveIntegerField()
    max_length_seconds = models.PositiveIntegerField()
    creates_per_second = models.PositiveIntegerField()
    max_milli_vcpu = models.PositiveIntegerField()
    max_memory_mib = models.PositiveIntegerField()
    max_disk_mib = models.PositiveIntegerField()
    concurrent_builds = models.PositiveIntegerField()
    log_days = models.PositiveIntegerField()
    block_reason = models.CharField(max_length=30, blank=True)  # the gravest of the active ones
    headroom = ExactDecimalField(max_digits=45, decimal_places=25, null=True)  # None: no cap
    version = models.PositiveIntegerField(default=1)
    updated_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"limits of {self.account_id}"
