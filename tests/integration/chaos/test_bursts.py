"""Many creates at once: each ends with a sandbox that works, or with an honest refusal."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.integration.chaos.conftest import Chaos


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_fifty_creates_at_once(chaos: Chaos) -> None:
    before = len(chaos.rows())
    futures = [chaos.begin("POST", "/sandboxes", templateID="base", timeout=300) for _ in range(50)]
    answers = [future.result(timeout=200) for future in futures]
    assert None not in answers
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {201, 429, 503}, statuses
    assert statuses[201] > 0
    for answer in answers:
        if answer.status_code != 201:
            assert answer.json()["message"]
            assert "Retry-After" in answer.headers or "Should-Retry" in answer.headers
    chaos.settle()
    rows = chaos.rows()[before:]
    assert Counter(row.state for row in rows)["running"] == statuses[201]
    for answer in answers:
        if answer.status_code == 201:
            assert chaos.shell(answer.json()["sandboxID"], "echo works") == "works"
