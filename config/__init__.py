"""The kernel every app stands on (env, errors, ids, drf), and the wiring that knows all apps."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
