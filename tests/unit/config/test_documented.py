"""What can be set or called is written down."""

import re
from pathlib import Path

from django.urls import URLPattern, URLResolver, get_resolver

from config.paths import is_api_path

ROOT = Path(__file__).resolve().parents[3]


def test_every_setting_is_documented():
    source = (ROOT / "config/settings.py").read_text()
    names = set(re.findall(r'env_(?:str|bool|int|list|secret)\(\s*"([A-Z_0-9]+)"', source))
    documented = (ROOT / "docs/reference/settings.md").read_text()
    assert not {name for name in names if f"`{name}`" not in documented}


def routes(patterns, prefix=""):
    for pattern in patterns:
        path = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, path)
        elif isinstance(pattern, URLPattern):
            yield path


def shape(path):
    """A path with its parameters made alike."""
    return re.sub(r"<[^>]+>|\{[^}]+\}", "{}", path)


def test_every_route_of_the_api_is_documented():
    text = "".join(page.read_text() for page in (ROOT / "docs/reference").glob("*.md"))
    documented = {shape(path) for path in re.findall(r"`(?:[A-Z]+ )?(/[^` ?]*)`", text)}
    called = {f"/{path}" for path in routes(get_resolver().url_patterns)}
    ours = {shape(path) for path in called if is_api_path(path)}
    # One sentence for each of the first; billing's own page tells of its routes.
    covered = ("/volumes", "/secrets", "/internal/", "/v1/billing")
    missing = {path for path in ours - documented if not path.startswith(covered)}
    assert not missing, sorted(missing)
