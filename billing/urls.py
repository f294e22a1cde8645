from __future__ import annotations

from django.urls import path

from billing.webhooks import stripe_webhook

urlpatterns = [
    path("webhooks/stripe", stripe_webhook, name="stripe-webhook"),
]
