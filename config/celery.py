"""The worker: `celery -A config worker --beat`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from celery import Celery
from celery.signals import setup_logging
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

app = Celery("sandlot")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def use_our_logging(**_: Any) -> None:
    """Django's settings have set logging up; keep Celery from doing so again."""


@app.on_after_configure.connect
def make_queue_folders(**_: Any) -> None:
    """The folders of the broker that needs no server."""
    options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
    for name in ("data_folder_in", "control_folder", "processed_folder"):
        if name in options:
            Path(str(options[name])).mkdir(mode=0o700, parents=True, exist_ok=True)
