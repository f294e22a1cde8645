"""What a download looks like on the wire: encoding, type, name, ranges, conditions. Pure."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping
from email.utils import formatdate, parsedate_to_datetime
from urllib.parse import quote

from nodeagent.errors import AgentError

MAX_RANGES = 16
_TOKEN = re.compile(r"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")
_RANGE = re.compile(r"^\s*(\d{0,18})\s*-\s*(\d{0,18})\s*$")
_TYPES = mimetypes.MimeTypes()  # not the machine's own tables: the same answer everywhere
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b\x08", "application/x-gzip"),
)
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")


class NotAcceptable(AgentError):
    http_status, error_code = 406, "not_acceptable"


def choose_encoding(accept: str | None, *, needs_identity: bool) -> str:
    """ "gzip" or "identity". Raises: NotAcceptable."""
    weights = _parse_accept(accept or "")
    refused = {name for name, weight in weights if weight == 0}
    identity_refused = "identity" in refused or (
        "*" in refused and not any(name == "identity" for name, _ in weights)
    )
    if needs_identity:
        if identity_refused:
            raise NotAcceptable("identity encoding not acceptable for Range or conditional request")
        return "identity"
    for name, weight in sorted(weights, key=lambda item: -item[1]):
        if weight == 0:
            break
        if name in ("gzip", "identity"):
            return name
        if name == "*":
            return "gzip" if identity_refused else "identity"
    if identity_refused:
        raise NotAcceptable(
            "error parsing Accept-Encoding: no acceptable encoding found, supported: [gzip]"
        )
    return "identity"


def _parse_accept(accept: str) -> list[tuple[str, float]]:
    weights = []
    for item in accept.split(",")[:64]:
        name, _, parameters = item.partition(";")
        weight = 1.0
        for parameter in parameters.split(";"):
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                try:
                    weight = min(max(float(value), 0.0), 1.0)
                except ValueError:
                    weight = 0.0
        if name.strip():
            weights.append((name.strip().lower(), weight))
    return weights


def content_disposition(name: str) -> str:
    """As Go's mime.FormatMediaType("inline", filename) writes it."""
    if _TOKEN.match(name):
        return f"inline; filename={name}"
    if all(" " <= char <= "~" or char == "\t" for char in name):
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{escaped}"'
    raw = name.encode("utf-8", "surrogateescape")
    return f"inline; filename*=utf-8''{quote(raw, safe='!#$&+-.^_`|~')}"


def type_by_name(name: str) -> str | None:
    kind, encoding = _TYPES.guess_type(name, strict=False)
    if encoding is not None:
        return "application/gzip" if encoding == "gzip" else None
    if kind is not None and kind.startswith("text/"):
        return f"{kind}; charset=utf-8"
    return kind


def type_by_content(start: bytes) -> str:
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    if _BINARY.search(start[:512]):
        return "application/octet-stream"
    return "text/plain; charset=utf-8"


def http_date(seconds: float) -> str:
    return formatdate(int(seconds), usegmt=True)


def precondition_status(headers: Mapping[str, str], modified_at: float) -> int | None:
    """304 or 412 when a conditional header says so. Files have no ETag."""
    modified = int(modified_at)
    if "if-match" in headers and headers["if-match"].strip() != "*":
        return 412
    unmodified_since = _date(headers.get("if-unmodified-since"))
    if "if-match" not in headers and unmodified_since is not None and modified > unmodified_since:
        return 412
    if "if-none-match" in headers:
        return 304 if headers["if-none-match"].strip() == "*" else None
    since = _date(headers.get("if-modified-since"))
    return 304 if since is not None and modified <= since else None


def wanted_ranges(
    headers: Mapping[str, str], size_bytes: int, modified_at: float
) -> list[tuple[int, int]] | None:
    """(offset, length) per range; None: the whole file; empty: none can be satisfied."""
    header = headers.get("range")
    if header is None:
        return None
    if "if-range" in headers and _date(headers["if-range"]) != int(modified_at):
        return None
    unit, equals, specs = header.partition("=")
    if unit.strip().lower() != "bytes" or not equals:
        return []
    ranges = []
    for spec in specs.split(","):
        if not spec.strip():
            continue
        found = _RANGE.match(spec)
        if not found or found.group(1) == found.group(2) == "":
            return []
        first, last = found.groups()
        if not first:
            length = min(int(last), size_bytes)
            start = size_bytes - length
        else:
            start = int(first)
            end = min(int(last), size_bytes - 1) if last else size_bytes - 1
            if last and int(last) < start:
                return []
            length = end - start + 1
        if start < size_bytes and length > 0:
            ranges.append((start, length))
    if len(ranges) > MAX_RANGES or sum(length for _, length in ranges) > size_bytes:
        return None  # more than the file itself: an attack or a mistake
    return ranges


def _date(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return int(parsedate_to_datetime(value).timestamp())
    except (TypeError, ValueError, OverflowError):
        return None
