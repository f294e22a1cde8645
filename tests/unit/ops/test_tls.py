"""`make tls` and what follows from it."""

from __future__ import annotations

import ssl
import stat
import subprocess
from pathlib import Path

import pytest

from ops import tls
from ops.deployment import Deployment
from ops.shell import OpsError

DOMAIN = "sandlot.test"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state") / "tls"
    assert tls.ensure_certificate(folder, DOMAIN)
    return folder


def deployment(made: Path, **environ: str) -> Deployment:
    return Deployment.from_environment({"SANDLOT_STATE_DIR": str(made.parent), **environ})


def test_keys_are_for_their_owner_only(made: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.iterdir()}
    assert modes["ca.key"] == modes["server.key"] == 0o600
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert set(modes) == {
        *("ca.crt", "ca.key", "server.crt", "server.key", "bundle.crt", "domain"),
    }


@pytest.mark.parametrize(
    "name", [DOMAIN, f"api.{DOMAIN}", f"49983-abc.{DOMAIN}", "localhost", "127.0.0.1"]
)
def test_a_strict_client_that_trusts_the_authority_accepts_the_certificate(
    made: Path, name: str
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made / "server.crt", made / "server.key")
    client = ssl.create_default_context(cafile=str(made / "ca.crt"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    shake_hands(server, client, name)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, client, "elsewhere.test")


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> None:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server, server_hostname=name)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [near, far]
    while waiting:
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                continue


def test_a_repeat_changes_nothing_and_another_domain_keeps_the_authority(tmp_path: Path) -> None:
    folder = tmp_path / "tls"
    tls.ensure_certificate(folder, DOMAIN)
    first, authority = (folder / "server.crt").read_text(), (folder / "ca.crt").read_text()
    assert not tls.ensure_certificate(folder, DOMAIN)
    assert (folder / "server.crt").read_text() == first

    assert tls.ensure_certificate(folder, "other.test")
    assert (folder / "ca.crt").read_text() == authority
    assert (folder / "server.crt").read_text() != first
    checked = ["openssl", "verify", "-CAfile", folder / "ca.crt", folder / "server.crt"]
    subprocess.run(checked, check=True, capture_output=True)


@pytest.mark.parametrize("domain", ["localhost", "", "a b.test", "*.test", "-a.test", "1.2.3.4"])
def test_a_domain_that_cannot_have_a_wildcard_is_refused(tmp_path: Path, domain: str) -> None:
    with pytest.raises(OpsError, match="wildcard"):
        tls.ensure_certificate(tmp_path / "tls", domain)
    assert not (tmp_path / "tls").exists()


def test_what_was_made_is_used(made: Path) -> None:
    found = deployment(made, SANDLOT_TLS_PORT="8443")
    assert found.has_tls
    assert found.has_own_authority
    assert found.web_host == "127.0.0.1"
    assert found.ports["tls"] == 8443
    assert (found.web_url, found.api_url, found.gateway_url) == (
        f"https://{DOMAIN}:8443",
        f"https://api.{DOMAIN}:8443",
        f"https://sandbox.{DOMAIN}:8443",
    )
    environ = found.process_environ()
    assert environ["SANDLOT_DOMAIN"] == DOMAIN
    assert environ["SANDLOT_TLS_CERT"] == str(made / "server.crt")
    assert environ["SANDLOT_BEHIND_PROXY"] == "true"
    assert environ["SANDLOT_HSTS_SECONDS"] == "0"


def test_a_domain_may_carry_its_port(made: Path) -> None:
    found = deployment(made, SANDLOT_DOMAIN=f"{DOMAIN}:9443")
    assert (found.domain, found.tls_port) == (DOMAIN, 9443)
    assert found.client_domain == f"{DOMAIN}:9443"


def test_a_certificate_for_another_domain_is_not_used(made: Path) -> None:
    assert not deployment(made, SANDLOT_DOMAIN="other.test").has_tls


def test_ones_own_certificate_goes_first(made: Path) -> None:
    own = {"SANDLOT_TLS_CERT": "/x/cert.pem", "SANDLOT_TLS_KEY": "/x/key.pem"}
    found = deployment(made, **own)
    assert found.has_tls
    assert not found.has_own_authority
    assert "SANDLOT_HSTS_SECONDS" not in found.process_environ()


def test_without_a_certificate_nothing_changes(tmp_path: Path) -> None:
    found = Deployment.from_environment({"SANDLOT_STATE_DIR": str(tmp_path)})
    assert not found.has_tls
    assert found.web_url == "http://localhost:8000"
    assert set(found.ports) == {"web", "gateway", "agent"}
    assert "SANDLOT_BEHIND_PROXY" not in found.process_environ()
