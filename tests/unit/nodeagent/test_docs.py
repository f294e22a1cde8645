"""The reference page knows every setting and every route."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs/reference/agent-api.md").read_text()


def test_every_setting_is_documented():
    names = set(re.findall(r'"(SANDLOT_\w+)"', (ROOT / "nodeagent/settings.py").read_text()))
    assert names
    assert {name for name in names if f"`{name}`" not in PAGE} == set()


def test_every_route_of_the_contract_is_documented():
    contract = (ROOT / "nodeagent/wire.py").read_text()
    routes = re.findall(r"^    (GET|PUT|POST|DELETE) +(/v1/\S+)", contract, re.MULTILINE)
    assert len(routes) > 10
    missing = [
        f"{method} {path}"
        for method, path in routes
        if f"`{method} {path.partition('?')[0]}" not in PAGE
    ]
    assert missing == []
