"""The official SDKs over HTTPS with nothing but a key and a domain, as their own suites are run.

The API, the dashboard and every sandbox are names under one domain, on one port.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from ops import sdks, tls
from ops.services import free_port
from ops.shell import VENV
from tests.contract.outcomes import SuiteRun, python_cases, run_suite
from tests.contract.test_e2b_js import CASES as JS_CASES
from tests.contract.test_e2b_js import SUITE as JS_SUITE
from tests.stack import Stack

DOMAIN = "sandlot.localhost"
PYTHON_SUITE = Path(__file__).parent / "e2b_python"
PYTHON_FILES = ("test_commands", "test_files", "test_pty")
PYTHON_CASES = [
    case for case in python_cases(PYTHON_SUITE) if case.partition("::")[0] in PYTHON_FILES
]


def why_no_names() -> str | None:
    try:
        socket.getaddrinfo(f"x.{DOMAIN}", 443)
    except OSError:
        return "*.localhost does not lead here: install libnss-myhostname"
    return None


pytestmark = [
    pytest.mark.stack,
    pytest.mark.docker,
    pytest.mark.skipif(why_no_names() is not None, reason=str(why_no_names())),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make tls` makes."""
    folder = tmp_path_factory.mktemp("tls")
    tls.ensure_certificate(folder, DOMAIN)
    return folder


@pytest.fixture(scope="module")
def secure(folder: Path) -> Iterator[Stack]:
    """A stack of its own that serves HTTPS."""
    settings = {
        "SANDLOT_DOMAIN": DOMAIN,
        "SANDLOT_TLS_PORT": str(free_port()),
        "SANDLOT_TLS_CERT": str(folder / "server.crt"),
        "SANDLOT_TLS_KEY": str(folder / "server.key"),
    }
    with Stack.start(**settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def env(secure: Stack, folder: Path) -> dict[str, str]:
    """The environment of an SDK: a key, a domain, and whom to trust."""
    told = secure.env()
    assert set(told) == {"E2B_API_KEY", "E2B_DOMAIN"}
    inherited = {name: value for name, value in os.environ.items() if name[:4] != "E2B_"}
    trust = {
        "SSL_CERT_FILE": str(folder / "bundle.crt"),
        "NODE_EXTRA_CA_CERTS": str(folder / "ca.crt"),
    }
    return {**inherited, **told, **trust}


@pytest.fixture(scope="module")
def python_suite(env, tmp_path_factory) -> SuiteRun:
    report = tmp_path_factory.mktemp("e2b-python-tls") / "report.xml"
    python = sdks.ensure_python(sdks.PINNED_PYTHON) / "bin/python"
    words = [str(python), "-m", "pytest", "-q"]
    words += ["-c", "pytest.ini", "--rootdir", ".", "--confcutdir", "."]
    words += ["-o", "junit_family=xunit1", f"--junitxml={report}"]
    words += [f"{name}.py" for name in PYTHON_FILES]
    return run_suite(words, cwd=PYTHON_SUITE, env=env, report=report)


@pytest.fixture(scope="module")
def js_suite(env, tmp_path_factory) -> SuiteRun:
    report = tmp_path_factory.mktemp("e2b-js-tls") / "report.xml"
    words = [str(VENV / "bin/node"), "--test", "--test-timeout=60000", "--test-reporter=junit"]
    words += [f"--test-reporter-destination={report}", str(JS_SUITE)]
    return run_suite(words, cwd=sdks.ensure_js(sdks.newest_js()), env=env, report=report)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", PYTHON_CASES)
def test_e2b_python_over_tls(python_suite: SuiteRun, case: str) -> None:
    python_suite.check(case)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", JS_CASES)
def test_e2b_js_over_tls(js_suite: SuiteRun, case: str) -> None:
    js_suite.check(f"test::{case}")


HOSTS = """
import json, time
import httpx
from e2b import Sandbox, TimeoutException

found = {}
sandbox = Sandbox.create(timeout=120)
client = httpx.Client(verify=__import__("ssl").create_default_context(), timeout=20)
sandbox.files.write("/tmp/www/index.html", "served")
server = sandbox.commands.run(
    "python3 -m http.server 8123 --bind 127.0.0.1 --directory /tmp/www", background=True
)
url = f"https://{sandbox.get_host(8123)}/"
deadline = time.monotonic() + 15
while (answer := client.get(url)).status_code == 502 and time.monotonic() < deadline:
    time.sleep(0.1)
found["port"] = [answer.status_code, answer.text]
closed = client.get(f"https://{sandbox.get_host(8999)}/")
found["closed"] = [closed.status_code, closed.json()["message"]]
link = sandbox.upload_url("/tmp/signed.txt")
found["upload"] = client.post(link, files={"file": b"by link"}).status_code
found["download"] = client.get(sandbox.download_url("/tmp/signed.txt")).text
found["running"] = [sandbox.is_running()]
sleeper = sandbox.commands.run("echo begun; sleep 300", background=True)
assert next(iter(sleeper))[0] == "begun\\n"
sandbox.kill()
try:
    sleeper.wait()
except TimeoutException as error:
    found["told"] = "sandbox was killed or reached its end of life" in str(error)
found["running"].append(sandbox.is_running())
gone = client.get(url)
found["gone"] = [gone.status_code, gone.json()["message"], gone.json()["code"]]
found["id"] = sandbox.sandbox_id.startswith(gone.json()["sandboxId"])
print(json.dumps(found))
"""


@pytest.mark.parametrize("version", ["pinned", "newest"])
def test_every_host_of_the_domain_leads_somewhere(env: dict[str, str], version: str) -> None:
    wanted = sdks.PINNED_PYTHON if version == "pinned" else sdks.newest_python()
    python = sdks.ensure_python(wanted) / "bin/python"
    done = subprocess.run(
        [python, "-c", HOSTS],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "port": [200, "served"],
        "closed": [502, "The sandbox is running but port is not open"],
        "upload": 200,
        "download": "by link",
        "running": [True, False],
        "told": True,
        "gone": [502, "The sandbox was not found", 502],
        "id": True,
    }


def test_the_dashboard_and_its_sockets_are_at_the_domain(
    secure: Stack, folder: Path, env: dict[str, str]
) -> None:
    secure.manage("ensure_account", "--email", "tls@example.com", "--password", "p4ssw0rd-long")
    authority = str(folder / "ca.crt")
    url = f"https://{env['E2B_DOMAIN']}"
    with httpx.Client(
        base_url=url,
        verify=ssl.create_default_context(cafile=authority),
        http2=True,
        timeout=30,
        follow_redirects=True,
    ) as browser:
        form = browser.get("/accounts/login/")
        assert form.http_version == "HTTP/2"
        answer = browser.post(
            "/accounts/login/",
            data={
                "login": "tls@example.com",
                "password": "p4ssw0rd-long",
                "csrfmiddlewaretoken": browser.cookies["csrftoken"],
            },
            headers={"Origin": url, "Referer": f"{url}/accounts/login/"},
        )
        assert answer.status_code == 200
        found = re.search(r"/ws/teams/[^/\"]+/live", answer.text)
        assert found, answer.text
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    with connect(
        f"wss://{env['E2B_DOMAIN']}{found[0]}",
        ssl=ssl.create_default_context(cafile=authority),
        origin=url,  # type: ignore[arg-type]
        additional_headers={"Cookie": cookies},
        open_timeout=30,
    ) as socket_of_page:
        assert socket_of_page.response is not None
        assert socket_of_page.response.status_code == 101
