from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest
from e2b import Sandbox


def ask(sandbox: Sandbox, port: int, *, by: str, method: str = "GET") -> tuple[int, bytes]:
    """Ask a port of the sandbox through the gateway, named by a header or by the host name."""
    gateway = os.environ["E2B_SANDBOX_URL"]
    if by == "header":
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port)}
    else:
        place = urlsplit(gateway)
        headers = {"Host": f"{sandbox.get_host(port)}:{place.port}"}
    request = urllib.request.Request(f"{gateway}/", headers=headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


@pytest.mark.parametrize("by", ["header", "host"])
def test_a_server_in_the_sandbox_answers_through_the_gateway(shared: Sandbox, by: str) -> None:
    port = {"header": 8311, "host": 8312}[by]
    shared.files.write(f"/tmp/www{port}/index.html", "served")
    command = f"python -m http.server {port} --directory /tmp/www{port} --bind 127.0.0.1"
    server = shared.commands.run(command, background=True)
    deadline = time.monotonic() + 10
    while (answer := ask(shared, port, by=by))[0] == 502:
        assert time.monotonic() < deadline, answer
        time.sleep(0.05)
    assert answer == (200, b"served")
    server.kill()


def test_a_port_where_nothing_listens_is_a_502(shared: Sandbox) -> None:
    status, body = ask(shared, 8399, by="header")
    assert status == 502
    assert shared.sandbox_id.encode() in body


def test_a_dead_sandbox_is_a_502() -> None:
    sandbox = Sandbox.create()
    sandbox.kill()
    assert ask(sandbox, 8000, by="header")[0] == 502
    assert ask(sandbox, 8000, by="host")[0] == 502
