import json

from nodeagent.runtime import seccomp


def test_nothing_refused_is_allowed():
    refused = {name for names in seccomp.REFUSED.values() for name in names}
    assert not refused & set(seccomp.KNOWN)


def test_calls_are_refused_unless_named():
    profile = json.loads(seccomp.profile())
    assert profile["defaultAction"] == "SCMP_ACT_ERRNO"
    plain = [rule for rule in profile["syscalls"] if "args" not in rule]
    allowed = {
        name for rule in plain if rule["action"] == "SCMP_ACT_ALLOW" for name in rule["names"]
    }
    assert {"read", "execve", "fork", "ptrace"} <= allowed
    # Only with arguments that were looked at.
    assert not {"clone", "clone3", "socket", "personality", "mount", "unshare"} & allowed


def test_socket_families_are_named_one_by_one():
    profile = json.loads(seccomp.profile())
    families = {
        rule["args"][0]["value"] for rule in profile["syscalls"] if rule["names"] == ["socket"]
    }
    assert families == {1, 2, 10, 16}  # no packet, no vsock, no kernel crypto
