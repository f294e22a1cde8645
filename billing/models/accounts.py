"""Who pays, how much they allow, and why they may be blocked."""

from __future__ import annotations

from django.db import models
from django.db.models import Q


def default_thresholds() -> list[int]:
    return [50, 80, 90, 100]


class Rail(models.TextChoices):
    LOCAL = "local", "Local invoices"
    STRIPE = "stripe", "Stripe"


class BillingAccount(models.Model):
    """The paying side of one team. Its key is the team's, so usage rows need no look-up."""

    team = models.OneToOneField(
        "accounts.Team", on_delete=models.PROTECT, primary_key=True, related_name="billing_account"
    )
    currency = models.CharField(max_length=3, default="USD")
    rail = models.CharField(max_length=10, choices=Rail, default=Rail.LOCAL)
    anchor_day = models.PositiveSmallIntegerField(default=1)
    stripe_customer_id = models.CharField(max_length=255, unique=True, null=True, blank=True)
    stripe_generation = models.PositiveIntegerField(default=0)  # customers deleted at Stripe
    has_payment_method = models.BooleanField(default=False)
    payment_method_label = models.CharField(max_length=60, blank=True)
    company = models.CharField(max_length=200, blank=True)
    address = models.TextField(max_length=1000, blank=True)
    tax_id = models.CharField(max_length=60, blank=True)
    tax_label = models.CharField(max_length=60, blank=True)  # "VAT", or why there is none
    tax_percent = models.DecimalField(max_digits=6, decimal_places=3, default=0)
    billing_emails = models.JSONField(default=list, blank=True)
    rolled_until_ms = models.BigIntegerField(default=0)  # all hours before it are in UsageHour
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="account_anchor_day", condition=Q(anchor_day__gte=1, anchor_day__lte=31)
            ),
        ]

    def __str__(self) -> str:
        return f"billing account of team {self.team_id}"


class BlockReason(models.TextChoices):
    """Why a team may not start work. Order: the gravest first; its reason is the one told."""

    BANNED = "banned", "suspended by the operator"
    PAYMENT_FAILED = "payment_failed", "payment failed"
    BILLING_LIMIT = "billing_limit", "billing limit reached"
    CREDITS_EXHAUSTED = "credits_exhausted", "credits exhausted"
    PAYMENT_METHOD_MISSING = "payment_method_missing", "missing payment method"
    EMAIL_UNVERIFIED = "email_unverified", "verification required"


class StopAction(models.TextChoices):
    """What happens to what already runs."""

    BLOCK_NEW = "block_new", "Block new sandboxes, let running ones finish"
    PAUSE_RUNNING = "pause_running", "Pause running sandboxes"
    KILL_RUNNING = "kill_running", "Kill running sandboxes"


class AccountBlock(models.Model):
    """One reason for which a team may not start work, from `since` until `cleared_at`."""

    account = models.ForeignKey(BillingAccount, on_delete=models.CASCADE, related_name="blocks")
    reason = models.CharField(max_length=30, choices=BlockReason)
    action = models.CharField(max_length=20, choices=StopAction, default=StopAction.BLOCK_NEW)
    detail = models.CharField(max_length=300, blank=True)
    since = models.DateTimeField()
    cleared_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account", "reason"],
                condition=Q(cleared_at__isnull=True),
                name="one_active_block_per_reason",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.reason} of {self.account_id} since {self.since}"


class SpendPolicy(models.Model):
    """What the owner allows per billing period. Editing makes version + 1, so that each alert can
    fire again.
    """

    account = models.OneToOneField(
        BillingAccount, on_delete=models.CASCADE, related_name="spend_policy"
    )
    version = models.PositiveIntegerField(default=1)
    hard_limit_minor = models.BigIntegerField(null=True, blank=True)
    alert_minor = models.BigIntegerField(null=True, blank=True)  # a notice only
    thresholds = models.JSONField(default=default_thresholds)  # percent of the hard limit
    action = models.CharField(max_length=20, choices=StopAction, default=StopAction.PAUSE_RUNNING)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="spend_limits_not_negative",
                condition=(Q(hard_limit_minor__isnull=True) | Q(hard_limit_minor__gte=0))
                & (Q(alert_minor__isnull=True) | Q(alert_minor__gte=0)),
            ),
        ]

    def __str__(self) -> str:
        return f"spend policy {self.version} of {self.account_id}"


class SpendAlert(models.Model):
    """A threshold that was crossed: told once per period and policy version."""

    account = models.ForeignKey(BillingAccount, on_delete=models.CASCADE, related_name="alerts")
    policy_version = models.PositiveIntegerField()
    period_start = models.DateTimeField()
    threshold = models.CharField(max_length=20)  # "80" percent of the limit, or "alert"
    spent_minor = models.BigIntegerField()
    fired_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["account", "policy_version", "period_start", "threshold"],
                name="each_threshold_fires_once",
            ),
        ]

    def __str__(self) -> str:
        return f"alert {self.threshold} of {self.account_id} in {self.period_start:%Y-%m-%d}"


class Notice(models.Model):
    """A message to an account's people, written once per key and then mailed."""

    account = models.ForeignKey(BillingAccount, on_delete=models.CASCADE, related_name="notices")
    key = models.CharField(max_length=120, unique=True)
    subject = models.CharField(max_length=200)
    body = models.TextField()
    created_at = models.DateTimeField()
    mailed_at = models.DateTimeField(null=True, blank=True)

    def __str__(self) -> str:
        return self.key
