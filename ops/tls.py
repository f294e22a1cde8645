"""`make tls`: a certificate authority of this machine's own, and a wildcard certificate from it.

Meant for development and closed networks; in the open, point SANDLOT_TLS_CERT and SANDLOT_TLS_KEY
at a real certificate. The files, in `<state>/tls`:

    ca.crt, ca.key    the authority; kept when the rest is made again
    server.crt        the certificate, then the authority's
    server.key
    bundle.crt        the authority and all that this machine trusts, for SSL_CERT_FILE
    domain            what the certificate is for
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ops.shell import OpsError, ask, run, step

CA_DAYS, SERVER_DAYS = 3650, 397  # clients refuse longer-lived server certificates
RENEW_SECONDS = 30 * 86400
SYSTEM_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_NAME = re.compile(
    r"^(?=.{1,200}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]*[a-z][a-z0-9-]*$"
)

_EXTENSIONS = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {common_name}
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


def check_domain(domain: str) -> None:
    """Raises: OpsError. One label is too few: clients refuse a wildcard like `*.localhost`."""
    if not _NAME.match(domain):
        raise OpsError(
            f"{domain!r} cannot have a wildcard certificate: use a name with a dot, as in\n"
            "  SANDLOT_DOMAIN=sandlot.localhost make tls"
        )


def ensure_certificate(folder: Path, domain: str) -> bool:
    """Make what is missing, expires soon or is for another domain. Returns whether it did."""
    check_domain(domain)
    if is_fresh(folder, domain):
        return False
    with step(f"Making a certificate for {domain} and *.{domain}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        if not _lasts(folder / "ca.crt", (SERVER_DAYS + 1) * 86400):
            _make_ca(folder)
        _make_server(folder, domain)
        system = SYSTEM_BUNDLE.read_text() if SYSTEM_BUNDLE.exists() else ""
        _write(folder / "bundle.crt", f"{(folder / 'ca.crt').read_text()}\n{system}")
        _write(folder / "domain", domain + "\n")
    return True


def domain_of(folder: Path) -> str:
    """The domain that `make tls` made a certificate for; empty when it never did."""
    try:
        return (folder / "domain").read_text().strip()
    except FileNotFoundError:
        return ""


def is_fresh(folder: Path, domain: str) -> bool:
    return domain_of(folder) == domain and _lasts(folder / "server.crt", RENEW_SECONDS)


def _lasts(certificate: Path, seconds: int) -> bool:
    checked = ("openssl", "x509", "-noout", "-in", certificate, "-checkend", str(seconds))
    return certificate.exists() and ask(checked) is not None


def _make_ca(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _openssl(
            Path(scratch),
            ["-extensions", "ca", "-days", str(CA_DAYS)],
            common_name="Sandlot local authority",
        )
        _take(Path(scratch), folder, "ca")


def _make_server(folder: Path, domain: str) -> None:
    names = [f"DNS:{domain}", f"DNS:*.{domain}", "DNS:localhost", "IP:127.0.0.1", "IP:::1"]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        signed_by = ("-CA", folder / "ca.crt", "-CAkey", folder / "ca.key")
        _openssl(
            Path(scratch),
            ["-extensions", "server", "-days", str(SERVER_DAYS), *signed_by],
            common_name=domain[:64],
            names=names,
        )
        chain = (Path(scratch) / "new.crt").read_text() + (folder / "ca.crt").read_text()
        (Path(scratch) / "new.crt").write_text(chain)
        _take(Path(scratch), folder, "server")


def _openssl(
    scratch: Path, words: list[str | Path], *, common_name: str, names: list[str] | None = None
) -> None:
    config = scratch / "openssl.cnf"
    text = _EXTENSIONS.format(common_name=common_name, names=", ".join(names or ["DNS:unused"]))
    config.write_text(text)
    command: list[str | Path] = ["openssl", "req", "-x509", "-sha256", "-config", config, "-nodes"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-keyout", scratch / "new.key", "-out", scratch / "new.crt"]
    run([*command, *words])


def _take(scratch: Path, folder: Path, name: str) -> None:
    """Put the new pair in place; a reader never meets half a file."""
    (scratch / "new.key").chmod(0o600)
    (scratch / "new.crt").chmod(0o644)
    (scratch / "new.key").rename(folder / f"{name}.key")
    (scratch / "new.crt").rename(folder / f"{name}.crt")


def _write(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.rename(path)
