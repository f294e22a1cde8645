"""What a browser remembers for a person: the theme. A cookie: signed-out pages have it too."""

from __future__ import annotations

from django.http import HttpRequest

THEME_COOKIE = "sandlot_theme"
THEME_MAX_AGE_SECONDS = 365 * 86400
THEMES = (("light", "Light", "sun"), ("dark", "Dark", "moon"), ("system", "Auto", "monitor"))


def theme_of(request: HttpRequest) -> str:
    theme = request.COOKIES.get(THEME_COOKIE, "system")
    return theme if theme in {value for value, _, _ in THEMES} else "system"
