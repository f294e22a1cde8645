"""Periodic work of the worker: each task finds what is due by itself and is safe to run twice."""

from __future__ import annotations

from typing import Any

from celery import shared_task
from celery.signals import worker_process_init, worker_ready
from django.utils import timezone

from billing.services.spend import sweep_spend
from sandboxes import builds, live, overdrawn, reconcile
from templates_app.builds import end_overdue_builds
from templates_app.uploads import forget_unused_archives


def pass_hints_through_web(**_: Any) -> None:
    live.relay_through_web()


for _signal in (worker_ready, worker_process_init):
    _signal.connect(pass_hints_through_web)


@shared_task
def settle_sandboxes(**_: Any) -> None:
    now = timezone.now()
    reconcile.end_overdue(now=now)
    reconcile.settle_stuck(now=now)


@shared_task
def find_lost_nodes(**_: Any) -> None:
    reconcile.find_lost_nodes(now=timezone.now())


@shared_task
def settle_builds(**_: Any) -> None:
    now = timezone.now()
    end_overdue_builds(now=now)
    builds.settle_builds(now=now)


@shared_task
def forget_old_records(**_: Any) -> None:
    now = timezone.now()
    reconcile.forget_old_records(now=now)
    reconcile.remove_unused_images(now=now)
    forget_unused_archives(now=now)


@shared_task
def enforce_spend_limits(**_: Any) -> None:
    """One task for both halves: what the sweep finds stops in the same turn."""
    now = timezone.now()
    sweep_spend(now=now)
    overdrawn.stop_overdrawn(now=now)
