from datetime import UTC, datetime

import pytest

from config import ids
from config.drf import from_wire_time, to_wire_time
from config.env import BadSetting, env_bool, env_int, env_secret, load_env_file, parse_database_url
from config.paths import ReferenceConverter, is_api_path, keep_encoded_slashes


def test_a_time_reads_back_as_the_same_text():
    text = "2025-01-02T03:04:05.678901Z"
    assert to_wire_time(from_wire_time(text)) == text
    assert to_wire_time(datetime(2025, 1, 2, tzinfo=UTC)) == "2025-01-02T00:00:00.000000Z"


@pytest.mark.parametrize(
    "text", ["", "yesterday", "2025-01-02T03:04:05", "12", "0001-01-01T00:00:00+23:59"]
)
def test_what_is_no_instant_is_refused(text):
    with pytest.raises(ValueError, match=r".*"):
        from_wire_time(text)


def test_sandbox_ids_are_host_names():
    made = {ids.new_sandbox_id() for _ in range(50)}
    assert len(made) == 50
    for sandbox_id in made:
        assert len(sandbox_id) == 21
        assert sandbox_id[0] == "i"
        assert ids.parse_sandbox_id(sandbox_id) == sandbox_id


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [("iabc-6532622b", "iabc"), ("a-b-c", None), ("", None), ("UPPER", None), ("a/b", None)],
)
def test_older_ids_carry_a_client_id(raw, parsed):
    assert ids.parse_sandbox_id(raw) == parsed


def test_an_encoded_slash_stays_within_its_segment():
    path = keep_encoded_slashes(b"/templates/team%2Fname%3Av1/tags?x=1", "ignored")
    assert path == "/templates/team%2Fname:v1/tags"
    assert ReferenceConverter().to_python("team%2Fname:v1") == "team/name:v1"


@pytest.mark.parametrize(
    ("path", "is_api"),
    [
        ("/sandboxes", True),
        ("/sandboxes/x", True),
        ("/sandboxes-of-mine", False),
        ("/v2/anything", True),
        ("/t/team/sandboxes", False),
        ("/", False),
        ("/admin/teams/x", True),
        ("/operator/", False),
    ],
)
def test_api_paths_are_told_from_pages(path, is_api):
    assert is_api_path(path) is is_api


def test_settings_that_make_no_sense_are_named(monkeypatch):
    monkeypatch.setenv("SANDLOT_THING", "maybe")
    with pytest.raises(BadSetting, match="SANDLOT_THING"):
        env_bool("SANDLOT_THING")
    with pytest.raises(BadSetting, match="SANDLOT_THING"):
        env_int("SANDLOT_THING", 1)
    monkeypatch.setenv("SANDLOT_THING", "0")
    with pytest.raises(BadSetting, match="at least 1"):
        env_int("SANDLOT_THING", 1, minimum=1)


def test_a_secret_may_come_from_a_file(monkeypatch, tmp_path):
    (tmp_path / "secret").write_text("hidden\n")
    monkeypatch.setenv("SANDLOT_THING_FILE", str(tmp_path / "secret"))
    assert env_secret("SANDLOT_THING") == "hidden"
    monkeypatch.setenv("SANDLOT_THING", "plain")
    assert env_secret("SANDLOT_THING") == "plain"


def test_the_environment_wins_over_the_secrets_file(monkeypatch, tmp_path):
    monkeypatch.setenv("SANDLOT_A", "mine")
    monkeypatch.setenv("SANDLOT_B", "gone")
    monkeypatch.delenv("SANDLOT_B")
    (tmp_path / "secrets.env").write_text("# note\nSANDLOT_A=file\nexport SANDLOT_B='b=c'\n\n")
    load_env_file(tmp_path / "secrets.env")
    assert env_secret("SANDLOT_A") == "mine"
    assert env_secret("SANDLOT_B") == "b=c"


def test_a_database_url_is_taken_apart():
    parsed = parse_database_url("postgresql://u:p%40@h:5433/name?sslmode=require", pool_size=4)
    assert (parsed["USER"], parsed["PASSWORD"], parsed["HOST"], parsed["PORT"]) == (
        "u",
        "p@",
        "h",
        "5433",
    )
    assert parsed["NAME"] == "name"
    assert parsed["OPTIONS"]["sslmode"] == "require"
    with pytest.raises(BadSetting):
        parse_database_url("mysql://x/y", pool_size=4)
