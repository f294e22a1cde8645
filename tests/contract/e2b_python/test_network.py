"""Network options, as far as they can be seen without an internet: rules hold, doors are shut.

Which addresses are really reached is tested with machines of our own in network namespaces, in
tests/integration/nodeagent/test_isolation.py.
"""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request

import pytest
from e2b import ALL_TRAFFIC, Sandbox, SandboxException

# How fast bash's connect fails tells a refusal (our rule) from silence (nobody there).
CONNECT = "timeout 3 bash -c '</dev/tcp/{address}/9' 2>&1; echo $?"


def refused_at_once(sandbox: Sandbox, address: str) -> bool:
    began = time.monotonic()
    out = sandbox.commands.run(CONNECT.format(address=address)).stdout
    return "refused" in out and time.monotonic() - began < 2.5


def ask(sandbox: Sandbox, port: int, **headers: str) -> tuple[int, str]:
    request = urllib.request.Request(
        os.environ["E2B_SANDBOX_URL"] + "/",
        headers={"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": str(port), **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_without_internet_every_connection_is_refused() -> None:
    with Sandbox.create(timeout=60, allow_internet_access=False) as sandbox:
        assert refused_at_once(sandbox, "11.99.1.1")
        assert refused_at_once(sandbox, "8.8.8.8")
        assert sandbox.commands.run("echo still works").stdout == "still works\n"


def test_rules_are_shown_and_updated_as_a_whole() -> None:
    network = {"deny_out": ["11.99.1.0/24"], "allow_out": ["11.99.1.7"]}
    with Sandbox.create(timeout=60, network=network) as sandbox:
        shown = sandbox.get_info().network
        assert shown["deny_out"] == ["11.99.1.0/24"]
        assert shown["allow_out"] == ["11.99.1.7"]
        assert refused_at_once(sandbox, "11.99.1.1")

        sandbox.update_network({"deny_out": ["11.99.2.2"]})
        assert refused_at_once(sandbox, "11.99.2.2")
        shown = sandbox.get_info().network
        assert shown["deny_out"] == ["11.99.2.2"]
        assert not shown.get("allow_out")

        sandbox.update_network({"deny_out": [ALL_TRAFFIC]})
        assert refused_at_once(sandbox, "11.99.3.3")

        # Rules live on through a pause.
        sandbox.pause()
        again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
        assert refused_at_once(again, "11.99.3.3")
        sandbox.pause(keep_memory=False)
        again = Sandbox.connect(sandbox.sandbox_id, timeout=60)
        assert refused_at_once(again, "11.99.3.3")
        # And a fork has them from its first instruction.
        (fork,) = sandbox.fork()
        assert refused_at_once(fork, "11.99.3.3")
        fork.kill()


@pytest.mark.parametrize(
    "network",
    [
        {"deny_out": ["not-an-address"]},
        {"deny_out": ["::/0"]},
        {"allow_out": ["example.com"]},
        {"allow_out": ["300.1.1.1"]},
        {"rules": {"example.com": [{"transform": {"headers": {"X-A": "b"}}}]}},
        {"egress_proxy": {"address": "proxy.example.com:1080"}},
        {"mask_request_host": "not a host"},
    ],
)
def test_what_cannot_be_kept_is_refused(network: dict) -> None:
    before = len(Sandbox.list().next_items())
    with pytest.raises(SandboxException):
        Sandbox.create(timeout=60, network=network)
    assert len(Sandbox.list().next_items()) == before


def test_a_refused_update_changes_nothing() -> None:
    with Sandbox.create(timeout=60, network={"deny_out": ["11.99.1.1"]}) as sandbox:
        with pytest.raises(SandboxException):
            sandbox.update_network({"deny_out": ["nowhere"]})
        assert sandbox.get_info().network["deny_out"] == ["11.99.1.1"]
        assert refused_at_once(sandbox, "11.99.1.1")


def test_private_ports_open_with_the_token_alone() -> None:
    with Sandbox.create(timeout=60, network={"allow_public_traffic": False}) as sandbox:
        token = str(sandbox.traffic_access_token)
        sandbox.files.write("/tmp/www/index.html", "private")
        sandbox.commands.run("python -m http.server 8421 --directory /tmp/www", background=True)
        deadline = time.monotonic() + 15
        while (answer := ask(sandbox, 8421, **{"e2b-traffic-access-token": token}))[0] == 502:
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)
        assert answer == (200, "private")
        status, text = ask(sandbox, 8421)
        assert (status, "is missing" in text) == (403, True)
        status, text = ask(sandbox, 8421, **{"e2b-traffic-access-token": "wrong"})
        assert (status, "is invalid" in text) == (403, True)


def test_a_masked_host_is_what_the_server_sees() -> None:
    network = {"mask_request_host": "inner.example.com:${PORT}"}
    echo = (
        "from http.server import *\n"
        "class H(BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers()\n"
        "        self.wfile.write(self.headers['Host'].encode())\n"
        "HTTPServer(('127.0.0.1', 8422), H).serve_forever()\n"
    )
    with Sandbox.create(timeout=60, network=network) as sandbox:
        sandbox.files.write("/tmp/echo.py", echo)
        sandbox.commands.run("python /tmp/echo.py", background=True)
        deadline = time.monotonic() + 15
        while (answer := ask(sandbox, 8422))[0] == 502:
            assert time.monotonic() < deadline, answer
            time.sleep(0.05)
        assert answer == (200, "inner.example.com:8422")


def test_a_neighbour_is_out_of_reach() -> None:
    with Sandbox.create(timeout=60) as one, Sandbox.create(timeout=60) as two:
        address = two.commands.run("hostname -I").stdout.split()[0]
        two.commands.run("python -m http.server 9", background=True, user="root")
        out = one.commands.run(CONNECT.format(address=address)).stdout
        assert out.strip().splitlines()[-1] != "0"
