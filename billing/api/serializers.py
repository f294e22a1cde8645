"""Shapes of billing's JSON. Exact sums are decimal strings, documents whole minor units; never
floats of money.
"""

from __future__ import annotations

from typing import Any

from billing.exports import invoice_row
from billing.models import AddOn, CreditGrant, Invoice, InvoiceLine, Plan, SpendAlert, SpendPolicy
from billing.services.accounts import Limits
from billing.services.reports import Bucket, Forecast, Group, LiveCost, Used
from billing.services.spend import Spend
from config.drf import Body, to_wire_time


class PlanInput(Body):
    plan: str


class AddOnInput(Body):
    quantity: int
    idempotencyKey: str


class CreditsInput(Body):
    amountMinor: int
    idempotencyKey: str


class SpendPolicyInput(Body):
    hardLimitMinor: int | None = None
    alertMinor: int | None = None
    action: str = "pause_running"
    thresholds: list[int] | None = None


class DetailsInput(Body):
    company: str = ""
    address: str = ""
    taxID: str = ""
    billingEmails: list[str] = []


def plan_json(plan: Plan) -> dict[str, Any]:
    return {
        "code": plan.code,
        "name": plan.name,
        "currency": plan.currency,
        "baseFeeMinor": plan.base_fee_minor,
        "includedUsageMinor": plan.included_usage_minor,
        "trialCreditMinor": plan.trial_credit_minor,
        "maxConcurrent": plan.max_concurrent,
        "maxLengthSeconds": plan.max_length_seconds,
        "createsPerSecond": plan.creates_per_second,
        "maxVCPU": plan.max_milli_vcpu / 1000,
        "maxMemoryMiB": plan.max_memory_mib,
        "maxDiskMiB": plan.max_disk_mib,
        "concurrentBuilds": plan.concurrent_builds,
        "logDays": plan.log_days,
    }


def limits_json(limits: Limits) -> dict[str, Any]:
    return {
        "maxConcurrent": limits.max_concurrent,
        "maxLengthSeconds": limits.max_length_seconds,
        "createsPerSecond": limits.creates_per_second,
        "maxVCPU": limits.max_milli_vcpu / 1000,
        "maxMemoryMiB": limits.max_memory_mib,
        "maxDiskMiB": limits.max_disk_mib,
        "concurrentBuilds": limits.concurrent_builds,
        "logDays": limits.log_days,
    }


def spend_json(spend: Spend) -> dict[str, Any]:
    return {
        "periodStart": to_wire_time(spend.period_start),
        "periodEnd": to_wire_time(spend.period_end),
        "usage": f"{spend.total:f}",
        "perSecond": f"{spend.burn_per_second:f}",
        "running": spend.running,
    }


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    return {"perDay": f"{forecast.per_day:f}", "expected": f"{forecast.expected:f}"}


def used_json(used: Used) -> dict[str, Any]:
    return {
        "sandboxes": len(used.sandbox_ids),
        "vCPUHours": round(used.vcpu_hours, 6),
        "memoryGiBHours": round(used.memory_gib_hours, 6),
        "cost": f"{used.cost:f}",
    }


def bucket_json(bucket: Bucket) -> dict[str, Any]:
    return {"start": bucket.start.isoformat(), **used_json(bucket.used)}


def group_json(group: Group) -> dict[str, Any]:
    return {"name": group.name, **used_json(group.used)}


def live_json(row: LiveCost) -> dict[str, Any]:
    return {
        "sandboxID": row.sandbox_id,
        "state": row.state,
        "since": to_wire_time(row.since),
        "cost": f"{row.cost:f}",
        "perSecond": f"{row.per_second:f}",
        "atDeadline": None if row.at_deadline is None else f"{row.at_deadline:f}",
    }


def invoice_json(invoice: Invoice) -> dict[str, Any]:
    row = invoice_row(invoice)
    return {_camel(name): value for name, value in row.items()}


def line_json(line: InvoiceLine) -> dict[str, Any]:
    return {
        "position": line.position,
        "kind": line.kind,
        "description": line.description,
        "resource": line.resource or None,
        "quantity": None if line.quantity is None else f"{line.quantity:f}",
        "unitPrice": None if line.unit_price is None else f"{line.unit_price:f}",
        "exactAmount": f"{line.exact_amount:f}",
        "amountMinor": line.amount_minor,
        "periodStart": to_wire_time(line.period_start),
        "periodEnd": to_wire_time(line.period_end),
    }


def grant_json(grant: CreditGrant) -> dict[str, Any]:
    return {
        "kind": grant.kind,
        "amountMinor": grant.amount_minor,
        "remainingMinor": grant.remaining_minor,
        "expiresAt": to_wire_time(grant.expires_at) if grant.expires_at else None,
        "note": grant.note,
        "createdAt": to_wire_time(grant.created_at),
    }


def addon_json(addon: AddOn) -> dict[str, Any]:
    return {
        "id": addon.pk,
        "kind": addon.kind,
        "quantity": addon.quantity,
        "feeMinor": addon.fee_minor,
        "since": to_wire_time(addon.from_at),
    }


def policy_json(policy: SpendPolicy) -> dict[str, Any]:
    return {
        "hardLimitMinor": policy.hard_limit_minor,
        "alertMinor": policy.alert_minor,
        "action": policy.action,
        "thresholds": policy.thresholds,
        "version": policy.version,
    }


def alert_json(alert: SpendAlert) -> dict[str, Any]:
    return {
        "threshold": alert.threshold,
        "spentMinor": alert.spent_minor,
        "periodStart": to_wire_time(alert.period_start),
        "firedAt": to_wire_time(alert.fired_at),
    }


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join("URL" if part == "url" else part.title() for part in rest)
