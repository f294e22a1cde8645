"""Two shapes of log line: readable text for people, JSON for machines. Ids travel in `extra`."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

EXTRA_IDS = ("team_id", "sandbox_id", "node_id", "request_id", "action")


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        ids = [f"{name}={value}" for name in EXTRA_IDS if (value := getattr(record, name, None))]
        line = super().format(record)
        return f"{line} [{' '.join(ids)}]" if ids else line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name in EXTRA_IDS:
            if (value := getattr(record, name, None)) is not None:
                fields[name] = str(value)
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)
