"""The operator's desk. Books are read-only here too: every change goes through a service."""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

from django.contrib import admin, messages
from django.db.models import Model, QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils import timezone

from billing import models
from billing.models.documents import GrantKind
from billing.pricing import Resource
from billing.services.credits import grant_credit, void_grant
from billing.services.payments import extend_due, mark_paid, void_invoice, write_off
from billing.services.plans import PLAN_EDITABLE, change_plan, change_price, new_plan_version
from billing.services.spend import block_team, unblock_team
from config.errors import AppError

Request = HttpRequest


class ReadOnly(admin.ModelAdmin):  # type: ignore[type-arg]
    def has_add_permission(self, request: Request) -> bool:
        return False

    def has_change_permission(self, request: Request, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: Request, obj: Model | None = None) -> bool:
        return False


class Acting(ReadOnly):
    """Rows are looked at; what may be done to them are actions."""

    def has_view_permission(self, request: Request, obj: Model | None = None) -> bool:
        return bool(request.user.is_active and request.user.is_staff)

    def each(self, request: Request, rows: QuerySet[Any], act: Any, done: str) -> None:
        """Do something to each row; tell what was refused and why."""
        count = 0
        for row in rows:
            try:
                act(row)
                count += 1
            except AppError as error:
                self.message_user(request, f"{row}: {error.message}", messages.ERROR)
        if count:
            self.message_user(request, f"{count} {done}.", messages.SUCCESS)


@admin.register(models.Plan)
class PlanAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Saving a plan makes its next version; teams on the old one move to it."""

    list_display = ("code", "version", "name", "base_fee_minor", "max_concurrent", "retired_at")
    list_filter = ("retired_at",)

    def get_readonly_fields(self, request: Request, obj: Model | None = None) -> tuple[str, ...]:
        fixed = ("retired_at",)
        return fixed if obj is None else (*fixed, "code", "version", "currency")

    def save_model(self, request: Request, obj: Any, form: ModelForm[Any], change: bool) -> None:
        if not change:
            super().save_model(request, obj, form, change)
            return
        changes = {name: getattr(obj, name) for name in form.changed_data if name in PLAN_EDITABLE}
        if not changes:
            return
        try:
            stored = models.Plan.objects.get(pk=obj.pk)
            new_plan_version(plan=stored, changes=changes, now=timezone.now())
        except AppError as error:
            self.message_user(request, error.message, messages.ERROR)

    def has_delete_permission(self, request: Request, obj: Model | None = None) -> bool:
        return False


@admin.register(models.Price)
class PriceAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adding a price ends the one before it, now; what was used until now keeps its price."""

    list_display = ("resource", "plan", "unit_price", "currency", "from_ms", "to_ms")
    fields = ("plan", "resource", "currency", "unit_price")

    def save_model(self, request: Request, obj: Any, form: ModelForm[Any], change: bool) -> None:
        now = timezone.now()
        try:
            made = change_price(
                resource=Resource(obj.resource),
                unit_price=obj.unit_price,
                from_at=now,
                now=now,
                plan=obj.plan,
                currency=obj.currency,
            )
            obj.pk = made.pk
        except AppError as error:
            self.message_user(request, error.message, messages.ERROR)

    def has_change_permission(self, request: Request, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: Request, obj: Model | None = None) -> bool:
        return False


@admin.register(models.BillingAccount)
class AccountAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    list_display = ("team", "currency", "rail", "payment_method_label", "tax_percent")
    search_fields = ("team__slug", "company", "stripe_customer_id")
    fields = (
        "team",
        "currency",
        "rail",
        "anchor_day",
        "company",
        "address",
        "tax_id",
        "tax_label",
        "tax_percent",
        "billing_emails",
        "stripe_customer_id",
        "payment_method_label",
    )
    readonly_fields = (
        "team",
        "currency",
        "anchor_day",
        "stripe_customer_id",
        "payment_method_label",
    )
    actions = ("suspend", "restore", "to_self_hosted", "to_hobby", "to_pro", "to_enterprise")

    def has_add_permission(self, request: Request) -> bool:
        return False

    def has_delete_permission(self, request: Request, obj: Model | None = None) -> bool:
        return False

    @admin.action(description="Suspend: block new sandboxes, pause running ones")
    def suspend(self, request: Request, rows: QuerySet[models.BillingAccount]) -> None:
        for row in rows:
            block_team(team_id=row.pk, detail=f"by {request.user}", now=timezone.now())

    @admin.action(description="Restore a suspended team")
    def restore(self, request: Request, rows: QuerySet[models.BillingAccount]) -> None:
        for row in rows:
            unblock_team(team_id=row.pk, now=timezone.now())

    def _move(self, request: Request, rows: QuerySet[models.BillingAccount], code: str) -> None:
        for row in rows:
            try:
                change_plan(team_id=row.pk, code=code, now=timezone.now(), is_operator=True)
            except AppError as error:
                self.message_user(request, f"{row}: {error.message}", messages.ERROR)

    @admin.action(description="Move to plan self-hosted")
    def to_self_hosted(self, request: Request, rows: QuerySet[models.BillingAccount]) -> None:
        self._move(request, rows, "self-hosted")

    @admin.action(description="Move to plan hobby")
    def to_hobby(self, request: Request, rows: QuerySet[models.BillingAccount]) -> None:
        self._move(request, rows, "hobby")

    @admin.action(description="Move to plan pro")
    def to_pro(self, request: Request, rows: QuerySet[models.BillingAccount]) -> None:
        self._move(request, rows, "pro")

    @admin.action(description="Move to plan enterprise")
    def to_enterprise(self, request: Request, rows: QuerySet[models.BillingAccount]) -> None:
        self._move(request, rows, "enterprise")


