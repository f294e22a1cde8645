"""A part dies in the middle of a move. Nothing is lost, left over, or charged for nothing."""

from __future__ import annotations

from concurrent.futures import wait

import pytest

from tests.integration.chaos.conftest import Chaos

CREATE = {"templateID": "base", "timeout": 300}


def answers_of(futures) -> list:
    wait(futures, timeout=120)
    return [future.result() for future in futures]


@pytest.mark.parametrize("victim", ["agent", "web"])
def test_killed_in_the_middle_of_creates(chaos: Chaos, victim: str) -> None:
    """More creates than warm containers, so that some boot when it happens."""
    before = len(chaos.rows())
    futures = [chaos.begin("POST", "/sandboxes", **CREATE) for _ in range(6)]
    chaos.until(lambda: any(row.state == "starting" for row in chaos.rows()[before:]))

    chaos.stack.kill9(victim)

    answers = answers_of(futures)
    chaos.settle()
    rows = {row.sandbox_id: row for row in chaos.rows()[before:]}
    for answer in answers:
        if answer is not None and answer.status_code == 201:
            # Whoever was told "created" has a sandbox that works.
            sandbox_id = answer.json()["sandboxID"]
            assert rows[sandbox_id].state == "running"
            assert chaos.shell(sandbox_id, "echo works") == "works"
        elif answer is not None:
            assert answer.status_code in (500, 502, 503, 504), answer.text
            assert answer.json()["message"]
    refused = [row for row in rows.values() if row.state == "ended"]
    assert {row.end_reason for row in refused} <= {"start_failed"}
    assert all(row.end_detail for row in refused)
    assert chaos.order("POST", "/sandboxes", **CREATE).status_code == 201


@pytest.mark.parametrize(
    ("victim", "memory"),
    [
        ("agent", True),
        ("agent", False),
        pytest.param("web", True, marks=pytest.mark.slow),
        pytest.param("web", False, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_of_pauses(chaos: Chaos, victim: str, memory: bool) -> None:
    made = [chaos.create() for _ in range(3)]
    for sandbox_id in made:
        chaos.shell(sandbox_id, f"echo {sandbox_id} > /home/user/note; sync")
    futures = [chaos.begin("POST", f"/sandboxes/{item}/pause", memory=memory) for item in made]
    chaos.until(lambda: any(chaos.row(item).state in ("pausing", "paused") for item in made))

    chaos.stack.kill9(victim)

    answers = answers_of(futures)
    chaos.settle()
    for sandbox_id, answer in zip(made, answers, strict=True):
        if answer is not None and answer.status_code == 204:
            assert chaos.row(sandbox_id).state == "paused"
        connected = chaos.order("POST", f"/sandboxes/{sandbox_id}/connect", timeout=300)
        assert connected.status_code in (200, 201), connected.text
        assert chaos.shell(sandbox_id, "cat /home/user/note") == sandbox_id
    chaos.settle()


@pytest.mark.parametrize("victim", ["agent", pytest.param("web", marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_fork(chaos: Chaos, victim: str) -> None:
    origin = chaos.create()
    chaos.shell(origin, "echo origin > /home/user/note; sync")
    before = len(chaos.rows())
    future = chaos.begin("POST", f"/sandboxes/{origin}/fork", count=3, timeout=300)
    chaos.until(lambda: chaos.row(origin).state == "snapshotting" or len(chaos.rows()) > before)

    chaos.stack.kill9(victim)

    (answer,) = answers_of([future])
    chaos.settle()
    assert chaos.row(origin).state == "running"
    if answer is not None and answer.status_code == 201:
        for item in answer.json():
            assert set(item) in ({"sandbox"}, {"error"})
            if "sandbox" in item:
                assert chaos.shell(item["sandbox"]["sandboxID"], "cat /home/user/note") == "origin"
    again = chaos.order("POST", f"/sandboxes/{origin}/fork", count=1, timeout=60)
    assert again.status_code == 201, again.text
    assert "sandbox" in again.json()[0], again.text
    chaos.kill_all()
    chaos.settle()


def test_all_parts_killed_at_once(chaos: Chaos) -> None:
    running, paused = chaos.create(), chaos.create()
    chaos.shell(running, "echo here > /tmp/note")
    assert chaos.order("POST", f"/sandboxes/{paused}/pause").status_code == 204
    for name in ("worker", "web", "agent"):
        chaos.stack.kill9(name, wait=name == "agent")
    chaos.settle()
    assert chaos.shell(running, "cat /tmp/note") == "here"
    assert chaos.order("POST", f"/sandboxes/{paused}/connect", timeout=60).status_code == 201
