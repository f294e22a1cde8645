"""The database itself keeps the books append-only, and intervals of one sandbox apart."""

from typing import Any

from django.db import migrations

from billing import guards


def install(_apps: Any, editor: Any) -> None:
    guards.install(editor)
    guards.forbid_overlap(editor)


class Migration(migrations.Migration):
    dependencies = [("billing", "0001_initial")]
    operations = [migrations.RunPython(install, migrations.RunPython.noop)]