@admin.register(models.CreditGrant)
class GrantAdmin(Acting):
    list_display = ("source_key", "account", "kind", "amount_minor", "remaining_minor", "note")
    search_fields = ("source_key", "account__team__slug", "note")
    fields = ("account", "amount_minor", "note", "expires_at", "covers_fees")
    actions = ("withdraw",)

    def has_add_permission(self, request: Request) -> bool:
        return bool(request.user.is_staff)

    def save_model(self, request: Request, obj: Any, form: ModelForm[Any], change: bool) -> None:
        try:
            made = grant_credit(
                account=obj.account,
                amount_minor=obj.amount_minor,
                kind=GrantKind.MANUAL,
                source_key=f"manual:{secrets.token_hex(12)}",
                note=obj.note,
                expires_at=obj.expires_at,
                covers_fees=obj.covers_fees,
                now=timezone.now(),
            )
            obj.pk = made.pk
        except AppError as error:
            self.message_user(request, error.message, messages.ERROR)

    @admin.action(description="Withdraw what is left")
    def withdraw(self, request: Request, rows: QuerySet[models.CreditGrant]) -> None:
        for row in rows:
            void_grant(grant=row, now=timezone.now())


@admin.register(models.Invoice)
class InvoiceAdmin(Acting):
    list_display = ("number", "account", "kind", "status", "total_minor", "currency", "due_at")
    list_filter = ("status", "kind")
    search_fields = ("number", "public_id", "account__team__slug", "stripe_invoice_id")
    actions = ("mark_as_paid", "withdraw", "give_up", "two_more_weeks")

    @admin.action(description="Mark as paid: the money arrived")
    def mark_as_paid(self, request: Request, rows: QuerySet[models.Invoice]) -> None:
        now, actor = timezone.now(), str(request.user)
        self.each(
            request,
            rows,
            lambda row: mark_paid(invoice=row, actor=actor, now=now),
            "marked as paid",
        )

    @admin.action(description="Void: withdraw an unpaid invoice and waive its usage")
    def withdraw(self, request: Request, rows: QuerySet[models.Invoice]) -> None:
        now, actor = timezone.now(), str(request.user)

        def act(row: models.Invoice) -> None:
            void_invoice(invoice=row, reason="by the operator", actor=actor, now=now)

        self.each(request, rows, act, "voided")

    @admin.action(description="Give up collecting")
    def give_up(self, request: Request, rows: QuerySet[models.Invoice]) -> None:
        now, actor = timezone.now(), str(request.user)

        def act(row: models.Invoice) -> None:
            write_off(invoice=row, reason="by the operator", actor=actor, now=now)

        self.each(request, rows, act, "written off")

    @admin.action(description="Extend the due date by two weeks")
    def two_more_weeks(self, request: Request, rows: QuerySet[models.Invoice]) -> None:
        def act(row: models.Invoice) -> None:
            later = max(row.due_at, timezone.now()) + timedelta(days=14)
            extend_due(invoice=row, due_at=later, now=timezone.now())

        self.each(request, rows, act, "extended")


@admin.register(models.UsageInterval)
class IntervalAdmin(Acting):
    list_display = ("sandbox_id", "account", "state", "started_ms", "ended_ms", "close_reason")
    search_fields = ("sandbox_id", "execution_id")
    show_full_result_count = False


@admin.register(models.Subscription)
class SubscriptionAdmin(Acting):
    list_display = ("account", "plan", "status", "period_start", "period_end", "pending_plan")
    list_filter = ("status", "plan__code")


@admin.register(models.AccountBlock)
class BlockAdmin(Acting):
    list_display = ("account", "reason", "action", "since", "cleared_at", "detail")
    list_filter = ("reason",)


@admin.register(models.LedgerEntry)
class LedgerAdmin(Acting):
    list_display = ("created_at", "account", "kind", "amount_minor", "invoice", "actor")
    list_filter = ("kind",)


@admin.register(models.InboundWebhook, models.Outbox, models.ReconcileRun, models.Notice)
class LogAdmin(Acting):
    pass
