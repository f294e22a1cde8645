"""The kernel's log tells why a container died."""

import time

from nodeagent.runtime.kernel_log import ended_for_memory

ID = "c" * 64


def log(tmp_path, age_seconds, text):
    at_us = int((time.monotonic() - age_seconds) * 1e6)
    path = tmp_path / "kmsg"
    path.write_text(f"6,1,{at_us},-;{text}")
    return str(path)


def test_a_recent_kill_in_the_containers_group_counts(tmp_path):
    text = f"oom-kill:constraint=CONSTRAINT_MEMCG,oom_memcg=/docker/{ID},task=python"
    assert ended_for_memory(ID, device=log(tmp_path, 1, text))
    assert not ended_for_memory(ID, device=log(tmp_path, 60, text))
    assert not ended_for_memory("d" * 64, device=log(tmp_path, 1, text))


def test_other_records_and_a_log_that_cannot_be_read_tell_nothing(tmp_path):
    assert not ended_for_memory(ID, device=log(tmp_path, 1, f"something about {ID}"))
    assert not ended_for_memory(ID, device=log(tmp_path, 1, ""))
    assert not ended_for_memory(ID, device=str(tmp_path / "absent"))
