"""The grammar of template references: `[namespace/]name[:tag]`. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from config import ids
from config.errors import InvalidArgument

DEFAULT_TAG = "default"

_NAME = re.compile(r"[a-z0-9-_]{1,128}")
_NAMESPACE = re.compile(r"[a-z0-9-_]{1,64}")
_TAG = re.compile(r"[a-z0-9-_.]{1,128}")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """`tag` is None when none was written; `default` counts as none."""

    namespace: str | None
    name: str
    tag: str | None

    @property
    def without_tag(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace is not None else self.name

    def __str__(self) -> str:
        return self.without_tag + (f":{self.tag}" if self.tag else "")


def parse_reference(raw: str) -> Reference:
    """Raises: InvalidArgument naming the part that is wrong."""
    text = raw.strip().lower()
    path, colon, tag = text.partition(":")
    namespace, slash, name = path.rpartition("/")
    if slash and not _NAMESPACE.fullmatch(namespace):
        raise InvalidArgument(f"invalid namespace: {_shown(namespace)}")
    if not _NAME.fullmatch(name):
        raise InvalidArgument(f"invalid template ID: {_shown(name)}")
    if colon:
        check_tag(tag)
    return Reference(
        namespace=namespace if slash else None,
        name=name,
        tag=tag if colon and tag != DEFAULT_TAG else None,
    )


def check_tag(tag: str) -> None:
    """Raises: InvalidArgument."""
    if not _TAG.fullmatch(tag):
        raise InvalidArgument(f"invalid tag: {_shown(tag)}")


def normalized_tags(raw: list[str]) -> list[str]:
    """Tags to assign: lower-case, checked, each once, in their order. Raises: InvalidArgument."""
    tags = []
    for item in raw:
        tag = item.strip().lower()
        if not _TAG.fullmatch(tag):
            raise InvalidArgument(f"Invalid tag: {_shown(item)}")
        if ids.parse_uuid(tag) is not None:
            raise InvalidArgument(f"Invalid tag: {_shown(item)}: tag cannot be a UUID")
        if tag not in tags:
            tags.append(tag)
    return tags


def _shown(text: str) -> str:
    return text if len(text) <= 100 else text[:100] + "…"
