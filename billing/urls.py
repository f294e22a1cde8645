from __future__ import annotations

from django.urls import path

from billing.api import views
from billing.webhooks import stripe_webhook

urlpatterns = [
    path("webhooks/stripe", stripe_webhook, name="stripe-webhook"),
    path("v1/billing", views.Summary.as_view()),
    path("v1/billing/usage", views.Usage.as_view()),
    path("v1/billing/usage/export", views.UsageExport.as_view()),
    path("v1/billing/intervals", views.Intervals.as_view()),
    path("v1/billing/live", views.Live.as_view()),
    path("v1/billing/sandboxes/<str:sandbox_id>", views.SandboxCost.as_view()),
    path("v1/billing/invoices", views.Invoices.as_view()),
    path("v1/billing/invoices/<str:invoice_id>", views.InvoiceDetail.as_view()),
    path("v1/billing/invoices/<str:invoice_id>/pay", views.PayInvoice.as_view()),
    path(
        "v1/billing/invoices/<str:invoice_id>/lines/<int:position>/intervals",
        views.LineIntervals.as_view(),
    ),
    path("v1/billing/credits", views.Credits.as_view()),
    path("v1/billing/plans", views.Plans.as_view()),
    path("v1/billing/plan", views.ChoosePlan.as_view()),
    path("v1/billing/addons", views.AddOns.as_view()),
    path("v1/billing/addons/<int:addon_id>", views.AddOnDetail.as_view()),
    path("v1/billing/spend-policy", views.SpendLimits.as_view()),
    path("v1/billing/alerts", views.Alerts.as_view()),
    path("v1/billing/details", views.Details.as_view()),
    path("v1/billing/payment-method", views.PaymentMethod.as_view()),
    path("v1/billing/portal", views.Portal.as_view()),
]
