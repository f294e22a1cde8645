from typing import Any

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class BillingConfig(AppConfig):
    name = "billing"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        post_migrate.connect(_seed, sender=self)


def _seed(**_: Any) -> None:
    """Plans and prices exist wherever the tables do, also after a test emptied them."""
    from billing.services.accounts import seed_plans

    seed_plans()
