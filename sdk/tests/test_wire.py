from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_server import command_stream, envelope
from sandlot import InvalidArgument, SandlotError, Unauthenticated, _wire
from sandlot._models import SandboxHandle

HANDLE = SandboxHandle(sandbox_id="i1", template_id="t", envd_version="0.6.13")


def resolve(**environ: str) -> _wire.Config:
    return _wire.Config.resolve(environ=environ)


def test_the_e2b_variables_are_the_fallback():
    config = resolve(E2B_API_KEY="e2b_0", E2B_DOMAIN="a.test", SANDLOT_DOMAIN="b.test")
    assert (config.api_key, config.api_url) == ("e2b_0", "https://api.b.test")
    assert config.envd_url(HANDLE) == "https://49983-i1.b.test"


def test_without_a_domain_it_is_this_machine():
    config = resolve(SANDLOT_API_KEY="e2b_0")
    assert config.api_url == "http://localhost:8000"
    assert config.envd_url(HANDLE) == "http://localhost:8001"


def test_given_urls_win():
    config = resolve(
        E2B_API_KEY="k", E2B_DOMAIN="d", SANDLOT_API_URL="http://x/", E2B_SANDBOX_URL="http://y/"
    )
    assert (config.api_url, config.envd_url(HANDLE)) == ("http://x", "http://y")


def test_no_key_is_said_before_any_request():
    with pytest.raises(Unauthenticated, match="SANDLOT_API_KEY"):
        resolve()


@pytest.mark.parametrize("timeout_seconds", [0, -1])
def test_timeouts_must_be_positive(timeout_seconds):
    with pytest.raises(InvalidArgument):
        _wire.Config.resolve(
            api_key="k", request_timeout_seconds=timeout_seconds, environ={"E2B_DOMAIN": "d"}
        )


def test_ids_are_one_path_segment():
    request = _wire.get_sandbox(resolve(E2B_API_KEY="k"), "../admin")
    assert request.url.endswith("/sandboxes/..%2Fadmin")


def test_events_may_be_cut_anywhere():
    data = b"".join(
        item if isinstance(item, bytes) else envelope(item)
        for item in command_stream(stdout=b"hi", code=1)
    )
    reader = _wire.EventReader()
    events = [event for byte in data for event in reader.feed(bytes([byte]))]
    assert events == [
        _wire.Started(9),
        _wire.Output("stdout", b"hi"),
        _wire.Ended(1, "exit status 1"),
    ]
    assert reader.is_complete


@pytest.mark.parametrize(
    "data",
    [b"\x00\xff\xff\xff\xff", b"\x01\x00\x00\x00\x02{}", b"\x00\x00\x00\x00\x01{", envelope([1])],
)
def test_bytes_off_the_protocol_are_refused(data):
    with pytest.raises(SandlotError):
        list(_wire.EventReader().feed(data))


def test_starting_a_command_is_never_replayed():
    request = _wire.start_command(
        resolve(E2B_API_KEY="k"),
        HANDLE,
        "x",
        envs=None,
        cwd=None,
        user=None,
        stdin=False,
        timeout_seconds=1,
    )
    busy = _wire.Reply(503, {"should-retry": "true"}, b"")
    assert _wire.retry_delay_seconds(request, busy, 0) is None
    assert _wire.retry_delay_seconds(request, None, 0) is not None


def test_sync_is_generated_from_async():
    script = Path(__file__).parent.parent / "scripts" / "unasync.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_it_needs_only_httpx():
    code = (
        "import sys; before = set(sys.modules); import httpx; known = set(sys.modules);"
        "import sandlot; print(sorted({m.split('.')[0] for m in set(sys.modules) - known}"
        " - set(sys.stdlib_module_names)))"
    )
    source = str(Path(__file__).parent.parent / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": source}
    )
    assert done.stdout.strip() == "['sandlot']", done.stderr
