"""Template tags of the dashboard: icons, states, times, form controls."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.forms import BoundField
from django.template import Context
from django.templatetags.static import static
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from frontend.preferences import THEMES, theme_of

register = template.Library()

CONTROL_CLASSES = {"select": "select", "selectmultiple": "select", "textarea": "textarea"}
PLAIN_INPUTS = {"checkbox", "radioselect", "checkboxselectmultiple"}

# state: (icon, word, tone)
STATES: dict[str, tuple[str, str, str]] = {
    "starting": ("loader", "Starting", "blue"),
    "running": ("circle-play", "Running", "green"),
    "pausing": ("loader", "Pausing", "violet"),
    "paused": ("snowflake", "Paused", "violet"),
    "resuming": ("loader", "Resuming", "blue"),
    "snapshotting": ("camera", "Saving", "violet"),
    "killing": ("loader", "Stopping", "grey"),
    "ended": ("circle-stop", "Ended", "grey"),
    "error": ("circle-x", "Failed", "red"),
    "waiting": ("clock", "Waiting", "grey"),
    "building": ("hammer", "Building", "blue"),
    "ready": ("circle-check", "Ready", "green"),
    "connecting": ("loader", "Connecting", "blue"),
    "unhealthy": ("circle-x", "Not answering", "red"),
    "standby": ("circle-dashed", "Standby", "grey"),
    "draining": ("log-out", "Draining", "amber"),
}

END_REASONS = {
    "killed": "killed by its owner",
    "timeout": "reached its time limit",
    "oom": "ran out of memory",
    "exited": "its container stopped by itself",
    "node_lost": "its node stopped answering",
    "start_failed": "it could not start",
    "out_of_credit": "the team ran out of credit",
    "unknown_to_control_plane": "the node held it, the control plane did not know it",
}


@register.simple_tag
def icon(name: str, css: str = "") -> SafeString:
    """One icon of the sprite; decorative, so a label stands beside it or on its button."""
    return format_html(
        '<svg class="icon {}" aria-hidden="true"><use href="{}#{}"></use></svg>',
        css,
        static("frontend/icons.svg"),
        name,
    )


@register.simple_tag
def state(value: object) -> SafeString:
    """A state as icon and word, never colour alone."""
    name, word, tone = STATES.get(str(value).lower(), ("circle-dashed", str(value).title(), "grey"))
    return format_html(
        '<span class="state state-{}">{}{}</span>',
        tone,
        icon(name, "spin" if name == "loader" else ""),
        word,
    )


@register.filter
def end_reason(value: object) -> str:
    return END_REASONS.get(str(value), str(value).replace("_", " "))


@register.filter
def span(seconds: float | int | None, units_shown: int = 2) -> str:
    """A length of time in at most two units: `45 s`, `12 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds is None:
        return "—"
    whole = max(0, int(seconds))
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for unit, size in units:
        amount, whole = divmod(whole, size)
        if amount or (unit == "s" and not parts):
            parts.append(f"{amount} {unit}")
        elif parts:
            break
    return " ".join(parts[:units_shown])


@register.simple_tag
def since(at: datetime | None) -> SafeString:
    """Time since `at`, kept current by the browser: `12 min`."""
    return _clock(at, "since", (timezone.now() - at).total_seconds() if at else None)


@register.simple_tag
def until(at: datetime | None) -> SafeString:
    """Time left until `at`, kept current by the browser."""
    return _clock(at, "until", (at - timezone.now()).total_seconds() if at else None)


@register.simple_tag
def ago(at: datetime | None, never: str = "never") -> SafeString:
    """`12 min ago`, with the full time as its title."""
    if at is None:
        return format_html('<span class="faint">{}</span>', never)
    return _clock(at, "ago", (timezone.now() - at).total_seconds())


def _clock(at: datetime | None, kind: str, seconds: float | None) -> SafeString:
    if at is None or seconds is None:
        return format_html('<span class="faint">{}</span>', "—")
    words = span(seconds, 1 if kind == "ago" else 2)
    if kind == "ago":
        words = "just now" if seconds < 5 else f"{words} ago"
    return format_html(
        '<time datetime="{}" data-clock="{}" title="{} UTC">{}</time>',
        at.isoformat(),
        kind,
        at.strftime("%Y-%m-%d %H:%M:%S"),
        words,
    )


@register.filter
def mebibytes(value: float | int | None) -> str:
    """A size given in MiB: `512 MB`, `2 GB`, `1.5 GB`."""
    if value is None:
        return "—"
    if value < 1024:
        return f"{value:g} MB"
    return f"{value / 1024:.1f}".rstrip("0").rstrip(".") + " GB"


@register.filter
def size(value: float | int | None) -> str:
    """A size given in bytes, in steps of 1024."""
    if value is None:
        return "—"
    amount = float(value)
    for unit in ("B", "KB", "MB", "GB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TB"


@register.simple_tag
def control(field: BoundField, **attributes: Any) -> SafeString:
    """A form field's control, styled, and tied to its help text and errors."""
    kind = field.widget_type
    attrs = {name.replace("_", "-"): value for name, value in attributes.items()}
    if kind not in PLAIN_INPUTS:
        attrs["class"] = CONTROL_CLASSES.get(kind, "input")
    described = [f"{field.auto_id}_help"] if field.help_text else []
    if field.errors:
        attrs["aria-invalid"] = "true"
        described.append(f"{field.auto_id}_errors")
    if described:
        attrs["aria-describedby"] = " ".join(described)
    # Our labels are visible; allauth's placeholders only repeat them.
    attrs.setdefault("placeholder", field.field.widget.attrs.get("data-placeholder", ""))
    return field.as_widget(attrs=attrs)


@register.simple_tag(takes_context=True)
def theme_attribute(context: Context) -> SafeString:
    """`data-theme` for <html>, so that the first paint has the right colours."""
    request = context.get("request")
    theme = theme_of(request) if request else "system"
    return format_html(' data-theme="{}"', theme) if theme != "system" else SafeString("")


@register.inclusion_tag("frontend/_theme.html", takes_context=True)
def theme_switch(context: Context) -> dict[str, Any]:
    request = context["request"]
    chosen = theme_of(request)
    return {
        "csrf_token": context.get("csrf_token"),
        "next": request.get_full_path(),
        "choices": [
            {"value": value, "label": label, "icon": icon_name, "pressed": value == chosen}
            for value, label, icon_name in THEMES
        ],
    }
