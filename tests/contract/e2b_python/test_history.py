"""What is told of a sandbox's past: metrics and logs."""

from __future__ import annotations

import datetime
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest
from e2b import Sandbox


def get(path: str, **query: Any) -> Any:
    """From the REST API by hand: the SDK has no call for these."""
    url = f"{os.environ['E2B_API_URL']}{path}?{urllib.parse.urlencode(query)}"
    request = urllib.request.Request(url, headers={"X-API-Key": os.environ["E2B_API_KEY"]})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def samples_of(sandbox: Sandbox, seconds: float = 30) -> list[Any]:
    deadline = time.monotonic() + seconds
    while not (samples := sandbox.get_metrics()):
        assert time.monotonic() < deadline, "no sample came"
        time.sleep(0.5)
    return samples


def test_metrics_come_soon_and_in_the_range_asked_for(shared: Sandbox) -> None:
    started = shared.get_info().started_at
    sample = samples_of(shared)[0]
    assert sample.cpu_count > 0
    assert 0 <= sample.cpu_used_pct <= 100 * sample.cpu_count
    assert 0 < sample.mem_used < sample.mem_total
    assert 0 <= sample.disk_used < sample.disk_total
    now = datetime.datetime.now(datetime.UTC)
    slack = datetime.timedelta(seconds=10)
    for item in shared.get_metrics(start=started, end=now):
        assert started - slack <= item.timestamp <= now + slack
    hour = datetime.timedelta(hours=1)
    assert shared.get_metrics(start=started - hour, end=started - hour / 2) == []


def test_the_latest_sample_of_several(shared: Sandbox, sandbox: Sandbox) -> None:
    samples_of(shared)
    samples_of(sandbox)
    ids = [shared.sandbox_id, sandbox.sandbox_id]
    found = get("/sandboxes/metrics", sandbox_ids=",".join([*ids, "nosuchsandbox0000000"]))
    assert sorted(found["sandboxes"]) == sorted(ids)
    with pytest.raises(urllib.error.HTTPError) as error:
        get("/sandboxes/metrics", sandbox_ids=",".join(f"i{n:019}" for n in range(101)))
    assert error.value.code == 400


def test_the_life_of_a_sandbox_is_in_its_logs() -> None:
    sandbox = Sandbox.create(timeout=60)
    sandbox.commands.run("exit 0")
    sandbox.pause()
    Sandbox.connect(sandbox.sandbox_id, timeout=60)
    sandbox.kill()

    wanted = ["started", "paused", "resumed", "ended"]
    deadline = time.monotonic() + 20
    while True:
        entries = get(f"/v2/sandboxes/{sandbox.sandbox_id}/logs", direction="forward")["logs"]
        told = [entry["fields"].get("event") for entry in entries]
        if [kind for kind in told if kind in wanted] == wanted:
            break
        assert time.monotonic() < deadline, told
        time.sleep(0.2)
    messages = [entry["message"] for entry in entries]
    assert "Process started" in messages
    assert "Process ended" in messages
    assert [entry["timestamp"] for entry in entries] == sorted(
        entry["timestamp"] for entry in entries
    )
    ended = entries[-1]
    assert ended["fields"]["reason"] == "killed"

    older = get(f"/sandboxes/{sandbox.sandbox_id}/logs")
    lines = [json.loads(item["line"]) for item in older["logs"]]
    assert {"level", "message", "logger"} <= set(lines[0])
    assert len(older["logEntries"]) == len(lines) == len(entries)
    assert get("/v2/sandboxes/nosuchsandbox0000000/logs") == {"logs": []}
