import json

import pytest

from nodeagent import wire
from nodeagent.wire import (
    CreateSandbox,
    EventKind,
    Heartbeat,
    NetworkConfig,
    NodeEvent,
    NodeSandboxState,
    NodeStatus,
    SandboxState,
)
from tests.unit.nodeagent.fakes import create_spec


def through_json(message):
    return wire.decode(type(message), json.loads(json.dumps(wire.encode(message))))


def test_a_create_survives_the_wire():
    spec = create_spec(
        env_vars={"A": "ü"},
        envd_access_token="t",
        network=NetworkConfig(allow_internet_access=False, allow_out=["1.1.1.1"]),
    )
    assert through_json(spec) == spec


def test_a_heartbeat_survives_the_wire():
    heartbeat = Heartbeat(
        node=NodeStatus(
            node_id="n", version="1", api_version=1, api_url="a", gateway_url="g", started_at=1.5,
            cpu_count=2, memory_mb=1, memory_available_mb=1, disk_total_mb=1, disk_available_mb=1,
            max_sandboxes=3,
        ),
        sandboxes=[
            SandboxState(
                sandbox_id="i", state=NodeSandboxState.PAUSED,
                started_at=1.0, end_at=2.0, paused_at=2.0,
            )
        ],
        events=[NodeEvent(seq=1, kind=EventKind.ENDED, sandbox_id="i", at=1.0, data={"a": [1]})],
    )  # fmt: skip
    assert through_json(heartbeat) == heartbeat


def test_fields_of_a_newer_peer_are_ignored():
    raw = wire.encode(create_spec())
    raw["invented_later"] = 1
    assert wire.decode(CreateSandbox, raw) == create_spec()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sandbox_id", None),
        ("sandbox_id", 7),
        ("cpu_count", "2"),
        ("cpu_count", True),
        ("timeout_seconds", "soon"),
        ("env_vars", ["A"]),
        ("env_vars", {"A": 1}),
        ("on_timeout", "explode"),
        ("network", []),
    ],
)
def test_a_wrong_type_is_named(field, value):
    raw = wire.encode(create_spec())
    raw[field] = value
    with pytest.raises(ValueError, match=field if field != "on_timeout" else "explode"):
        wire.decode(CreateSandbox, raw)


def test_a_missing_field_is_named():
    raw = wire.encode(create_spec())
    del raw["image"]
    with pytest.raises(ValueError, match=r"image: missing"):
        wire.decode(CreateSandbox, raw)
