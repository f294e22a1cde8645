"""JSON on the C accelerators alone: the json package imports re and enum, 1.5 MB more in every
sandbox.
"""

from __future__ import annotations

from _json import encode_basestring, make_scanner

TYPE_CHECKING = False  # the typing module is large, and every sandbox would pay for it
if TYPE_CHECKING:
    from typing import Any


class _Rules:
    strict = False
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, str] = {}


_scan = make_scanner(_Rules())  # type: ignore[arg-type]


def loads(data: bytes) -> Any:
    """Raises: ValueError for anything but one JSON value without leading space."""
    text = data.decode("utf-8", "surrogatepass")
    try:
        value, end = _scan(text, 0)
    except StopIteration as error:
        raise ValueError("not JSON") from error
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def _encode(value: Any) -> str:
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_encode(str(k))}:{_encode(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([_encode(item) for item in value]) + "]"
    return repr(value)


def dumps(value: Any) -> bytes:
    """UTF-8 with no escapes but those JSON needs; what cannot be UTF-8 becomes U+FFFD, as in Go."""
    text = _encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace").encode()
