"""Templates built, named, tagged and used through the official SDK."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from e2b import (
    AsyncTemplate,
    BuildException,
    Sandbox,
    Template,
    TemplateException,
    wait_for_port,
    wait_for_timeout,
)

SIZE = {"cpu_count": 1, "memory_mb": 512}


def new_name() -> str:
    return f"t-{uuid.uuid4().hex[:10]}"


@pytest.fixture
def context(tmp_path: Path) -> str:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "test.txt").write_text("a file")
    (folder / "link").symlink_to("test.txt")
    (folder / "dangling").symlink_to("nowhere")
    return str(tmp_path)


def fails(template: Template, *words: str) -> BuildException:
    with pytest.raises(BuildException) as caught:
        Template.build(template, new_name(), **SIZE)
    for word in words:
        assert word in str(caught.value)
    return caught.value


def test_a_template_is_built_and_started_from(context: str) -> None:
    logs: list[str] = []
    name = new_name()
    template = (
        Template(file_context_path=context)
        .from_base_image()
        .copy("folder/*", "folder", force_upload=True)
        .run_cmd("cat folder/test.txt folder/link")
        .set_workdir("/srv/app")
        .set_envs({"WHO": "web"})
        .run_cmd("echo $WHO in $(pwd)")
        .set_start_cmd("python3 -m http.server 8000", wait_for_port(8000))
    )
    info = Template.build(template, name, on_build_logs=lambda e: logs.append(e.message), **SIZE)
    text = "\n".join(logs)
    assert "[stdout]: a filea file" in text
    assert "[stdout]: web in /srv/app" in text
    assert text.index("Running start command") < text.index("Template is ready")
    assert (info.name, info.tags) == (name, ["default"])
    assert Template.exists(name)
    sandbox = Sandbox.create(name, timeout=60)
    try:
        shown = sandbox.commands.run(
            'echo "$(pwd) $(id -un) [$WHO]"; curl -s -o /dev/null -w "%{http_code}" localhost:8000'
        )
        assert shown.stdout == "/srv/app user []\n200"
        assert sandbox.files.read("/home/user/folder/test.txt") == "a file"
    finally:
        sandbox.kill()


def test_a_second_build_comes_from_the_cache() -> None:
    name, logs = new_name(), []
    template = Template().from_base_image().set_envs({"MARK": name}).run_cmd("echo $MARK")
    Template.build(template, name, **SIZE)
    Template.build(template, name, on_build_logs=lambda e: logs.append(e.message), **SIZE)
    assert any(f"CACHED [builder 1/2] ENV MARK {name}" in line for line in logs)


def test_links_files_and_owners(context: str) -> None:
    template = (
        Template(file_context_path=context)
        .from_base_image()
        .copy("folder", "folder")
        .run_cmd('test "$(readlink folder/link)" = test.txt && test -L folder/dangling')
        .copy("folder/link", "deep/er/file.txt", force_upload=True, resolve_symlinks=True)
        .run_cmd("test ! -L deep/er/file.txt && cat deep/er/file.txt")
        .copy("folder/test.txt", "/opt/own.txt", user="root", mode=0o600)
        .run_cmd('test "$(stat -c "%U %a" /opt/own.txt)" = "root 600"')
        .make_symlink(".bashrc", ".bashrc.local")
        .run_cmd('test "$(readlink .bashrc.local)" = ".bashrc"')
    )
    Template.build(template, new_name(), **SIZE)


def test_failures_say_which_line_it_was() -> None:
    template = Template().from_base_image().run_cmd("true")
    template = template.run_cmd("exit 3")
    error = fails(template, "failed to run command 'exit 3': exit status 3")
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    assert trace.tb_frame.f_code.co_filename.endswith("test_templates.py")


def test_failures_of_users_images_and_commands() -> None:
    fails(
        Template().from_base_image().run_cmd("whoami", user="nobody-here"),
        "failed to run command 'whoami': command failed: unauthenticated: invalid username:"
        " 'nobody-here'",
    )
    fails(Template().from_template("no-such-template"), "template 'no-such-template' not found")
    fails(Template().from_image("localhost:1/no/image:here"), "localhost:1/no/image:here")
    fails(
        Template().from_base_image().set_start_cmd("exit 4", wait_for_timeout(20_000)),
        "start command failed: error running start command: exit status 4",
    )


def test_users_of_a_build() -> None:
    template = (
        Template()
        .from_base_image()
        .run_cmd("test $(id -un) = user")
        .run_cmd("test $(id -un) = root", user="root")
        .set_user("worker")
        .run_cmd("test $(id -un) = worker")
    )
    name = new_name()
    Template.build(template, name, **SIZE)
    child = Template().from_template(name).run_cmd("test $(id -un) = user")
    Template.build(child, new_name(), **SIZE)
    sandbox = Sandbox.create(name, timeout=30)
    try:
        assert sandbox.commands.run("id -un; pwd").stdout == "worker\n/home/worker\n"
    finally:
        sandbox.kill()


def test_a_build_in_the_background() -> None:
    template = Template().from_base_image().run_cmd("sleep 5")
    info = Template.build_in_background(template, new_name(), **SIZE)
    assert str(Template.get_build_status(info).status).rpartition(".")[2].lower() == "building"


def test_names_that_exist_and_not() -> None:
    assert Template.exists("base")
    assert not Template.exists(new_name())


def test_tags() -> None:
    name = new_name()
    info = Template.build(
        Template().from_base_image().run_cmd("echo 1 > which"), f"{name}:v1", **SIZE
    )
    assert info.tags == ["v1"]
    assigned = Template.assign_tags(f"{name}:v1", ["production", "latest"])
    assert (assigned.build_id, assigned.tags) == (info.build_id, ["production", "latest"])
    assert Template.assign_tags(f"{name}:v1", "one").tags == ["one"]
    tags = {tag.tag for tag in Template.get_tags(name)}
    assert tags == {"v1", "production", "latest", "one"}
    Template.remove_tags(name, ["one"])
    assert "one" not in {tag.tag for tag in Template.get_tags(name)}
    for bad in (":x", "x:"):
        with pytest.raises(TemplateException):
            Template.assign_tags(f"{name}:v1", bad)
    sandbox = Sandbox.create(f"{name}:production", timeout=30)
    assert sandbox.files.read("which") == "1\n"
    sandbox.kill()


async def test_the_asynchronous_twin() -> None:
    template = AsyncTemplate().from_template("base").run_cmd("echo hi")
    info = await AsyncTemplate.build(template, new_name(), **SIZE)
    status = await AsyncTemplate.get_build_status(info)
    assert str(status.status).rpartition(".")[2].lower() == "ready"
