from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.build_archives import source_root
from nodeagent.commands import login_shell
from templates_app.steps import base_key, plan_steps, ready_command

RUN = {"type": "run", "args": ["echo 1"]}
COPY = {"type": "COPY", "args": ["a", "b", "", ""], "filesHash": "0" * 64}
BASE = base_key(image="ubuntu:22.04", disk_size_mb=1024)


def keys(steps, base=BASE, *, force=False):
    return [step.key for step in plan_steps(base, steps, force=force)]


def test_the_same_recipe_has_the_same_keys():
    assert keys([RUN, COPY]) == keys([dict(RUN), dict(COPY)])
    assert keys([RUN, COPY])[:1] == keys([RUN])


def test_each_part_of_a_recipe_counts():
    variants = [
        [RUN, COPY],
        [RUN, {**COPY, "filesHash": "1" * 64}],
        [RUN, {**COPY, "args": ["a", "c", "", ""]}],
        [RUN, {**COPY, "type": "RUN"}],
        [{**RUN, "args": ["echo 2"]}, COPY],
    ]
    assert len({keys(steps)[-1] for steps in variants}) == len(variants)


def test_keys_start_from_the_base():
    bases = [
        BASE,
        base_key(image="ubuntu:22.04", disk_size_mb=2048),
        base_key(image="ubuntu:latest", disk_size_mb=1024),
        base_key(parent_build_id="ubuntu:22.04", disk_size_mb=1024),
    ]
    assert len({keys([RUN], base)[0] for base in bases}) == len(bases)


def test_a_forced_step_forces_all_that_follow_and_none_before():
    steps = plan_steps(BASE, [RUN, {**RUN, "force": True}, COPY], force=False)
    assert [step.use_cache for step in steps] == [True, False, False]
    assert [step.use_cache for step in plan_steps(BASE, [RUN, COPY], force=True)] == [False, False]


def test_forcing_does_not_change_keys():
    assert keys([RUN, {**COPY, "force": True}]) == keys([RUN, COPY], force=True)


def test_types_are_upper_case_and_missing_parts_are_empty():
    (step,) = plan_steps(BASE, [{"type": " workdir "}], force=False)
    assert (step.type, step.args, step.files_hash) == ("WORKDIR", [], "")


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_any_text_can_be_hashed(one, two):
    first, second = keys([{"type": "RUN", "args": one}]), keys([{"type": "RUN", "args": two}])
    assert (first == second) == (" ".join(one) == " ".join(two))


def test_what_a_build_waits_for():
    assert ready_command("serve", "") == "sleep 20"
    assert ready_command("", "") == "sleep 0"
    assert ready_command("serve", "true") == "true"


def test_the_source_of_a_copy_is_what_leads_up_to_the_glob():
    cases = {
        "folder/*": "folder",
        "*.txt": "",
        ".": "",
        "**/*": "",
        "a/**/b.py": "a",
        "dir": "dir",
        "dir/": "dir",
        "./a/b.txt": "a/b.txt",
        "a/b.txt": "a/b.txt",
        "a/[bc]/d": "a",
    }
    assert {source: source_root(source) for source in cases} == cases


def test_a_templates_path_outlives_the_profile():
    args, env = login_shell("make", {"PATH": "/opt/bin", "A": "1"})
    assert args[:2] == ["-l", "-c"]
    assert args[-1] == "make"
    assert args[-2] == env["PATH"]
    assert env["PATH"].startswith("/opt/bin:/usr/local/sbin:")
    assert login_shell("make", {"A": "1"}) == (["-l", "-c", "make"], {"A": "1"})
