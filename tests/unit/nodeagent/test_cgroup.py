"""Readings of both versions of control groups, from copies of their files."""

from pathlib import Path

import pytest

from nodeagent.runtime import cgroup
from nodeagent.runtime.cgroup import ContainerGroups, parse_paths, version


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture(autouse=True)
def _forget_version():
    yield
    cgroup.version.cache_clear()


def test_paths_of_both_versions_are_read():
    text = "8:pids:/docker/x\n1:cpu,cpuacct:/docker/y\n0::/system.slice/docker-x.scope\n"
    assert parse_paths(text) == {
        "pids": "/docker/x",
        "cpu": "/docker/y",
        "cpuacct": "/docker/y",
        "": "/system.slice/docker-x.scope",
    }


def test_version_1(tmp_path):
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(
        proc / "7/cgroup",
        "8:pids:/docker/x\n4:memory:/docker/x\n2:cpuacct:/docker/x\n0::/docker/x\n",
    )
    write(root / "memory/docker/x/memory.usage_in_bytes", "1000\n")
    write(root / "memory/docker/x/memory.stat", "cache 1\ntotal_cache 400\ntotal_shmem 100\n")
    write(root / "cpuacct/docker/x/cpuacct.usage", "2500000000\n")
    write(root / "pids/docker/x/pids.current", "3\n")

    usage = ContainerGroups(7, root=root, proc=proc).usage()

    assert version(root) == 1
    # Files kept in a tmpfs are memory in use, not cache that could be dropped.
    assert (usage.memory_used, usage.memory_cache) == (700, 300)
    assert usage.cpu_seconds == 2.5
    assert usage.pids == 3


def test_version_2(tmp_path):
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(root / "cgroup.controllers", "cpu memory pids\n")
    write(proc / "7/cgroup", "0::/system.slice/docker-x.scope\n")
    group = root / "system.slice/docker-x.scope"
    write(group / "memory.current", "1000\n")
    write(group / "memory.stat", "anon 600\nfile 400\nshmem 100\n")
    write(group / "cpu.stat", "usage_usec 2500000\nuser_usec 1\n")
    write(group / "pids.current", "3\n")

    usage = ContainerGroups(7, root=root, proc=proc).usage()

    assert version(root) == 2
    assert (usage.memory_used, usage.memory_cache) == (700, 300)
    assert usage.cpu_seconds == 2.5


def test_a_process_that_is_gone_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        ContainerGroups(7, root=tmp_path, proc=tmp_path)
