from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nodeagent.settings import derive_node_token
from ops import images, processes, stack
from ops.deployment import Deployment
from ops.shell import OpsError

PEM = "-----BEGIN CERTIFICATE-----\nQUJD{}\n-----END CERTIFICATE-----"


def deployment(state_dir: Path, **environ: str) -> Deployment:
    return Deployment.from_environment({"SANDLOT_STATE_DIR": str(state_dir), **environ})


def test_secrets_are_made_once_and_only_for_their_owner(tmp_path: Path) -> None:
    first = deployment(tmp_path / "state")
    first.prepare_state_dir()
    made = first.secrets_file.read_text()
    first.prepare_state_dir()
    assert first.secrets_file.read_text() == made
    assert stat.S_IMODE(first.secrets_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(first.state_dir.stat().st_mode) == 0o700
    assert len({line.partition("=")[2] for line in made.splitlines()}) == len(made.splitlines())


def test_a_secret_that_is_new_is_added_to_those_that_are_there(tmp_path: Path) -> None:
    known = "SANDLOT_SECRET_KEY=kept\n"
    (tmp_path / "secrets.env").write_text(known)
    found = deployment(tmp_path)
    found.prepare_state_dir()
    assert found.secrets_file.read_text().startswith(known)
    assert "SANDLOT_NODE_SECRET=" in found.secrets_file.read_text()


@pytest.mark.parametrize("port", ["0", "65536", "-1", "web", "80.5"])
def test_a_bad_port_names_its_setting(tmp_path: Path, port: str) -> None:
    with pytest.raises(OpsError, match="SANDLOT_WEB_PORT"):
        deployment(tmp_path, SANDLOT_WEB_PORT=port)


def test_the_node_token_is_the_one_that_the_agent_derives(tmp_path: Path) -> None:
    found = deployment(tmp_path, SANDLOT_NODE_ID="n1")
    found.prepare_state_dir()
    secret = dict(line.split("=", 1) for line in found.secrets_file.read_text().splitlines())
    expected = derive_node_token(secret["SANDLOT_NODE_SECRET"], "n1")
    assert stack.node_token(found) == expected


def test_a_stale_pid_file_is_not_taken_for_a_running_supervisor(tmp_path: Path) -> None:
    found = deployment(tmp_path)
    (tmp_path / "supervisord.pid").write_text("1\n")
    assert processes.supervisor_pid(found) is None


def test_extra_certificates_are_told_apart(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("\n".join([PEM.format("a"), "text", PEM.format("b"), PEM.format("a")]))
    found = images.extra_certificates({"SANDLOT_EXTRA_CA": str(bundle)})
    assert found == [PEM.format("a"), PEM.format("b")]
    assert images.extra_certificates({}) == []


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_useless_extra_ca_is_refused(tmp_path: Path, content: str | None) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    with pytest.raises(OpsError, match="SANDLOT_EXTRA_CA"):
        images.extra_certificates({"SANDLOT_EXTRA_CA": str(bundle)})


def test_another_extra_ca_makes_another_image(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text(PEM.format("a"))
    with_ca = images.wanted_content({"SANDLOT_EXTRA_CA": str(bundle)})
    assert with_ca != images.wanted_content({})
