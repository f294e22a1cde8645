"""What a run produces, and its form on the wire: one JSON object a line, ASCII only."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any


@dataclass(frozen=True)
class Text:
    """Output of a standard stream. `stream`: "stdout" or "stderr"."""

    stream: str
    text: str


@dataclass(frozen=True)
class Display:
    """A MIME bundle; `is_main` for the value of the last expression."""

    bundle: dict[str, Any]
    is_main: bool = False


@dataclass(frozen=True)
class Failure:
    name: str
    value: str
    traceback: str = ""


@dataclass(frozen=True)
class Count:
    number: int


@dataclass(frozen=True)
class Plain:
    """A line with a type only: "keepalive", "end_of_execution"."""

    type: str = field(default="keepalive")


Output = Text | Display | Failure | Count | Plain

KEEPALIVE = Plain("keepalive")
END = Plain("end_of_execution")

_FIELDS = {
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}


def to_line(output: Output) -> bytes:
    return _dumps(_to_object(output)) + b"\n"


def _to_object(output: Output) -> dict[str, Any]:
    match output:
        case Text():
            now = datetime.now(UTC).isoformat()
            return {"type": output.stream, "text": output.text, "timestamp": now}
        case Display():
            return {"type": "result", **to_result(output.bundle), "is_main_result": output.is_main}
        case Failure():
            return {
                "type": "error",
                "name": output.name,
                "value": output.value,
                "traceback": output.traceback,
            }
        case Count():
            return {"type": "number_of_executions", "execution_count": output.number}
        case Plain():
            return {"type": output.type}


def to_result(bundle: dict[str, Any]) -> dict[str, Any]:
    """The named fields of a MIME bundle; what has no name goes to `extra`. Absent stays absent."""
    result: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for mime, value in bundle.items():
        if value is None:
            continue
        if mime == "text/plain":
            result["text"] = _without_quotes(_joined(value))
        elif mime in _FIELDS:
            is_structure = mime in ("application/json", "e2b/data", "e2b/chart")
            content = value if is_structure else _joined(value)
            if mime in ("image/png", "image/jpeg"):
                content = content.strip()
            result[_FIELDS[mime]] = content
        else:
            extra[mime] = value
    result["extra"] = extra
    return result


def _joined(value: Any) -> str:
    if isinstance(value, list):  # some kernels send text as a list of lines
        return "".join(str(item) for item in value)
    return value if isinstance(value, str) else str(value)


def _without_quotes(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return text


def _dumps(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode("ascii")
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False).encode("ascii")


def _finite(value: Any) -> Any:
    """The same with "nan", "inf" and "-inf" for the numbers that JSON has no form for."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
