from billing.models.accounts import AccountBlock, BillingAccount, Notice, SpendAlert, SpendPolicy
from billing.models.documents import (
    CreditEntry,
    CreditGrant,
    CreditNote,
    Invoice,
    InvoiceLine,
    LedgerEntry,
    NumberSequence,
    PaymentAttempt,
)
from billing.models.plans import AddOn, EffectiveLimits, Plan, PlanTerm, Price, Subscription
from billing.models.rail import InboundWebhook, Outbox, ReconcileRun
from billing.models.usage import DirtyHour, UsageAdjustment, UsageEvent, UsageHour, UsageInterval

__all__ = [
    "AccountBlock",
    "AddOn",
    "BillingAccount",
    "CreditEntry",
    "CreditGrant",
    "CreditNote",
    "DirtyHour",
    "EffectiveLimits",
    "InboundWebhook",
    "Invoice",
    "InvoiceLine",
    "LedgerEntry",
    "Notice",
    "NumberSequence",
    "Outbox",
    "PaymentAttempt",
    "Plan",
    "PlanTerm",
    "Price",
    "ReconcileRun",
    "SpendAlert",
    "SpendPolicy",
    "Subscription",
    "UsageAdjustment",
    "UsageEvent",
    "UsageHour",
    "UsageInterval",
]
