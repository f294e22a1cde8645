"""A real sandbox on a real node shows up on the bill."""

from __future__ import annotations

import time
from decimal import Decimal

import httpx
import pytest

from tests.stack import Stack


@pytest.fixture
def api(stack: Stack):
    key = stack.env("meter@example.com")["E2B_API_KEY"]
    with httpx.Client(base_url=stack.web_url, headers={"X-API-Key": key}, timeout=60) as client:
        yield client


def test_a_sandbox_is_metered_from_its_start_to_its_kill(api):
    made = api.post("/sandboxes", json={"templateID": "base", "timeout": 120})
    assert made.status_code == 201, made.text
    sandbox_id = made.json()["sandboxID"]
    live = {row["sandboxID"]: row for row in api.get("/v1/billing/live").json()}
    assert Decimal(live[sandbox_id]["perSecond"]) > 0
    time.sleep(1.1)  # what is measured is time
    assert api.post(f"/sandboxes/{sandbox_id}/pause").status_code == 204
    assert api.post(f"/sandboxes/{sandbox_id}/connect", json={"timeout": 60}).status_code == 201
    assert api.delete(f"/sandboxes/{sandbox_id}").status_code == 204
    rows = api.get("/v1/billing/intervals", params={"sandboxID": sandbox_id}).json()
    assert [row["state"] for row in rows] == ["running", "paused", "running"]
    assert all(row["ended_at"] for row in rows)
    assert Decimal(rows[0]["cost"]) > Decimal("0.00003")
    assert Decimal(rows[1]["cost"]) == 0
    assert sandbox_id not in {row["sandboxID"] for row in api.get("/v1/billing/live").json()}
