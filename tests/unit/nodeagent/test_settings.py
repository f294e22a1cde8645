from pathlib import Path

import pytest

from nodeagent.errors import InvalidArgument
from nodeagent.settings import EgressException, Settings, derive_node_token


def settings(tmp_path: Path, **environ: str) -> Settings:
    return Settings.from_environment({"SANDLOT_STATE_DIR": str(tmp_path), **environ})


def test_defaults_need_only_a_token(tmp_path):
    found = settings(tmp_path, SANDLOT_NODE_TOKEN="sln_x")
    assert (found.node_id, found.token, found.api_port) == ("local", "sln_x", 8002)
    assert found.api_url == "http://127.0.0.1:8002"
    assert found.api_host == "127.0.0.1"


def test_the_token_is_derived_from_the_node_secret(tmp_path):
    found = settings(tmp_path, SANDLOT_NODE_SECRET="s3", SANDLOT_NODE_ID="n7")
    assert found.token == derive_node_token("s3", "n7")
    assert found.token.startswith("sln_")
    assert found.token != derive_node_token("s3", "n8")


def test_secrets_come_from_the_state_directory_too(tmp_path):
    (tmp_path / "secrets.env").write_text("# ours\nSANDLOT_NODE_SECRET='s3'\nSANDLOT_NODE_ID=x\n")
    assert settings(tmp_path).token == derive_node_token("s3", "x")
    # The environment wins over the file.
    assert settings(tmp_path, SANDLOT_NODE_ID="y").token == derive_node_token("s3", "y")


def test_without_a_token_the_agent_does_not_start(tmp_path):
    with pytest.raises(InvalidArgument, match="SANDLOT_NODE_TOKEN"):
        settings(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SANDLOT_NODE_ID", "Not Safe"),
        ("SANDLOT_NODE_ID", "../x"),
        ("SANDLOT_AGENT_PORT", "0"),
        ("SANDLOT_AGENT_PORT", "http"),
        ("SANDLOT_HEARTBEAT_SECONDS", "0"),
        ("SANDLOT_PIDS_LIMIT", "100.5"),
        ("SANDLOT_DNS", "resolver.example"),
        ("SANDLOT_EGRESS_ALLOW", "10.0.0.1"),
        ("SANDLOT_BLOCK_SMTP", "maybe"),
        ("SANDLOT_TLS_CERT", "/dev/null/x"),
        ("SANDLOT_LOG_FORMAT", "xml"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(InvalidArgument, match=name):
        settings(tmp_path, SANDLOT_NODE_TOKEN="t", **{name: value})


def test_exceptions_are_addresses_with_ports(tmp_path):
    found = settings(
        tmp_path, SANDLOT_NODE_TOKEN="t", SANDLOT_EGRESS_ALLOW="10.0.0.1:443, 192.168.0.0/24:80"
    )
    assert found.egress_exceptions == (
        EgressException(cidr="10.0.0.1/32", port=443),
        EgressException(cidr="192.168.0.0/24", port=80),
    )
