"""The base template's image, made from Debian packages; rebuilt when what it is made of changes."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ops.shell import REPOSITORY, VENV, OpsError, ask, is_root, run, step

BASE_IMAGE = "sandlot/base:latest"
ROOTFS_IMAGE = "sandlot/base-rootfs"
RECIPE = REPOSITORY / "deploy/images/base"
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def ensure_base_image(environ: Mapping[str, str] = os.environ) -> None:
    """`sandlot/base:latest`, up to date. Two layers: the Debian system, and the network's own CAs.

    Raises: OpsError when it must be built and we are not root, or building fails.
    """
    rootfs = f"{ROOTFS_IMAGE}:{recipe_digest()}"
    certificates = extra_certificates(environ)
    wanted = wanted_content(environ)
    if image_label(BASE_IMAGE, "sandlot.content") == wanted:
        return
    if image_label(rootfs, "sandlot.recipe") is None:
        if not is_root():
            raise OpsError("building the base image needs root: run `sudo make up` once")
        with step("Building the base image from Debian packages (about a minute)"):
            _build_rootfs(rootfs, environ)
    with step("Tagging the base image"):
        _add_certificates(rootfs, certificates, wanted)
    _forget_old_rootfs(rootfs)


def wanted_content(environ: Mapping[str, str]) -> str:
    """The label of an image that is up to date."""
    return _digest(f"{ROOTFS_IMAGE}:{recipe_digest()}", *extra_certificates(environ))


def recipe_digest() -> str:
    files = sorted(path for path in RECIPE.rglob("*") if path.is_file())
    parts = [part for path in files for part in (str(path.relative_to(RECIPE)), path.read_text())]
    return _digest(*parts)


def extra_certificates(environ: Mapping[str, str]) -> list[str]:
    """The PEM blocks of `SANDLOT_EXTRA_CA` that Debian's own bundle does not have already."""
    name = environ.get("SANDLOT_EXTRA_CA", "").strip()
    if not name:
        return []
    try:
        blocks = _PEM.findall(Path(name).read_text())
    except OSError as error:
        raise OpsError(f"SANDLOT_EXTRA_CA cannot be read: {error}") from error
    if not blocks:
        raise OpsError(f"SANDLOT_EXTRA_CA: {name} holds no certificate in PEM form")
    known: set[str] = set()
    for path in Path("/usr/share/ca-certificates").rglob("*.crt"):
        known.update(_squeezed(block) for block in _PEM.findall(path.read_text(errors="replace")))
    return sorted({block for block in blocks if _squeezed(block) not in known})


def custom_ca_of_this_machine(environ: Mapping[str, str] = os.environ) -> str | None:
    """The CA bundle this machine's tools were given, if any; tests run inside such networks."""
    for name in (
        "SANDLOT_EXTRA_CA",
        "SSL_CERT_FILE",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
        "CURL_CA_BUNDLE",
    ):
        path = environ.get(name)
        if path and Path(path).is_file() and extra_certificates({"SANDLOT_EXTRA_CA": path}):
            return path
    return None


def image_label(image: str, label: str) -> str | None:
    template = f'{{{{ index .Config.Labels "{label}" }}}}'
    return ask(["docker", "image", "inspect", "--format", template, image]) or None


def _build_rootfs(rootfs: str, environ: Mapping[str, str]) -> None:
    env = {
        **environ,
        "PATH": f"{VENV / 'bin'}:{environ.get('PATH', '')}:/usr/sbin:/sbin",
        "SANDLOT_DEBIAN_MIRROR": environ.get("SANDLOT_DEBIAN_MIRROR") or host_mirror(),
    }
    run([RECIPE / "build.sh", rootfs, rootfs.rpartition(":")[2]], env=env, timeout=1200)


def host_mirror() -> str:
    """The mirror this machine's apt uses, if it is a Debian machine; else Debian's own name."""
    default = "http://deb.debian.org/debian"
    os_release = Path("/etc/os-release")
    if not os_release.exists() or "\nID=debian\n" not in os_release.read_text():
        return default
    apt = Path("/etc/apt")
    sources = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))]
    for path in sources:
        if path.suffix in (".list", ".sources") and path.is_file():
            found = re.search(
                r"^(?:URIs:|deb(?:\s+\[[^]]*\])?)\s+(https?://\S+/debian/?)(?:\s|$)",
                path.read_text(),
                re.MULTILINE,
            )
            if found:
                return found[1].rstrip("/")
    return default


def _add_certificates(rootfs: str, certificates: list[str], content: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        context = Path(folder)
        lines = [f"FROM {rootfs}"]
        if certificates:
            (context / "ca").mkdir()
            for number, block in enumerate(certificates):
                (context / "ca" / f"sandlot-extra-{number}.crt").write_text(block + "\n")
            lines += [
                "COPY ca/ /usr/local/share/ca-certificates/",
                "COPY use-extra-ca.sh /tmp/use-extra-ca.sh",
                "RUN bash /tmp/use-extra-ca.sh && rm /tmp/use-extra-ca.sh",
            ]
            script = REPOSITORY / "deploy/images/use-extra-ca.sh"
            (context / "use-extra-ca.sh").write_text(script.read_text())
        lines.append(f"LABEL sandlot.content={content}")
        (context / "Dockerfile").write_text("\n".join(lines) + "\n")
        env = {**os.environ, "DOCKER_BUILDKIT": "0"}
        run(
            ["docker", "build", "--quiet", "--network", "none", "--tag", BASE_IMAGE, context],
            env=env,
        )


def _forget_old_rootfs(current: str) -> None:
    listed = ask(["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", ROOTFS_IMAGE]) or ""
    for image in listed.split():
        if image != current:
            ask(["docker", "rmi", image])


def _squeezed(block: str) -> str:
    return "".join(block.split())


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]
