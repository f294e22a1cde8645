"""The door for Stripe's webhooks: verify, store, answer. What is stored is handled later."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from billing import stripe_client
from billing.models import InboundWebhook
from billing.stripe_client import BadSignature, WebhookEvent

log = logging.getLogger(__name__)
MAX_BYTES = 1_048_576


@csrf_exempt
@require_POST
def stripe_webhook(request: HttpRequest) -> HttpResponse:
    """POST /webhooks/stripe. The raw body is what was signed."""
    if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_BYTES:
        return _refused(413, "the event is too large")
    body = request.body
    if len(body) > MAX_BYTES:
        return _refused(413, "the event is too large")
    header = request.headers.get("Stripe-Signature", "")
    try:
        event = stripe_client.read_webhook(body, header, settings.STRIPE_WEBHOOK_SECRETS)
    except BadSignature as error:
        log.warning("webhook refused: %s", error)
        return _refused(400, str(error))
    except (ValueError, KeyError, TypeError, AttributeError):
        return _refused(400, "the body is not a Stripe event")
    if bool(event.payload.get("livemode")) != stripe_client.is_live_key():
        return _refused(400, "live and test mode do not match")
    store_event(event)
    return JsonResponse({"received": True})


def store_event(event: WebhookEvent) -> bool:
    """Keep an event and have it handled; False when it was known. Stored before it is handled,
    so nothing is lost.
    """
    row, is_new = InboundWebhook.objects.get_or_create(
        source="stripe",
        event_id=event.id,
        defaults={
            "type": event.type[:100],
            "api_version": event.api_version[:40],
            "payload": event.payload,
            "received_at": timezone.now(),
        },
    )
    if is_new:
        _enqueue(row.pk)
    return is_new


def _enqueue(pk: int) -> None:
    """A broker that is away loses nothing: the sweeper looks for rows that nobody handled."""
    from billing.tasks import apply_webhook

    try:
        apply_webhook.delay(webhook_id=pk)
    except Exception:
        log.warning("no broker; the sweeper will handle webhook %s", pk)


def _refused(status: int, message: str, **extra: Any) -> JsonResponse:
    return JsonResponse({"code": status, "message": message, **extra}, status=status)
