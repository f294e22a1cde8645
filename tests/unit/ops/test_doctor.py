from __future__ import annotations

import pytest

from ops import doctor
from ops.doctor import Level


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ("1.1.5+ds1 1.1.5+ds1-1+deb12u1", Level.WARN),
        ("1.1.12", Level.WARN),
        ("1.2.7", Level.WARN),
        ("1.2.8", Level.OK),
        ("1.3.2", Level.WARN),
        ("1.3.3", Level.OK),
        ("1.4.0", Level.OK),
        ("v1.5.1", Level.OK),
        ("", Level.WARN),
    ],
)
def test_runc_with_known_escapes_is_warned_of(version: str, level: Level) -> None:
    finding = doctor.check_runc(version)
    assert finding.level == level
    assert bool(finding.fix) == (level == Level.WARN)


@pytest.mark.parametrize(
    ("release", "level"),
    [("3.10.0-el7", Level.FAIL), ("4.19.0", Level.WARN), ("6.1.0-30-amd64", Level.OK)],
)
def test_old_kernels_are_refused(release: str, level: Level) -> None:
    assert doctor.check_kernel(release).level == level


@pytest.mark.parametrize(
    ("total_gib", "free_gib", "level"),
    [(1, 0.5, Level.FAIL), (4, 0.5, Level.WARN), (4, 2, Level.OK)],
)
def test_memory_is_judged_by_total_and_free(
    total_gib: float, free_gib: float, level: Level
) -> None:
    kib = 2**20
    meminfo = f"MemTotal: {total_gib * kib:.0f} kB\nMemAvailable: {free_gib * kib:.0f} kB\n"
    assert doctor.check_memory(meminfo).level == level


def test_missing_cgroup_controllers_are_named() -> None:
    facts = {"CgroupVersion": "2", "MemoryLimit": False, "CpuCfsQuota": True, "PidsLimit": True}
    finding = doctor.check_cgroup(facts)
    assert finding.level == Level.FAIL
    assert "memory" in finding.text
    assert doctor.check_cgroup({**facts, "MemoryLimit": True}).level == Level.OK


@pytest.mark.parametrize(
    ("driver", "level"),
    [("overlay2", Level.OK), ("btrfs", Level.WARN), ("vfs", Level.FAIL)],
)
def test_slow_storage_drivers_are_told(driver: str, level: Level) -> None:
    facts = {"Driver": driver, "DriverStatus": [["Backing Filesystem", "extfs"]]}
    assert doctor.check_storage(facts).level == level


def test_a_finding_is_one_line_with_its_fix() -> None:
    line = doctor.Finding(Level.FAIL, "disk", "1 GiB free", "free some.").line()
    assert "\n" not in line
    assert line.startswith("FAIL")
    assert line.endswith("Fix: free some.")
